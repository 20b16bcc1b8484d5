"""Doodles that the package draws itself: houses, suns, fish, ... of random proportions.

Each class is a recipe for lines of points in a square of side 2, y down; every drawing is turned,
stretched and shaken a little, and simplified as QuickDraw's are.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from inference.data.sketches.strokes import Points, Strokes, ramer_douglas_peucker, strokes_of

Lines = list[Points]
Random = np.random.RandomState


def _line(*points: tuple[float, float]) -> Points:
    return np.array(points, dtype=np.float64)


def _arc(
    centre: tuple[float, float],
    radii: tuple[float, float],
    start: float = 0.0,
    end: float = 1.0,
    num: int = 16,
) -> Points:
    """Part of an ellipse, from one share of a turn to another."""
    angles = 2 * np.pi * np.linspace(start, end, num)
    return np.asarray(centre) + np.column_stack([np.cos(angles), np.sin(angles)]) * radii


def house(random: Random) -> Lines:
    """Walls, a roof, a door."""
    top, side = random.uniform(-0.3, 0.1), random.uniform(0.6, 0.9)
    door = random.uniform(-0.4, 0.2)
    walls = _line((-side, top), (-side, 0.9), (side, 0.9), (side, top), (-side, top))
    roof = _line((-side - 0.1, top), (0, random.uniform(-1, -0.6)), (side + 0.1, top))
    return [walls, roof, _line((door, 0.9), (door, 0.4), (door + 0.3, 0.4), (door + 0.3, 0.9))]


def sun(random: Random) -> Lines:
    """A disc with rays."""
    radius, rays = random.uniform(0.35, 0.5), random.randint(6, 10)
    turns = random.uniform(0, 1) + np.arange(rays) / rays
    lines = [_arc((0, 0), (radius, radius), 0.75, 1.75, 14)]
    for angle in 2 * np.pi * turns:
        way = np.array([np.cos(angle), np.sin(angle)])
        lines.append(np.stack([way * (radius + 0.12), way * random.uniform(0.8, 1.0)]))
    return lines


def fish(random: Random) -> Lines:
    """A body, a tail, an eye."""
    height = random.uniform(0.3, 0.55)
    body = np.concatenate(
        [_arc((-0.2, 0), (0.7, height), 0.03, 0.5, 9), _arc((-0.2, 0), (0.7, height), 0.5, 0.97, 9)]
    )
    tail = random.uniform(0.25, 0.45)
    return [
        body,
        _line((0.48, 0.08), (0.95, tail), (0.8, 0), (0.95, -tail), (0.48, -0.08)),
        _arc((-0.55, -0.1), (0.06, 0.06), num=6),
    ]


def face(random: Random) -> Lines:
    """A head, two eyes, a mouth."""
    smile = random.uniform(-0.15, 0.35)
    across = np.linspace(-0.4, 0.4, 7)
    mouth = np.column_stack([across, 0.4 + smile * (1 - (across / 0.4) ** 2)])
    head = _arc((0, 0), (random.uniform(0.7, 0.95), 0.9), 0.75, 1.75, 18)
    eyes = [_arc((side, -0.25), (0.1, random.uniform(0.08, 0.16)), num=7) for side in (-0.35, 0.35)]
    return [head, *eyes, mouth]


def boat(random: Random) -> Lines:
    """A hull, a mast, a sail."""
    deck, bow = random.uniform(0.25, 0.4), random.uniform(0.4, 0.6)
    top = random.uniform(-1, -0.7)
    hull = _line((-0.9, deck), (-bow, 0.8), (bow, 0.8), (0.9, deck), (-0.9, deck))
    return [
        hull,
        _line((0, deck), (0, top)),
        _line((0, top), (0.65, deck - 0.15), (0, deck - 0.15)),
    ]


def flower(random: Random) -> Lines:
    """Petals in one line, a stem, a leaf."""
    petals, phase = random.randint(5, 8), random.uniform(0, 2 * np.pi)
    angles = np.linspace(0, 2 * np.pi, 6 * petals + 1)
    reach = 0.38 + 0.16 * np.cos(petals * angles + phase)
    blossom = np.column_stack([np.cos(angles), np.sin(angles)]) * reach[:, None] + (0, -0.45)
    low = random.uniform(0.3, 0.6)
    leaf = _line((0, low), (0.35, low - 0.25), (0.3, low), (0, low + 0.05))
    return [blossom, _line((0, 0.05), (random.uniform(-0.1, 0.1), 0.95)), leaf]


def star(random: Random) -> Lines:
    """Five points in one line, as it is drawn without lifting the pen."""
    angles = 2 * np.pi * (np.arange(6) * 2 / 5) - np.pi / 2
    return [np.column_stack([np.cos(angles), np.sin(angles)]) * random.uniform(0.8, 1.0)]


def tree(random: Random) -> Lines:
    """A crown of lumps and a trunk."""
    lumps = random.randint(5, 8)
    angles = np.linspace(0, 2 * np.pi, 5 * lumps + 1)
    reach = 0.55 + 0.1 * np.abs(np.sin(lumps * angles / 2))
    crown = np.column_stack([np.sin(angles), np.cos(angles)]) * reach[:, None] + (0, -0.35)
    wide = random.uniform(0.08, 0.16)
    return [crown, _line((-wide, 0.25), (-wide, 0.95)), _line((wide, 0.25), (wide, 0.95))]


RECIPES: dict[str, Callable[[Random], Lines]] = {
    "boat": boat,
    "face": face,
    "fish": fish,
    "flower": flower,
    "house": house,
    "star": star,
    "sun": sun,
    "tree": tree,
}
"""What the package can draw, by class."""


def doodle(name: str, random: Random) -> Strokes:
    """A drawing of a class, in stroke-3; about 100 units wide."""
    angle = random.normal(0, 0.08)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shape = turn * random.uniform(0.8, 1.2, size=2)
    lines = RECIPES[name](random)
    shaken = [50 * (line @ shape.T + random.normal(0, 0.012, line.shape)) for line in lines]
    return strokes_of([ramer_douglas_peucker(line, 1.0) for line in shaken])


def doodles(num_a_class: int = 300, seed: int = 0) -> tuple[list[Strokes], list[str]]:
    """Drawings and their classes, in turn; always the same for a seed."""
    random = np.random.RandomState(seed)
    names = [name for _ in range(num_a_class) for name in RECIPES]
    return [doodle(name, random) for name in names], names
