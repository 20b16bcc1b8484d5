"""The rendered shapes: areas and places against closed forms, factors that pixels tell."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from data_helpers import PARTS, sizes, whole

from inference.data import load_data, rendered_shapes
from inference.data.shapes import FACTORS, INSIDE, render
from inference.disentanglement import normalized_information
from ppl_models.errors import PplError, UnknownNameError


def one(shape, scale=0.6, rotation=0.0, x=32.0, y=32.0, size=64):
    values = (torch.tensor([v]) for v in (scale, rotation, x, y))
    return render(shape, *values, size=size)[0, 0]


@pytest.mark.parametrize("rotation", [0.0, 0.3, 1.1])
@pytest.mark.parametrize(
    ("shape", "area"), [("square", 2.0), ("ellipse", math.pi / 2)], ids=["square", "ellipse"]
)
def test_the_pixels_sum_to_the_area(shape, area, rotation):
    radius = 0.6 * 32
    found = float(one(shape, rotation=rotation).sum())
    assert found == pytest.approx(
        area * radius**2, rel=0.02
    )  # an edge may lie 1/8 of a pixel beside


@pytest.mark.parametrize("shape", INSIDE)
def test_a_shape_lies_within_its_radius_and_moves_with_its_centre(shape):
    still = one(shape, rotation=0.4)
    rows, columns = still.nonzero().unbind(-1)
    away = torch.hypot(rows + 0.5 - 32, columns + 0.5 - 32)
    assert float(away.max()) <= 0.6 * 32 + 1  # a pixel's corner more
    assert torch.equal(
        one(shape, rotation=0.4, x=37.0, y=29.0), still.roll((-3, 5), dims=(0, 1))
    )  # x goes right, y goes down


def test_edges_are_smooth_and_grey_levels_are_sixteenths():
    image = one("ellipse", rotation=0.5)
    level = image * 16
    assert torch.equal(level, level.round())
    assert len(image.unique()) > 10


@pytest.mark.parametrize(("shape", "period"), [("square", 4), ("ellipse", 2), ("heart", 1)])
def test_a_shape_repeats_itself_after_a_part_of_a_turn(shape, period):
    half = rotated_difference(shape, 2 * math.pi / (2 * period))
    whole_period = rotated_difference(shape, 2 * math.pi / period)
    assert whole_period < 2.0  # pixels' rounding at the edge
    assert half > 50


def rotated_difference(shape, by):
    return float((one(shape, rotation=0.2) - one(shape, rotation=0.2 + by)).abs().sum())


def test_the_heart_points_down_and_turns_clockwise():
    upright, turned = one("heart"), one("heart", rotation=math.pi / 2)
    assert float(upright[:32].sum()) > 1.2 * float(upright[32:].sum())
    assert float(turned[:, 32:].sum()) > 1.2 * float(turned[:, :32].sum())
    torch.testing.assert_close(turned, upright.rot90(-1))


def test_every_combination_is_there_once_and_drawn_as_its_factors_say():
    counts = {"num_scales": 2, "num_rotations": 3, "num_x": 4, "num_y": 2}
    data = rendered_shapes(size=16, **counts)
    every = {k: torch.cat([whole(data.split(p))[k] for p in PARTS]) for k in ("x", "y", "factors")}
    assert len(every["x"]) == 3 * 2 * 3 * 4 * 2
    assert len(every["factors"].unique(dim=0)) == len(every["x"])
    assert [len(column.unique()) for column in every["factors"].T] == [3, 2, 3, 4, 2]
    assert torch.equal(every["factors"][:, 0].long(), every["y"])
    for x, factors in list(zip(every["x"], every["factors"], strict=True))[::17]:
        name = list(INSIDE)[int(factors[0])]
        assert torch.equal(x, render(name, *factors[1:].unsqueeze(-1), size=16)[0])
    radius = float(every["factors"][:, 1].max()) * 8
    places = every["factors"][:, 3:]
    assert (float(places.min()), float(places.max())) == (radius, 16 - radius)  # all are whole
    assert len(every["x"].unique(dim=0)) == len(every["x"])  # the pixels tell the factors


def test_factors_are_independent_and_a_quarter_turn_is_told_by_the_pixels():
    """Also of small images, on which ``benchmarks/disentanglement.py`` trains."""
    data = rendered_shapes(size=16)
    x, factors = (
        torch.cat([whole(data.split(p))[name] for p in PARTS]) for name in ("x", "factors")
    )
    assert len(x.unique(dim=0)) == len(x)
    found = normalized_information(factors.double().numpy(), factors.double().numpy())
    np.testing.assert_allclose(found, np.eye(5), atol=1e-9)


def test_the_catalog_set_names_its_factors_and_is_the_same_every_time():
    data, again = load_data("shapes"), load_data("shapes")
    assert sizes(data) == [4916, 614, 614]
    assert data.info.columns == {"factors": FACTORS}
    assert data.info.categorical == ("shape",)
    assert (data.info.num_classes, data.info.levels) == (3, 17)
    for part in PARTS:
        ours, theirs = data.split(part).tensors, again.split(part).tensors
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)
    other = rendered_shapes(seed=1)
    assert not torch.equal(other.test.tensors["factors"], data.test.tensors["factors"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_x": 0}, "none of: x"),
        ({"shapes": ()}, "none of: shapes"),
        ({"size": 4}, "at least 8 pixels"),
        ({"turn": 0.0}, "part of a full turn"),
        ({"turn": 1.5}, "part of a full turn"),
    ],
)
def test_what_cannot_be_rendered_is_told(arguments, message):
    with pytest.raises(PplError, match=message):
        rendered_shapes(**arguments)


def test_an_unknown_shape_is_told():
    with pytest.raises(UnknownNameError, match="Did you mean 'heart'"):
        rendered_shapes(shapes=["haert"])
