"""Pictures of images: grids of samples, originals beside reconstructions."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

Array = NDArray[np.floating]


def tile(images: Array, columns: int, pad: int = 1) -> Array:
    """Images side by side.

    Args:
        images: (N, C, H, W) in [0, 1], C one or three.
        columns: images a row.
        pad: white pixels between them.

    Returns:
        (H', W') for grey images, (H', W', 3) for colour.
    """
    n, c, h, w = images.shape
    rows = math.ceil(n / columns)
    sheet = np.ones((rows * (h + pad) + pad, columns * (w + pad) + pad, c))
    for i, image in enumerate(images):
        top, left = pad + (i // columns) * (h + pad), pad + (i % columns) * (w + pad)
        sheet[top : top + h, left : left + w] = np.moveaxis(image, 0, -1)
    return np.clip(sheet[..., 0] if c == 1 else sheet, 0.0, 1.0)


def image_grid(images: Array, title: str = "", columns: int | None = None) -> Figure:
    """A grid of images, square if ``columns`` is left out.

    Args:
        images: (N, C, H, W) in [0, 1].
        title: above it.
        columns: images a row.
    """
    columns = columns or math.ceil(math.sqrt(len(images)))
    return _show(tile(images, columns), title)


def reconstruction_grid(
    originals: Array, reconstructions: Array, title: str = "", columns: int = 10
) -> Figure:
    """Originals, and below each its reconstruction.

    Args:
        originals: (N, C, H, W) in [0, 1].
        reconstructions: the same shape.
        title: above it.
        columns: pairs a row.
    """
    columns = min(columns, len(originals))
    blank = np.ones((-len(originals) % columns, *originals.shape[1:]))
    originals, reconstructions = (np.concatenate([a, blank]) for a in (originals, reconstructions))
    pairs = []
    for start in range(0, len(originals), columns):
        pairs += [originals[start : start + columns], reconstructions[start : start + columns]]
    return _show(tile(np.concatenate(pairs), columns), title)


def side_by_side(views: Mapping[str, Array], title: str = "") -> Figure:
    """Images of one size beside each other, with their names.

    Args:
        views: (C, H, W) in [0, 1] by name; what lies outside is clipped.
        title: above them.
    """
    height, width = next(iter(views.values())).shape[-2:]
    lines = 1 + max(name.count("\n") for name in views) + (1.5 if title else 0.5)
    figure = Figure(figsize=(4 * len(views), 4 * height / width + lines / 4), layout="constrained")
    places = figure.subplots(1, len(views), squeeze=False)[0]
    for axes, (name, image) in zip(places, views.items(), strict=True):
        axes.imshow(tile(image[None], 1, pad=0), cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        axes.set_title(name, fontsize=10)
    if title:
        figure.suptitle(title, fontsize=11)
    return figure


def _show(sheet: Array, title: str) -> Figure:
    height, width = sheet.shape[:2]
    figure = Figure(figsize=(6, 6 * height / width + (0.35 if title else 0)), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    if title:
        axes.set_title(title, fontsize=10)
    return figure
