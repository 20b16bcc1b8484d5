"""Strokes and lines: conversions, simplification, augmentation, doodles, pictures."""

from __future__ import annotations

import io
from itertools import pairwise

import numpy as np
import pytest
import torch
from PIL import Image
from sketch_helpers import some_drawings

from inference import load_data
from inference.data.dataset import MemorySplit
from inference.data.order import epoch_order
from inference.data.sketches.doodles import RECIPES, doodles
from inference.data.sketches.strokes import (
    Augmentation,
    lines_of,
    ramer_douglas_peucker,
    simplified,
    stroke3,
    stroke5,
    strokes_of,
    tidied,
)
from inference.data.sketches.svg import read_svg
from inference.plotting.drawings import being_drawn, first_points, fitted, raster, svg_sheet
from inference.sketches import are_drawings
from ppl_models import PplError
from ppl_models.distributions import FinishedDrawings

LINES = [np.array([[0.0, 0], [3, 0], [3, 4]]), np.array([[1.0, 1], [2, 2]])]


def test_lines_make_the_round_trip():
    strokes = strokes_of(LINES)
    assert strokes.tolist() == [[3, 0, 0], [0, 4, 1], [-2, -3, 0], [1, 1, 1]]
    assert all(np.array_equal(a, b) for a, b in zip(lines_of(strokes), LINES, strict=True))


def test_a_dot_within_a_drawing_stays_and_one_before_it_goes():
    dot = np.array([[9.0, 9]])
    assert len(lines_of(strokes_of([LINES[0], dot, LINES[1]]))) == 3
    assert np.array_equal(strokes_of([dot, *LINES]), strokes_of(LINES))
    assert strokes_of([dot]).shape == (0, 3)


def test_movements_that_go_nowhere_are_left_out_and_their_lifts_are_not():
    strokes = np.array([[0.0, 0, 0], [1, 0, 0], [0, 0, 1], [2, 2, 0], [0, 0, 0]])
    assert tidied(strokes).tolist() == [[1, 0, 1], [2, 2, 1]]
    assert tidied(np.zeros((3, 3))).shape == (0, 3)


def test_stroke_5_makes_the_round_trip():
    drawings = [strokes_of(LINES), strokes_of(LINES[:1])]
    x = stroke5(drawings, 7)
    assert x.shape == (2, 7, 5)
    assert bool(FinishedDrawings().check(x).all())
    assert are_drawings(x)
    assert all(np.allclose(a, b) for a, b in zip(stroke3(x), drawings, strict=True))
    with pytest.raises(PplError, match="does not fit into 4 rows"):
        stroke5(drawings, 4)


@pytest.mark.parametrize("other", [torch.zeros(2, 3, 5), torch.rand(2, 8, 8), torch.ones(2, 5)])
def test_what_are_no_drawings(other):
    assert not are_drawings(other)


def test_simplification_keeps_within_its_distance():
    random = np.random.RandomState(0)
    for epsilon in (0.1, 1.0, 4.0):
        points = np.cumsum(random.normal(size=(60, 2)), axis=0)
        kept = ramer_douglas_peucker(points, epsilon)
        assert np.array_equal(kept[[0, -1]], points[[0, -1]])
        assert len(kept) < 60
        places = [int(np.flatnonzero((points == k).all(1))[0]) for k in kept]
        for start, end in pairwise(places):
            for point in points[start:end]:
                along, off = points[end] - points[start], point - points[start]
                share = np.clip(off @ along / (along @ along), 0, 1)
                assert np.linalg.norm(off - share * along) <= epsilon + 1e-9


def test_simplification_knows_its_corners():
    line = np.array([[0.0, 0], [1, 0.01], [2, 0], [2, 1], [2, 2]])
    assert ramer_douglas_peucker(line, 0.1).tolist() == [[0, 0], [2, 0], [2, 2]]
    closed = np.array([[0.0, 0], [1, 0], [1, 1], [0, 0]])
    assert len(ramer_douglas_peucker(closed, 0.1)) == 4
    assert len(simplified(strokes_of([line, LINES[1]]), 0.1)) == 4


def test_augmentation_keeps_where_lines_begin_and_end():
    data = load_data("doodles")
    x = next(iter(data.train.batches(40)))["x"].double()
    y = Augmentation(scaling=0.0, dropping=0.5)({"x": x})["x"]
    assert bool(FinishedDrawings().check(y).all())
    for before, after in zip(stroke3(x), stroke3(y), strict=True):
        old, new = lines_of(before), lines_of(after)
        assert [len(line) > 0 for line in old] == [len(line) > 0 for line in new]
        for a, b in zip(old, new, strict=True):
            np.testing.assert_allclose(a[[0, -1]], b[[0, -1]], atol=1e-9)
            assert all(np.isclose(a, point, atol=1e-9).all(1).any() for point in b)
    assert len(torch.nonzero(y[..., 4] == 0)) < len(torch.nonzero(x[..., 4] == 0))


def test_augmentation_scales_axes_by_one_factor_a_drawing():
    x = some_drawings((7, 5))
    y = Augmentation(scaling=0.15, dropping=0.0)({"x": x})["x"]
    ratio = (y / x)[..., :2]
    for i, n in enumerate((7, 5)):
        torch.testing.assert_close(ratio[i, :n], ratio[i, :1].expand(n, 2))
    assert bool(((ratio[:, 0] > 0.85) & (ratio[:, 0] < 1.15)).all())
    assert torch.equal(y[..., 2:], x[..., 2:])


def test_augmentation_is_of_training_alone():
    data = load_data("doodles", augment=True)
    assert data.train.transform == Augmentation()
    assert data.valid.transform is None


def test_doodles_are_the_same_every_time():
    drawings, names = doodles(2)
    again, _ = doodles(2)
    assert names == [*RECIPES] * 2
    assert all(np.array_equal(a, b) for a, b in zip(drawings, again, strict=True))
    assert all(4 < len(strokes) <= 50 for strokes in drawings)


def test_pictures_are_black_lines_in_the_middle():
    picture = raster([LINES, [], [np.array([[5.0, 5]])]], 32)
    assert picture.shape == (3, 1, 32, 32)
    assert picture[0].min() < 0.2
    assert picture[1].min() == 1.0
    assert picture[2, 0, 15:17, 15:17].max() < 0.5  # a dot
    places = np.concatenate(fitted(LINES, 100))
    np.testing.assert_allclose((places.min(0) + places.max(0)) / 2, 50)
    assert places.max() == pytest.approx(92)


def test_an_svg_that_is_written_is_read_again(tmp_path):
    (tmp_path / "a.svg").write_text(svg_sheet([LINES]))
    found = read_svg(tmp_path / "a.svg")
    assert all(np.allclose(a, b, atol=0.01) for a, b in zip(found, fitted(LINES, 100), strict=True))


def test_a_gif_grows_point_by_point():
    image = Image.open(io.BytesIO(being_drawn([LINES])))
    assert image.n_frames == 5
    ink = []
    for frame in range(image.n_frames):
        image.seek(frame)
        ink.append(int((np.asarray(image.convert("L")) < 128).sum()))
    assert ink == sorted(ink)
    assert [len(line) for line in first_points(LINES, 4)] == [3, 1]


def test_drawings_of_about_one_length_share_batches_and_each_comes_once_an_epoch():
    split = load_data("doodles").train
    orders = [epoch_order(split, 50, 0, epoch) for epoch in (0, 0, 1)]
    assert torch.equal(orders[0], orders[1])
    assert not torch.equal(orders[0], orders[2])
    for order in orders:
        assert sorted(order.tolist()) == list(range(len(split)))
    longest = split.lengths[orders[0]][: len(split) // 50 * 50].view(-1, 50).amax(1)
    chance = split.lengths[torch.randperm(len(split))][: len(split) // 50 * 50].view(-1, 50).amax(1)
    assert longest.double().mean() < 0.8 * chance.double().mean()


def test_an_order_by_length_keeps_what_is_too_few_for_a_batch_for_the_end():
    split = MemorySplit({"x": torch.zeros(7, 2)}, lengths=torch.arange(7))
    assert sorted(epoch_order(split, 3, 0, 0).tolist()) == list(range(7))
    assert torch.equal(
        epoch_order(split, 10, 0, 0), epoch_order(MemorySplit(split.tensors), 10, 0, 0)
    )
