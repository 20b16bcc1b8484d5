"""What a site's distribution tells of itself, where it tells it."""

from __future__ import annotations

from typing import Any

from torch import Tensor
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


def family(fn: Any) -> str:
    """Name of a distribution, without the wrapper that declares its event dimensions."""
    return type(getattr(fn, "base_dist", fn)).__name__
