"""What a site's distribution tells of itself, where it tells it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from pyro.distributions import Delta, MaskedDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import Independent, constraints
from torch.distributions.constraints import Constraint


def known_mean(fn: Any) -> Tensor | None:
    """The mean of a distribution, or None: it has none, or no formula."""
    try:
        return fn.mean
    except (NotImplementedError, AttributeError):
        return None


def known_support(fn: Any) -> Constraint | None:
    """The support of a distribution, or None: it does not say."""
    try:
        return fn.support
    except NotImplementedError:
        return None


def is_discrete(fn: Any) -> bool:
    """Whether a distribution says that its support is discrete."""
    support = known_support(fn)
    return support is not None and bool(support.is_discrete)


def state_counts(fn: Any, value: Tensor) -> Tensor | None:
    """How often a value has each state of a distribution over finitely many numbered ones.

    Args:
        fn: over integers from one bound to another, or over one-hot vectors.
        value: of it; all places of its batch and event count.

    Returns:
        (S,) int64, or None: the distribution is over something else.
    """
    support = known_support(fn)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.one_hot:
        states, number = value.argmax(-1), value.shape[-1]
    elif isinstance(support, constraints.integer_interval):
        lower, upper = support.lower_bound, support.upper_bound
        if isinstance(lower, Tensor) or isinstance(upper, Tensor):
            return None
        states, number = value.long() - int(lower), int(upper) - int(lower) + 1
    else:
        return None
    flat = states.reshape(-1)
    zeros = torch.zeros(number, dtype=torch.int64, device=value.device)
    return zeros.index_add_(0, flat, torch.ones_like(flat))


def innermost(fn: Any) -> Any:
    """A distribution without ``to_event``, ``expand`` and wrappers that change no density.

    Masks and transforms stay: what is within has another density.
    """
    while isinstance(fn, Independent | ExpandedDistribution) or getattr(fn, "is_wrapper", False):
        fn = fn.base_dist
    return fn


def family(fn: Any) -> str:
    """Name of a distribution, without the wrappers that change no density."""
    inner = innermost(fn)
    name = type(inner).__name__
    masked = isinstance(inner, MaskedDistribution) or is_partial(inner)
    return f"{name} {family(inner.base_dist)}" if masked else name


def is_partial(fn: Any) -> bool:
    """Whether a distribution is of hidden elements alone: the seen ones are inputs."""
    return bool(getattr(innermost(fn), "is_partial", False))


def is_point(fn: Any) -> bool:
    """Whether a distribution is a point mass, which has no score function."""
    return isinstance(innermost(fn), Delta)


def masks_of(site: Mapping[str, Any]) -> list[Tensor]:
    """The masks of a site: its own, and its distribution's."""
    fn, masks = site["fn"], [site["mask"]]
    while hasattr(fn, "base_dist"):
        masks.append(getattr(fn, "_mask", None))
        fn = fn.base_dist
    return [torch.as_tensor(mask) for mask in masks if mask is not None]


def hides(site: Mapping[str, Any]) -> bool:
    """Whether a mask takes entries of a site out of its density."""
    return not all(bool(mask.all()) for mask in masks_of(site))
