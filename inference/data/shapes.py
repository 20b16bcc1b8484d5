"""Rendered shapes: images whose factors (shape, scale, rotation, x, y) are known.

A small relative of dSprites, drawn here instead of downloaded: one white shape on black for every
combination of the values of the five factors. A pixel's grey is the share of it that the shape
covers, counted on a finer grid, so that edges are smooth and every factor moves the pixels.

Shapes: N images, S side of an image in pixels, A points a pixel's side is counted on.

References:
    Matthey, Higgins, Hassabis, Lerchner: dSprites, 2017,
    https://github.com/google-deepmind/dsprites-dataset.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from inference.data.dataset import DataSet, from_tensors
from ppl_models.errors import PplError, UnknownNameError

FACTORS = ("shape", "scale", "rotation", "x", "y")
"""Columns of the field ``factors``."""
FINENESS = 4
"""A: a pixel is counted on A × A points."""


def _in_square(x: Tensor, y: Tensor) -> Tensor:
    return torch.maximum(x.abs(), y.abs()) <= 1 / math.sqrt(2)


def _in_ellipse(x: Tensor, y: Tensor) -> Tensor:
    return x**2 + 4 * y**2 <= 1


def _in_heart(x: Tensor, y: Tensor) -> Tensor:
    x, y = 1.33 * x, 0.15 - 1.33 * y  # the lobes at the top, all of it within radius 1
    return (x**2 + y**2 - 1) ** 3 <= x**2 * y**3


INSIDE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "square": _in_square,
    "ellipse": _in_ellipse,
    "heart": _in_heart,
}
"""Whether points (x to the right, y down) are in a shape of radius 1 about the origin."""


def render(
    shape: str, scale: Tensor, rotation: Tensor, x: Tensor, y: Tensor, size: int = 32
) -> Tensor:
    """Images of one shape.

    Args:
        shape: one of ``INSIDE``.
        scale: the shape's radius as a share of half the image, (N,).
        rotation: in radians, clockwise, (N,).
        x: of the centre, in pixels from the left edge, (N,).
        y: of the centre, in pixels from the upper edge, (N,).
        size: S.

    Returns:
        (N, 1, S, S) in [0, 1], multiples of 1/A².

    Raises:
        UnknownNameError: another shape.
    """
    if shape not in INSIDE:
        raise UnknownNameError("shape", shape, INSIDE)
    # A box of so many pixels a side holds all of a shape that is within the image.
    side = min(size, 2 * math.ceil(float(scale.max()) * size / 2) + 2)
    rows, columns = (_box(centre, side, size) for centre in (y, x))  # (N, side) each
    across = (_points(columns) - x.unsqueeze(-1)).unsqueeze(-2)  # (N, 1, side·A)
    down = (_points(rows) - y.unsqueeze(-1)).unsqueeze(-1)  # (N, side·A, 1)
    scale, rotation = scale.reshape(-1, 1, 1), rotation.reshape(-1, 1, 1)
    cos, sin = (f(rotation) / (scale * size / 2) for f in (torch.cos, torch.sin))
    inside = INSIDE[shape](cos * across + sin * down, cos * down - sin * across)
    images = torch.zeros(len(x), size, size)
    number = torch.arange(len(x)).reshape(-1, 1, 1)
    boxes = torch.nn.functional.avg_pool2d(inside.float(), FINENESS)
    images[number, rows.unsqueeze(-1), columns.unsqueeze(-2)] = boxes
    return images.unsqueeze(1)


def _box(centre: Tensor, side: int, size: int) -> Tensor:
    """The pixels of a box about a centre (N,), moved into the image, (N, side)."""
    first = (centre - side / 2).round().clamp(0, size - side)
    return first.long().unsqueeze(-1) + torch.arange(side)


def _points(pixels: Tensor) -> Tensor:
    """Where the points of pixels (N, side) lie, (N, side·A)."""
    return (pixels.unsqueeze(-1) + (torch.arange(FINENESS) + 0.5) / FINENESS).flatten(1)


def rendered_shapes(
    *,
    size: int = 32,
    shapes: Sequence[str] = ("square", "ellipse", "heart"),
    num_scales: int = 4,
    num_rotations: int = 8,
    num_x: int = 8,
    num_y: int = 8,
    turn: float = 0.25,
    seed: int = 0,
) -> DataSet:
    """Every combination of shape, scale, rotation and place, as a data set.

    Its batches have ``x`` (B, 1, S, S), the labels ``y`` (B,), which number the shapes, and
    ``factors`` (B, 5): shape's number, scale (radius as a share of half the image), rotation
    (radians), x and y of the centre (pixels from the upper left corner).

    Args:
        size: S, pixels.
        shapes: names; ``INSIDE`` lists them.
        num_scales: sizes, from 0.25 to 0.5 of half the image.
        num_rotations: angles, equally spaced.
        num_x: places from left to right at which every shape is whole.
        num_y: places from top to bottom.
        turn: part of a full turn that the angles divide. A square looks the same after 1/4, an
            ellipse after 1/2: up to 1/4 every rotation is another image, beyond it the pixels do
            not tell the factor.
        seed: of the split into train (80 %), valid and test (10 % each).

    Raises:
        PplError: no values of a factor, or an image too small to hold the shapes.
    """
    counts = {"scales": num_scales, "rotations": num_rotations, "x": num_x, "y": num_y}
    _check(size, shapes, counts, turn)
    scales = torch.linspace(0.25, 0.5, num_scales)
    margin = float(scales[-1]) * size / 2
    rotations = torch.arange(num_rotations) * (2 * math.pi * turn / num_rotations)
    places = [torch.linspace(margin, size - margin, num) for num in (num_x, num_y)]
    rest = torch.cartesian_prod(scales, rotations, *places)  # (N / number of shapes, 4)
    images = [torch.cat([_render_rows(s, p, size) for p in rest.split(256)]) for s in shapes]
    number = torch.arange(len(shapes)).repeat_interleave(len(rest))
    factors = torch.cat([number.unsqueeze(-1).float(), rest.repeat(len(shapes), 1)], -1)
    fields = {"x": torch.cat(images), "y": number, "factors": factors}
    data = from_tensors(fields, name="shapes", seed=seed, levels=FINENESS**2 + 1)
    summary = f"{len(factors):,} rendered shapes, {size}×{size}, of known factors"
    info = replace(
        data.info, summary=summary, columns={"factors": FACTORS}, categorical=FACTORS[:1]
    )
    return replace(data, info=info)


def _render_rows(shape: str, values: Tensor, size: int) -> Tensor:
    scale, rotation, x, y = values.unbind(-1)
    return render(shape, scale, rotation, x, y, size)


def _check(size: int, shapes: Sequence[str], counts: dict[str, int], turn: float) -> None:
    empty = [name for name, count in {**counts, "shapes": len(shapes)}.items() if count < 1]
    if empty:
        raise PplError(f"rendered shapes need at least one value each; none of: {', '.join(empty)}")
    if size < 8:
        raise PplError(f"size must be at least 8 pixels for a shape to be seen, got {size}")
    if not 0 < turn <= 1:
        raise PplError(f"turn is a part of a full turn, above 0 and at most 1; got {turn:g}")
