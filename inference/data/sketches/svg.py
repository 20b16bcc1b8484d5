"""Lines of points from SVG files; curves are followed by short straight lines.

Paths with all their commands, polylines, polygons, lines, circles, ellipses and rectangles, within
groups, under transforms. What is no outline (text, images, styles, clips) is passed over.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from inference.data.sketches.strokes import Points
from ppl_models.errors import PplError

PIECES = 12
"""Straight lines that a curve becomes."""
NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
ARGUMENTS = {"M": 2, "L": 2, "H": 1, "V": 1, "C": 6, "S": 4, "Q": 4, "T": 2, "A": 7, "Z": 0}
"""How many numbers a command of a path takes."""
PASSED_OVER = ("defs", "clipPath", "mask", "symbol", "marker", "pattern")
Matrix = NDArray[np.float64]


def read_svg(path: Path) -> list[Points]:
    """The outlines of a file, in its order; y down.

    Raises:
        PplError: no SVG, or a path that cannot be read.
    """
    try:
        root = ElementTree.fromstring(path.read_bytes())
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise PplError(f"cannot read {path}: it is no SVG ({error})") from error
    if _name(root) != "svg":
        raise PplError(f"cannot read {path}: its root is <{_name(root)}>, not <svg>")
    try:
        return [line for line in _lines(root, np.eye(3)) if len(line)]
    except (ValueError, IndexError, KeyError, RecursionError) as error:
        raise PplError(f"cannot read {path}: a shape in it is malformed ({error})") from error


def _name(element: ElementTree.Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _lines(element: ElementTree.Element, outer: Matrix) -> Iterator[Points]:
    if _name(element) in PASSED_OVER:
        return
    matrix = outer @ _transform(element.get("transform", ""))
    for line in _shape(element):
        yield line @ matrix[:2, :2].T + matrix[:2, 2]
    for child in element:
        yield from _lines(child, matrix)


def _transform(text: str) -> Matrix:
    """Of an attribute such as ``translate(3, 4) rotate(45)``."""
    found = np.eye(3)
    for name, inside in re.findall(r"(\w+)\s*\(([^)]*)\)", text):
        found = found @ _one_transform(name, _numbers(inside))
    return found


def _one_transform(name: str, values: list[float]) -> Matrix:
    made = np.eye(3)
    if name == "matrix":
        made[:2] = np.reshape(values, (3, 2)).T
    elif name == "translate":
        made[:2, 2] = (*values, 0.0)[:2]
    elif name == "scale":
        made[0, 0], made[1, 1] = values[0], values[-1]
    elif name == "rotate":
        angle, centre = np.radians(values[0]), np.array([*values[1:3], 0.0, 0.0][:2])
        made[:2, :2] = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
        made[:2, 2] = centre - made[:2, :2] @ centre
    elif name in ("skewX", "skewY"):
        made[(0, 1) if name == "skewX" else (1, 0)] = np.tan(np.radians(values[0]))
    else:
        raise ValueError(f"unknown transform {name!r}")
    return made


def _numbers(text: str) -> list[float]:
    return [float(number) for number in NUMBER.findall(text)]


def _shape(element: ElementTree.Element) -> list[Points]:
    """The lines of an element, without its children."""
    name = _name(element)

    def of(*names: str) -> list[float]:
        return [(_numbers(element.get(n, "0")) or [0.0])[0] for n in names]

    if name == "path":
        return path_lines(element.get("d", ""))
    if name in ("polyline", "polygon"):
        points = np.reshape(_numbers(element.get("points", "")), (-1, 2))
        return [np.concatenate([points, points[:1]]) if name == "polygon" else points]
    if name == "line":
        return [np.reshape(of("x1", "y1", "x2", "y2"), (2, 2))]
    if name == "rect":
        x, y, w, h = of("x", "y", "width", "height")
        return [np.array([[x, y], [x + w, y], [x + w, y + h], [x, y + h], [x, y]])]
    if name in ("circle", "ellipse"):
        radii = of("r", "r") if name == "circle" else of("rx", "ry")
        angles = np.linspace(0, 2 * np.pi, 2 * PIECES + 1)
        return [np.column_stack([np.cos(angles), np.sin(angles)]) * radii + of("cx", "cy")]
    return []


def path_lines(text: str) -> list[Points]:
    """The lines of a path's commands, such as ``M 0 0 L 10 0 c 1 2 3 4 5 6 z``."""
    walk = _Walk()
    for letter, inside in re.findall(r"([MmLlHhVvCcSsQqTtAaZz])([^MmLlHhVvCcSsQqTtAaZz]*)", text):
        count = ARGUMENTS[letter.upper()]
        values = _arc_numbers(inside) if letter in "Aa" else _numbers(inside)
        if count and len(values) % count:
            raise ValueError(f"command {letter!r} takes {count} numbers, got {len(values)}")
        for i, start in enumerate(range(0, max(len(values), 1), max(count, 1))):
            repeated = {"M": "L", "m": "l"}.get(letter, letter) if i else letter
            walk.go(repeated, values[start : start + count])
    return walk.lines


def _arc_numbers(text: str) -> list[float]:
    """Of arcs, whose two flags may stand without anything between them: ``a1 1 0 01.5 2``."""
    single = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"
    pattern = rf"({single})[\s,]*" * 3 + r"([01])[\s,]*([01])[\s,]*" + rf"({single})[\s,]*" * 2
    return [float(part) for found in re.findall(pattern, text) for part in found]


class _Walk:
    """Where a path has come to, and the lines so far."""

    def __init__(self) -> None:
        self.lines: list[Points] = []
        self.at = np.zeros(2)
        self.start = np.zeros(2)
        self.handle: tuple[str, Points] | None = None

    def go(self, letter: str, values: list[float]) -> None:
        """Follow a command."""
        kind, base = letter.upper(), self.at if letter.islower() else np.zeros(2)
        handle, self.handle = self.handle, None
        if kind == "Z":
            self._draw(self.start[None])
        elif kind == "H":
            self._draw(np.array([[base[0] + values[0], self.at[1]]]))
        elif kind == "V":
            self._draw(np.array([[self.at[0], base[1] + values[0]]]))
        elif kind == "A":
            self._draw(_arc(self.at, base + values[5:], values))
        else:
            points = np.reshape(values, (-1, 2)) + base
            if kind == "M":
                self.at = self.start = points[0]
                self.lines.append(points)
            elif kind == "L":
                self._draw(points)
            else:
                self._curve(kind, points, handle)

    def _curve(self, kind: str, points: Points, handle: tuple[str, Points] | None) -> None:
        """A Bézier curve; S and T mirror the last curve's handle of the same order."""
        order = "C" if kind in "CS" else "Q"
        if kind in "ST":
            mirrored = 2 * self.at - handle[1] if handle and handle[0] == order else self.at
            points = np.concatenate([mirrored[None], points])
        corners = np.concatenate([self.at[None], points])
        self._draw(_bezier(corners))
        self.handle = (order, corners[-2])

    def _draw(self, points: Points) -> None:
        if not self.lines or not np.array_equal(self.lines[-1][-1], self.at):
            self.lines.append(self.at[None])
        self.lines[-1] = np.concatenate([self.lines[-1], points])
        self.at = points[-1]


def _bezier(corners: Points) -> Points:
    """A curve without its first point, by de Casteljau's construction."""
    t = np.linspace(0, 1, PIECES + 1)[1:, None, None]
    level = np.broadcast_to(corners, (PIECES, *corners.shape))
    while level.shape[1] > 1:
        level = (1 - t) * level[:, :-1] + t * level[:, 1:]
    return level[:, 0]


def _arc(start: Points, end: Points, values: list[float]) -> Points:
    """An elliptic arc without its first point; W3C, SVG 1.1, appendix F.6."""
    radii, turn = np.abs(values[:2]), np.radians(values[2])
    large, sweep = values[3] > 0, values[4] > 0
    if radii.min() == 0 or np.array_equal(start, end):
        return end[None]
    axes = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]])
    half = axes @ (start - end) / 2 / radii  # on the unit circle's scale
    length = float(half @ half)
    if length > 1:  # radii too small to reach: the least that do
        radii, half, length = radii * length**0.5, half / length**0.5, 1.0
    away = np.sqrt(max(0.0, 1 / length - 1)) * (-1 if large == sweep else 1)
    centre = away * np.array([half[1], -half[0]])
    first, last = (np.arctan2(*(v - centre)[::-1]) for v in (half, -half))
    span = (last - first) % (2 * np.pi) if sweep else -((first - last) % (2 * np.pi))
    angles = first + span * np.linspace(0, 1, PIECES + 1)[1:]
    circle = np.column_stack([np.cos(angles), np.sin(angles)]) + centre
    return np.concatenate([((circle * radii) @ axes + (start + end) / 2)[:-1], end[None]])
