"""Pen strokes: lines of points, offsets with pen lifts (stroke-3), rows with pen states (stroke-5).

A drawing begins at the origin, where the pen goes down. Each movement of stroke-3 is (dx, dy,
lifted): ``lifted`` says whether the pen is up afterwards, so that the next movement draws nothing.
y points down, as on a screen.

Shapes: N movements, T rows, B data, P points.

References:
    Ha, Eck: A Neural Representation of Sketch Drawings, 2018, arXiv:1704.03477, sections 3.1, 4.
    Ramer: An iterative procedure for the polygonal approximation of plane curves, 1972.
    Douglas, Peucker: Algorithms for the reduction of the number of points, 1973.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ppl_models.errors import PplError

Strokes = NDArray[np.float64]
"""(N, 3): dx, dy, lifted."""
Points = NDArray[np.float64]
"""(P, 2)."""


def lines_of(strokes: Strokes) -> list[Points]:
    """The lines that a pen draws, in absolute points; the first begins at the origin."""
    places = np.concatenate([np.zeros((1, 2)), np.cumsum(strokes[:, :2], axis=0)])
    lifts = np.flatnonzero(strokes[:, 2] > 0) + 1  # a new line begins after each
    return [line for line in np.split(places, lifts + 1) if len(line)] if len(lifts) else [places]


def strokes_of(lines: Sequence[Points]) -> Strokes:
    """Lines of absolute points as stroke-3, from where the first of them begins.

    Dots before the first line are left out: there is no movement to say that the pen was lifted.
    """
    kept = [np.asarray(line, dtype=np.float64) for line in lines if len(line)]
    while kept and len(kept[0]) < 2:
        kept = kept[1:]
    if not kept:
        return np.zeros((0, 3))
    lifted = np.concatenate([[*[0.0] * (len(line) - 1), 1.0] for line in kept])
    places = np.concatenate(kept)
    return np.column_stack([np.diff(places, axis=0), lifted[1:]])


def tidied(strokes: Strokes) -> Strokes:
    """Without movements that go nowhere; a lift among them belongs to the movement before."""
    moves = (strokes[:, :2] != 0).any(1)
    places = np.cumsum(moves) - 1  # of the movement that each one now belongs to
    found = strokes[moves].copy()
    lifts = places[(strokes[:, 2] > 0) & (places >= 0)]
    found[lifts, 2] = 1.0
    if len(found):
        found[-1, 2] = 1.0
    return found


def simplified(strokes: Strokes, epsilon: float) -> Strokes:
    """Lines with fewer points, none of the left-out ones farther off than ``epsilon``."""
    return strokes_of([ramer_douglas_peucker(line, epsilon) for line in lines_of(strokes)])


def ramer_douglas_peucker(points: Points, epsilon: float) -> Points:
    """The points of a line that matter: every other lies within ``epsilon`` of what is left.

    Args:
        points: (P, 2).
        epsilon: the largest distance, in the points' unit.
    """
    keep = np.zeros(len(points), dtype=bool)
    keep[[0, -1]] = True
    open_parts = [(0, len(points) - 1)]
    while open_parts:
        start, end = open_parts.pop()
        if end - start < 2:
            continue
        far = _distances(points[start + 1 : end], points[start], points[end])
        place = int(far.argmax())
        if far[place] > epsilon:
            middle = start + 1 + place
            keep[middle] = True
            open_parts += [(start, middle), (middle, end)]
    return points[keep]


def _distances(points: Points, start: Points, end: Points) -> NDArray[np.float64]:
    """Of points from the segment between two others."""
    along = end - start
    length = float(along @ along)
    share = np.clip((points - start) @ along / length, 0, 1) if length > 0 else 0.0
    return np.linalg.norm(points - start - np.multiply.outer(share, along), axis=1)


def stroke5(drawings: Sequence[Strokes], num_rows: int | None = None) -> Tensor:
    """Drawings in stroke-3 as one tensor (B, T, 5) of rows (dx, dy, down, up, end).

    Args:
        drawings: (N, 3) each.
        num_rows: T; one more than the longest drawing when left out.

    Raises:
        PplError: a drawing that does not fit.
    """
    longest = max(map(len, drawings), default=0)
    rows = longest + 1 if num_rows is None else num_rows
    if longest >= rows:
        raise PplError(f"a drawing of {longest} movements does not fit into {rows} rows")
    x = torch.zeros(len(drawings), rows, 5)
    x[..., 4] = 1
    for row, strokes in zip(x, drawings, strict=True):
        moved = torch.as_tensor(np.asarray(strokes), dtype=torch.float32)
        row[: len(moved), :2] = moved[:, :2]
        row[: len(moved), 2] = (moved[:, 2] == 0).float()
        row[: len(moved), 3] = (moved[:, 2] > 0).float()
        row[: len(moved), 4] = 0
    return x


def stroke3(x: Tensor, scale: float = 1.0) -> list[Strokes]:
    """The inverse: drawings (B, T, 5) in stroke-3, offsets times a scale."""
    found = []
    for rows in x.detach().double().cpu().numpy():
        ends = np.flatnonzero(rows[:, 4] > 0)
        moved = rows[: ends[0]] if len(ends) else rows
        found.append(np.column_stack([moved[:, :2] * scale, moved[:, 3]]))
    return found


@dataclass(frozen=True)
class Augmentation:
    """Drawings a little wider or higher, and with fewer points; drawn anew for every batch.

    Args:
        scaling: each axis is multiplied by a factor within 1 ± this.
        dropping: chance that a point within a line is left out, once the line has three.
    """

    scaling: float = 0.15
    dropping: float = 0.1

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with other ``x``."""
        x = batch["x"]
        factors = 1 + self.scaling * (2 * torch.rand(len(x), 1, 2, dtype=x.dtype) - 1)
        scaled = torch.cat([x[..., :2] * factors.to(x.device), x[..., 2:]], -1)
        return {**batch, "x": self._dropped(scaled)}

    def _dropped(self, x: Tensor) -> Tensor:
        """Movements taken together with the one before, if the pen was down all along."""
        down = x[..., 2] > 0
        drawn = down[:, 1:] & down[:, :-1]
        deep = drawn.clone()  # at least three points into a line
        deep[:, 0] = False
        deep[:, 1:] &= drawn[:, :-1]
        chosen = deep & (torch.rand(deep.shape, dtype=x.dtype).to(x.device) < self.dropping)
        joined = torch.cat([torch.zeros_like(down[:, :1]), chosen], 1)
        place = (~joined).long().cumsum(1) - 1  # the row that each one goes to
        out = torch.zeros_like(x)
        out[..., :2] = out[..., :2].scatter_add(
            1, place.unsqueeze(-1).expand(-1, -1, 2), x[..., :2]
        )
        firsts = torch.where(joined.unsqueeze(-1), 0.0, x[..., 2:])
        out[..., 2:] = out[..., 2:].scatter_add(1, place.unsqueeze(-1).expand(-1, -1, 3), firsts)
        out[..., 4] = torch.where(out[..., 2:].sum(-1) == 0, 1.0, out[..., 4])
        return out
