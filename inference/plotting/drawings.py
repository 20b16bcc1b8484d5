"""Pen drawings as pictures: pixels, SVG, and a GIF of drawings being made.

Drawings come as lists of lines of absolute points; each is fitted into its own square, y down.

Shapes: N drawings, P points.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from inference.plotting.images import tile

Points = NDArray[np.float64]
Lines = Sequence[Points]
SIDE = 96
"""Pixels of a drawing's square."""
FINE = 3
"""Pixels are drawn so many times smaller, and averaged."""
MARGIN = 0.08
"""Of a square, at each side."""
MOST_FRAMES = 80
HOLD = 12
"""Frames for which a finished drawing stands."""


def fitted(lines: Lines, side: float) -> list[Points]:
    """Lines moved and scaled into the middle of a square [0, side]²."""
    points = np.concatenate([*lines, np.zeros((0, 2))])
    if not len(points):
        return []
    low, high = points.min(0), points.max(0)
    scale = (1 - 2 * MARGIN) * side / max(float((high - low).max()), 1e-9)
    return [(line - (low + high) / 2) * scale + side / 2 for line in lines]


def raster(drawings: Sequence[Lines], side: int = SIDE) -> NDArray[np.floating]:
    """Drawings in black on white, (N, 1, side, side) in [0, 1]."""
    sheets = [_ink(fitted(lines, side * FINE), side) for lines in drawings]
    return np.stack(sheets)[:, None] if sheets else np.ones((0, 1, side, side))


def _ink(lines: Lines, side: int) -> NDArray[np.floating]:
    """Lines in fine pixels as a picture of coarse ones."""
    canvas = Image.new("L", (side * FINE, side * FINE), 255)
    pen = ImageDraw.Draw(canvas)
    width = max(FINE, round(side * FINE / 48))
    for line in lines:
        places = [(float(x), float(y)) for x, y in line]
        if len(places) > 1:
            pen.line(places, fill=0, width=width, joint="curve")
        elif places:
            ((x, y),) = places
            pen.ellipse((x - width, y - width, x + width, y + width), fill=0)
    return np.asarray(canvas.reduce(FINE), dtype=np.float32) / 255


def svg_sheet(drawings: Sequence[Lines], columns: int | None = None, side: int = 100) -> str:
    """Drawings in a grid, as SVG; square if ``columns`` is left out. A line is a path."""
    columns = columns or max(1, math.ceil(math.sqrt(len(drawings))))
    rows = math.ceil(len(drawings) / columns)
    parts = []
    for i, lines in enumerate(drawings):
        paths = "".join(f'<path d="{_path(line)}"/>' for line in fitted(lines, side) if len(line))
        place = f"translate({i % columns * side} {i // columns * side})"
        parts.append(f'<g transform="{place}">{paths}</g>')
    width, height = columns * side, rows * side
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" fill="none" stroke="black" stroke-width="{side / 50:g}" '
        f'stroke-linecap="round" stroke-linejoin="round">\n{body}\n</svg>\n'
    )


def _path(line: Points) -> str:
    start, *rest = [f"{x:.2f} {y:.2f}" for x, y in line]
    return f"M{start}" + "".join(f" L{point}" for point in rest or [start])


def being_drawn(drawings: Sequence[Lines], *, seconds: float = 0.06, side: int = SIDE) -> bytes:
    """A GIF of drawings being made, all at once, movement after movement; finished, they stand.

    Args:
        drawings: at most so many that they fit beside each other, in rows.
        seconds: a frame.
        side: pixels of each.

    Returns:
        The file's content.
    """
    ready = [fitted(lines, side * FINE) for lines in drawings]
    longest = max((sum(map(len, lines)) for lines in ready), default=1)
    every = math.ceil(longest / MOST_FRAMES)
    columns = math.ceil(math.sqrt(len(ready)))
    frames = []
    for points in [*range(1, longest, every), longest]:
        images = np.stack([_ink(first_points(lines, points), side) for lines in ready])
        sheet = np.round(tile(images[:, None], columns) * 255).astype(np.uint8)
        frames.append(Image.fromarray(sheet))
    lasting = [round(1000 * seconds)] * len(frames)
    lasting[-1] *= HOLD
    buffer = io.BytesIO()
    options = {"save_all": True, "append_images": frames[1:], "duration": lasting, "loop": 0}
    frames[0].save(buffer, format="GIF", **options)
    return buffer.getvalue()


def first_points(lines: Lines, count: int) -> list[Points]:
    """The lines as they are when the pen has come to so many points."""
    found = []
    for line in lines:
        if count <= 0:
            break
        found.append(line[:count])
        count -= len(line)
    return found
