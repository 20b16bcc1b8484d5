"""Distributions that are another one in all but a point."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor


class Wrapped(TorchDistribution):
    """A distribution that passes everything on to the one within.

    Args:
        base_dist: any distribution.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, base_dist: Any) -> None:
        self.base_dist = base_dist
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    def around(self, base_dist: Any) -> Wrapped:
        """The same around another distribution."""
        return type(self)(base_dist)

    @property
    def support(self) -> Any:
        """Of the distribution within."""
        return self.base_dist.support

    @property
    def has_enumerate_support(self) -> bool:
        """Of the distribution within."""
        return self.base_dist.has_enumerate_support

    @property
    def mean(self) -> Tensor:
        """Of the distribution within."""
        return self.base_dist.mean

    @property
    def variance(self) -> Tensor:
        """Of the distribution within."""
        return self.base_dist.variance

    def expand(self, batch_shape: Any, _instance: Any = None) -> Wrapped:
        """The same, over a larger batch."""
        return self.around(self.base_dist.expand(batch_shape))

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """Every value that it takes."""
        return self.base_dist.enumerate_support(expand)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """A draw, detached."""
        with torch.no_grad():
            return self.base_dist.sample(torch.Size(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Of the distribution within."""
        return self.base_dist.log_prob(value)


def innermost(fn: Any) -> Any:
    """A distribution without ``to_event`` and other wrappers."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn
