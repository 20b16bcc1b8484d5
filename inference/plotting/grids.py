"""Pictures of images in rows and columns that have names, still and moving.

Shapes: R rows, T columns or frames, C H W image.
"""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from inference.plotting.images import tile

Array = NDArray[np.floating]
CELL = 0.62
"""Inches of an image's longer side."""


Grid = tuple[Array, Sequence[str], Sequence[str], str]
"""Images (R, T, C, H, W) in [0, 1], names of rows (R or none), of columns, and a title."""


def labelled_grid(
    images: Array,
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    title: str = "",
    *,
    row_title: str = "",
    column_title: str = "",
) -> Figure:
    """Images in rows and columns, each with its name.

    Args:
        images: (R, T, C, H, W) in [0, 1]; what lies outside is clipped.
        rows: names, R or none.
        columns: names, T or none.
        title: above it.
        row_title: what the rows are, at the left.
        column_title: what the columns are, below.
    """
    figure = labelled_grids([(images, rows, columns, title)])
    figure.axes[0].set_xlabel(column_title, fontsize=9)
    figure.axes[0].set_ylabel(row_title, fontsize=9)
    return figure


def labelled_grids(grids: Sequence[Grid]) -> Figure:
    """Several such grids beside each other.

    Args:
        grids: images, names of rows and columns, title of each.
    """
    sizes = [grid_size(*grid) for grid in grids]
    width, height = sum(w for w, _ in sizes), max(h for _, h in sizes)
    figure = Figure(figsize=(max(width, 3.2), height), layout="constrained")
    widths = [w for w, _ in sizes]
    places = figure.subplots(1, len(grids), squeeze=False, width_ratios=widths)[0]
    for axes, (images, rows, columns, title) in zip(places, grids, strict=True):
        draw_grid(axes, images, rows, columns, title)
    return figure


def draw_grid(
    axes: Axes, images: Array, rows: Sequence[str], columns: Sequence[str], title: str
) -> None:
    """A labelled grid into axes; arguments as in :func:`labelled_grid`."""
    num_columns, side = images.shape[1], images.shape[-2:]
    sheet = tile(images.reshape(-1, *images.shape[2:]), num_columns)
    axes.imshow(sheet, cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xticks(_middles(num_columns, side[1]) if columns else [], columns, fontsize=8)
    axes.set_yticks(_middles(len(images), side[0]) if rows else [], rows, fontsize=8)
    axes.tick_params(length=0, labeltop=True, labelbottom=False)
    axes.set(frame_on=False)
    axes.set_title(title, fontsize=10)


def grid_size(
    images: Array, rows: Sequence[str], columns: Sequence[str], title: str
) -> tuple[float, float]:
    """Inches of a grid, wide and high, with its names."""
    num_rows, num_columns, _, height, width = images.shape
    inch = min(CELL, 9 / num_columns) / max(height, width)  # of a pixel
    lines = 1 + title.count("\n") + max((1 + name.count("\n") for name in columns), default=0)
    beside = max((len(part) for name in rows for part in name.split("\n")), default=0)
    across = num_columns * (width + 1) * inch + 0.4 + 0.075 * beside
    return across, num_rows * (height + 1) * inch + 0.3 + 0.16 * lines


def _middles(number: int, side: int) -> Array:
    """Where the images of a tiled sheet have their middle, pixels."""
    return np.arange(number) * (side + 1) + 1 + (side - 1) / 2


def animated(frames: Array, *, seconds: float = 0.12, width: int = 480) -> bytes:
    """A GIF that goes through frames and back, without end.

    Args:
        frames: (T, N, C, H, W) in [0, 1]: T sheets of N images beside each other, in rows if they
            are many.
        seconds: a frame.
        width: least width in pixels; every pixel becomes a square of whole pixels.

    Returns:
        The file's content.
    """
    columns = min(frames.shape[1], 10)
    sheets = [np.round(tile(frame, columns) * 255).astype(np.uint8) for frame in frames]
    zoom = max(1, -(-width // sheets[0].shape[1]))
    shown = [Image.fromarray(np.kron(s, _block(zoom, s.ndim))) for s in sheets]
    loop = shown + shown[-2:0:-1]
    buffer = io.BytesIO()
    loop[0].save(
        buffer,
        format="GIF",
        save_all=True,
        append_images=loop[1:],
        duration=round(1000 * seconds),
        loop=0,
    )
    return buffer.getvalue()


def _block(zoom: int, dims: int) -> NDArray[np.uint8]:
    return np.ones((zoom, zoom, 1)[:dims], np.uint8)
