"""Components that lost their data, or shrank onto a point: the broadest place is split for them.

Shapes: K components, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inference.em.statistics import Mixture

EMPTY = 0.5
"""A component with less than so many data has none."""
NARROW = 2.0
"""A component whose variances are on average less than so many times the floor is a point."""
MOST_REPAIRS = 3
"""A component that goes wrong more often is left as it is: the data ask for it."""


@dataclass(frozen=True)
class Repair:
    """What was done to a component."""

    iteration: int
    component: int
    reason: str
    """``empty``: it held hardly any data; ``collapsed``: it had shrunk onto a point."""
    parent: int
    """The component of the largest weight, which was split in two for it."""

    def __str__(self) -> str:
        return (
            f"iteration {self.iteration}: component {self.component} was {self.reason}; "
            f"component {self.parent} was split in two for it"
        )


def repair(
    mixture: Mixture,
    counts: Tensor,
    floor: Tensor,
    iteration: int,
    before: list[Repair],
    *,
    least: float = EMPTY,
    most: float = MOST_REPAIRS,
) -> tuple[Mixture, list[Repair]]:
    """Mend a mixture after an M-step.

    Args:
        mixture: what it gave.
        counts: the data that each component held, (K,).
        floor: of the variances, (D,) or (1,).
        iteration: its number.
        before: repairs of earlier iterations.
        least: a component with fewer data is empty.
        most: a component that was mended so often is left as it is.

    Returns:
        The mixture, and what was done.
    """
    done: list[Repair] = []
    for component, reason in _wrong(mixture, counts < least, floor):
        if sum(r.component == component for r in before) >= most:
            continue
        parent = _heaviest(mixture, [component, *(r.component for r in done)])
        if parent is None:
            break
        mixture = _split(mixture, component, parent)
        done.append(Repair(iteration, component, reason, parent))
    return mixture, done


def _wrong(mixture: Mixture, empty: Tensor, floor: Tensor) -> list[tuple[int, str]]:
    _, whole = mixture.whole()
    collapsed = (mixture.variances / floor).mean(-1) <= NARROW
    if mixture.kind == "tied" or float((whole.diagonal() / floor).mean()) <= 5 * NARROW:
        collapsed = torch.zeros_like(empty)
    reasons = {**dict.fromkeys(_indices(collapsed), "collapsed")}
    return list((reasons | dict.fromkeys(_indices(empty), "empty")).items())


def _indices(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()


def _heaviest(mixture: Mixture, besides: list[int]) -> int | None:
    weights = mixture.weights.clone()
    weights[besides] = -1.0
    best = int(weights.argmax())
    return best if float(weights[best]) > 0 else None


def _split(mixture: Mixture, component: int, parent: int) -> Mixture:
    """Both get half of the parent's data: on either side of it, or broad and narrow."""
    weights, locs, covariances = (
        t.clone() for t in (mixture.weights, mixture.locs, mixture.covariances)
    )
    half = 0.5 * (weights[parent] + weights[component])
    weights[[parent, component]] = half
    if mixture.kind != "tied":
        covariances[component] = covariances[parent]
    if mixture.zero_mean:
        covariances[component] *= 0.5
        covariances[parent] *= 1.5
    else:
        step = 0.5 * _principal(mixture, parent)
        locs[component] = locs[parent] + step
        locs[parent] -= step
    return replace(mixture, weights=weights, locs=locs, covariances=covariances)


def _principal(mixture: Mixture, k: int) -> Tensor:
    """The longest semi-axis of a component, (D,)."""
    if mixture.kind in ("full", "tied"):
        values, axes = torch.linalg.eigh(mixture.matrices[k if mixture.kind == "full" else 0])
        return values[-1].sqrt() * axes[:, -1]
    variances = mixture.variances[k]
    axis = torch.zeros_like(variances)
    axis[variances.argmax()] = variances.max().sqrt()
    return axis
