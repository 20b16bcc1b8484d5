"""Supports compared by what they say, not by draws: a half-line within a line."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from pyro.distributions import TransformedDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.distributions.constraints import Constraint
from torch.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    IndependentTransform,
    Transform,
)

from inference.sites import innermost, known_support

Bound = float | Tensor


@dataclass(frozen=True)
class Reach:
    """An interval of numbers, or of whole numbers; end points are not told apart."""

    lower: Bound
    upper: Bound
    discrete: bool

    def within(self, other: Reach) -> bool:
        """Whether everything in it is in the other, of the same kind."""
        return _all_at_most(other.lower, self.lower) and _all_at_most(self.upper, other.upper)

    def __str__(self) -> str:
        kind = "whole numbers" if self.discrete else "numbers"
        low, high = _shown(self.lower), _shown(self.upper)
        if low == "-inf" and high == "inf":
            return f"all {kind}"
        if high == "inf":
            return f"{kind} from {low} up"
        return f"{kind} up to {high}" if low == "-inf" else f"{kind} from {low} to {high}"


WHOLE_LINE = Reach(-math.inf, math.inf, False)


def reach(fn: Any) -> Reach | None:
    """What a distribution can draw, elementwise; None: that cannot be told."""
    inner = innermost(fn)
    # Its subclasses (LogNormal, ...) know their supports; it takes its last transform's word.
    if type(inner) not in (torch.distributions.TransformedDistribution, TransformedDistribution):
        return reach_of(known_support(fn))
    found = reach(inner.base_dist)
    for transform in _parts(inner.transforms):
        found = _after(transform, found)
    return found


def _parts(transforms: Sequence[Transform]) -> Iterator[Transform]:
    for transform in transforms:
        if isinstance(transform, ComposeTransform):
            yield from _parts(transform.parts)
        elif isinstance(transform, IndependentTransform):
            yield from _parts([transform.base_transform])
        else:
            yield transform


def _after(transform: Transform, before: Reach | None) -> Reach | None:
    """What comes out of an elementwise transform of numbers in an interval."""
    if not isinstance(transform, AffineTransform):
        found = reach_of(transform.codomain)
        # "All numbers" is what transforms say that do not care to say more.
        return None if found == WHOLE_LINE else found
    scale = torch.as_tensor(transform.scale)
    if before is None or before.discrete or not bool((scale > 0).all() or (scale < 0).all()):
        return None
    ends = [transform.loc + scale * bound for bound in (before.lower, before.upper)]
    lower, upper = ends if bool((scale > 0).all()) else ends[::-1]
    return Reach(lower, upper, False)


def reach_of(support: Constraint | None) -> Reach | None:
    """What an elementwise support holds; None: it is no interval, or does not say."""
    while isinstance(support, constraints.independent | constraints.MixtureSameFamilyConstraint):
        support = support.base_constraint
    c = constraints
    if support is None or c.is_dependent(support):
        return None
    if isinstance(support, type(c.real)):
        return WHOLE_LINE
    if isinstance(support, type(c.boolean)):
        return Reach(0.0, 1.0, True)
    if isinstance(support, c.greater_than | c.greater_than_eq):
        return Reach(support.lower_bound, math.inf, False)
    if isinstance(support, c.less_than):
        return Reach(-math.inf, support.upper_bound, False)
    if isinstance(support, c.interval | c.half_open_interval):
        return Reach(support.lower_bound, support.upper_bound, False)
    if isinstance(support, c.integer_interval):
        return Reach(support.lower_bound, support.upper_bound, True)
    if isinstance(support, type(c.nonnegative_integer)):
        return Reach(support.lower_bound, math.inf, True)
    return None


def _all_at_most(low: Bound, high: Bound) -> bool:
    low, high = (torch.as_tensor(b, dtype=torch.float64).detach().cpu() for b in (low, high))
    try:
        slack = 1e-6 * torch.where(high.isfinite(), high.abs(), torch.zeros_like(high))
        return bool((low <= high + slack).all())
    except RuntimeError:  # bounds of shapes that do not broadcast: another rule tells
        return True


def _shown(bound: Bound) -> str:
    values = torch.as_tensor(bound, dtype=torch.float64).detach().cpu().unique()
    return f"{float(values[0]):g}" if len(values) == 1 else "bounds of their own"
