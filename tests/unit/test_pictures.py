"""Pictures: the layout of their pixels, and that matplotlib can draw them."""

from __future__ import annotations

import io
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from inference.plotting import (
    image_grid,
    latent_scatter,
    learning_curves,
    mode_search,
    principal_plane,
    rate_sites,
    reconstruction_grid,
    side_by_side,
    site_rates,
    tile,
)
from inference.report import format_number, png, to_images


def flat_images(*values: float, size: int = 2, channels: int = 1) -> np.ndarray:
    """One image of one grey value for each value: (N, C, size, size)."""
    return np.ones((1, channels, size, size)) * np.reshape(values, (-1, 1, 1, 1))


def drawn(figure: Figure) -> np.ndarray:
    """The pixels that a picture of images shows."""
    return np.asarray(figure.axes[0].images[0].get_array())


def cells(figure: Figure, columns: int, size: int = 2) -> list[list[float]]:
    """The grey value of every cell of a grid of flat images, row by row."""
    sheet = drawn(figure)
    rows = (sheet.shape[0] - 1) // (size + 1)
    step = size + 1
    return [[float(sheet[1 + r * step, 1 + c * step]) for c in range(columns)] for r in range(rows)]


def assert_draws(figure: Figure) -> None:
    assert isinstance(figure, Figure)
    content = png(figure)
    assert content.startswith(b"\x89PNG\r\n\x1a\n")
    with Image.open(io.BytesIO(content)) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 100
    assert pixels.std() > 1  # not an empty page


def test_tile_puts_images_row_by_row_with_white_between():
    images = np.arange(3 * 2 * 3, dtype=float).reshape(3, 1, 2, 3) / 20
    expected = np.ones((7, 9))
    expected[1:3, 1:4] = images[0, 0]
    expected[1:3, 5:8] = images[1, 0]
    expected[4:6, 1:4] = images[2, 0]
    np.testing.assert_array_equal(tile(images, columns=2), expected)


def test_tile_moves_colour_last():
    image = np.zeros((1, 3, 2, 2))
    image[0, 1, 0, 1] = 0.7
    sheet = tile(image, columns=1, pad=0)
    assert sheet.shape == (2, 2, 3)
    assert sheet[0, 1].tolist() == [0, 0.7, 0]
    assert sheet.sum() == pytest.approx(0.7)


def test_tile_clips_and_pads_as_told():
    sheet = tile(flat_images(-3.0, 4.0), columns=2, pad=2)
    assert sheet.shape == (6, 10)
    assert sheet[2, 2] == 0
    assert sheet[2, 6] == 1


@pytest.mark.parametrize(("number", "columns"), [(1, 1), (4, 2), (5, 3), (10, 4)])
def test_a_grid_is_square_if_not_told(number, columns):
    images = flat_images(*np.linspace(0, 0.9, number))
    rows = math.ceil(number / columns)
    assert drawn(image_grid(images)).shape == (rows * 3 + 1, columns * 3 + 1)


def test_a_grid_shows_the_images_in_order_under_its_title():
    figure = image_grid(flat_images(0.1, 0.2, 0.3, 0.4), "Four", columns=2)
    assert cells(figure, 2) == [[0.1, 0.2], [0.3, 0.4]]
    assert figure.axes[0].get_title() == "Four"
    assert figure.axes[0].images[0].get_clim() == (0, 1)  # not stretched to the data
    assert_draws(figure)


def test_a_colour_grid_draws():
    figure = image_grid(flat_images(0.1, 0.9, channels=3))
    assert drawn(figure).shape == (4, 7, 3)
    assert_draws(figure)


def test_each_reconstruction_is_below_its_original():
    figure = reconstruction_grid(
        flat_images(0.1, 0.2, 0.3, 0.4), flat_images(0.5, 0.6, 0.7, 0.8), "Pairs", columns=2
    )
    assert cells(figure, 2) == [[0.1, 0.2], [0.5, 0.6], [0.3, 0.4], [0.7, 0.8]]
    assert_draws(figure)


def test_fewer_pairs_than_columns_make_one_row_of_pairs():
    figure = reconstruction_grid(flat_images(0.1, 0.2), flat_images(0.5, 0.6))
    assert cells(figure, 2) == [[0.1, 0.2], [0.5, 0.6]]


def test_each_reconstruction_is_below_its_original_in_a_short_last_row_too():

    figure = reconstruction_grid(flat_images(0.1, 0.2, 0.3), flat_images(0.5, 0.6, 0.7), columns=2)
    assert cells(figure, 2) == [[0.1, 0.2], [0.5, 0.6], [0.3, 1.0], [0.7, 1.0]]


def history(epochs: int, **more: float) -> list[dict[str, float]]:
    return [
        {"epoch": e, "train_loss": 10.0 / e, "valid_elbo": -9.0 / e, **more}
        for e in range(1, epochs + 1)
    ]


def test_learning_curves_show_the_loss_with_its_sign_turned():
    figure = learning_curves(history(4, valid_rate=2.0, valid_distortion=7.0))
    left = figure.axes[0]
    training, validation = left.get_lines()
    assert training.get_xdata().tolist() == [1, 2, 3, 4]
    assert training.get_ydata().tolist() == [-10 / e for e in range(1, 5)]
    assert validation.get_ydata().tolist() == [-9 / e for e in range(1, 5)]
    assert left.get_ylabel() == "nats per datum"
    distortion, rate = figure.axes[1], figure.axes[2]
    assert distortion.get_lines()[0].get_ydata().tolist() == [7.0] * 4
    assert rate.get_lines()[0].get_ydata().tolist() == [2.0] * 4
    assert "distortion" in distortion.get_ylabel()
    assert "rate" in rate.get_ylabel()
    assert_draws(figure)


def test_learning_curves_without_a_rate_leave_its_place_empty():
    figure = learning_curves(history(1))
    assert len(figure.axes) == 2
    assert not figure.axes[1].axison
    assert figure.axes[1].get_lines() == []
    assert_draws(figure)


def test_principal_plane_finds_the_two_widest_axes_and_their_share():
    rotation, _ = np.linalg.qr(np.random.default_rng(0).normal(size=(4, 4)))
    signs = np.array(
        [[a, b, c, d] for a in (-1, 1) for b in (-1, 1) for c in (-1, 1) for d in (-1, 1)]
    )
    scales = np.array([4.0, 3.0, 2.0, 1.0])  # variances 16, 9, 4, 1
    plane, share = principal_plane(signs * scales @ rotation.T + 5.0)
    assert share == pytest.approx(25 / 30)
    assert plane.shape == (16, 2)
    np.testing.assert_allclose(np.abs(plane), np.tile([4.0, 3.0], (16, 1)), atol=1e-12)


@pytest.mark.parametrize("dim", [1, 2])
def test_principal_plane_leaves_one_and_two_dimensions_as_they_are(dim):
    codes = np.random.default_rng(0).normal(size=(6, dim))
    plane, share = principal_plane(codes)
    assert share == 1.0
    np.testing.assert_array_equal(plane[:, :dim], codes)
    np.testing.assert_array_equal(plane[:, dim:], np.zeros((6, 2 - dim)))


@pytest.mark.parametrize("number", [1, 5])
def test_principal_plane_of_codes_that_are_all_the_same(number):

    plane, share = principal_plane(np.full((number, 3), 0.25))
    assert math.isfinite(share)
    np.testing.assert_array_equal(plane, np.zeros((number, 2)))


def test_latent_scatter_has_a_set_of_points_and_a_name_a_label():
    codes = np.random.default_rng(0).normal(size=(30, 5))
    labels = np.arange(30) % 3
    figure = latent_scatter(codes, labels, "z_1")
    axes = figure.axes[0]
    plane, share = principal_plane(codes)
    shown = [np.asarray(points.get_offsets()) for points in axes.collections]
    assert len(shown) == 3
    for label, points in enumerate(shown):
        np.testing.assert_array_equal(points, plane[labels == label])
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["0", "1", "2"]
    assert "z_1" in axes.get_title()
    assert f"{share:.0%}" in axes.get_title()
    assert_draws(figure)


def test_latent_scatter_without_labels_has_all_points_and_no_legend():
    figure = latent_scatter(np.random.default_rng(0).normal(size=(30, 2)), None)
    axes = figure.axes[0]
    assert [len(points.get_offsets()) for points in axes.collections] == [30]
    assert axes.get_legend() is None
    assert "both axes" in axes.get_title()
    assert_draws(figure)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((5, 4, 6), (5, 1, 4, 6)),
        ((5, 1, 4, 6), (5, 1, 4, 6)),
        ((5, 3, 4, 6), (5, 3, 4, 6)),
        ((5, 2, 4, 6), None),
        ((5, 4), None),
        ((5,), None),
    ],
)
def test_to_images_takes_grey_and_colour_images_alone(shape, expected):
    x = torch.rand(shape, dtype=torch.bfloat16, requires_grad=True)
    images = to_images(x)
    if expected is None:
        assert images is None
    else:
        np.testing.assert_array_equal(images, x.detach().float().numpy().reshape(expected))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (123.456, "123.46"),
        (-123.456, "-123.46"),
        (0.0123456, "0.01235"),
        (-0.5, "-0.5"),
        (0.0, "0"),
        (1.0, "1.00"),
        (float("nan"), "nan"),
        (7, "7"),
        ("train", "train"),
        ({"z": 3.0, "c": 2}, "z: 3.00, c: 2"),
        ({}, "none"),
    ],
)
def test_format_number(value, text):
    assert format_number(value) == text


def test_side_by_side_names_and_clips_the_views():
    views = {"noisy": np.full((1, 4, 6), 1.7), "clean": np.full((1, 4, 6), 0.5)}
    figure = side_by_side(views, "title")
    assert [axes.get_title() for axes in figure.axes] == ["noisy", "clean"]
    shown = [np.asarray(axes.images[0].get_array()) for axes in figure.axes]
    assert [image.shape for image in shown] == [(4, 6), (4, 6)]
    assert shown[0].max() == 1.0
    assert figure.get_suptitle() == "title"
    assert png(figure)


def test_mode_search_shows_likelihood_beside_quality():
    figure = mode_search([1.0, 2.0, 3.0], [5.0, 6.0, 4.0], "PSNR (dB)", {"splitting": 7.0})
    left, right = figure.axes
    assert left.lines[0].get_ydata().tolist() == [1.0, 2.0, 3.0]
    assert right.lines[0].get_ydata().tolist() == [5.0, 6.0, 4.0]
    assert right.get_ylabel() == "PSNR (dB)"
    assert right.get_legend().get_texts()[0].get_text() == "splitting"
    assert mode_search([1.0], [2.0], "quality").axes[1].get_legend() is None


def test_rates_of_sites_are_lines_over_epochs_and_bars_at_one():
    rows = [
        {"epoch": e, "valid_rate": 9.0, "valid_rate_z_1": 2.0 * e, "valid_rate_z_2": -0.02 / e}
        for e in (1, 2, 3)
    ]
    assert rate_sites(rows) == ["z_1", "z_2"]
    assert rate_sites(history(2, valid_rate=2.0)) == []
    figure = site_rates(rows, epoch=2)
    left, right = figure.axes
    first, second, limit = left.get_lines()
    assert first.get_xdata().tolist() == [1, 2, 3]
    assert first.get_ydata().tolist() == [2.0, 4.0, 6.0]
    assert second.get_ydata().tolist() == [1e-3] * 3  # a logarithm's floor
    assert limit.get_ydata()[0] == 0.1
    assert [bar.get_height() for bar in right.patches] == [4.0, -0.01]
    assert [bar.get_facecolor() for bar in right.patches] == [
        tuple(line.get_color()) for line in (first, second)
    ]
    names = {label.get_text(): label.get_color() for label in right.get_xticklabels()}
    assert names["z_1"] != "C3" == names["z_2"]
    assert "after epoch 2, 3.99 in all" in right.get_title()
    assert_draws(figure)


def test_rates_of_many_sites_name_the_collapsed_ones():
    row = {"epoch": 1} | {f"valid_rate_z_{i}": 0.01 if i == 13 else 1.0 for i in range(60)}
    figure = site_rates([row], epoch=1)
    names = [label.get_text() for label in figure.axes[1].get_xticklabels()]
    assert len(names) == 21
    assert "z_13" in names
    assert_draws(figure)
