"""Distributions that are another one in all but a point."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import ExpandedDistribution
from torch import Tensor
from torch.distributions import Categorical, OneHotCategorical

from inference.sites import innermost


class Wrapped(TorchDistribution):
    """A distribution that passes everything on to the one within.

    Args:
        base_dist: any distribution.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    is_wrapper = True

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
        """A draw, detached.

        A copy of what is drawn: a flow's cache would know the draw itself, and take its density
        from where it came from, which has no gradient here.
        """
        with torch.no_grad():
            return _draw(self.base_dist, torch.Size(sample_shape)).clone()

    def log_prob(self, value: Tensor) -> Tensor:
        """Of the distribution within."""
        return self.base_dist.log_prob(value)


def _draw(fn: Any, sample_shape: torch.Size) -> Tensor:
    """A draw, without reading a value: torch's of a one-hot distribution does."""
    base = innermost(fn)
    if not isinstance(base, OneHotCategorical) or isinstance(fn, ExpandedDistribution):
        return fn.sample(sample_shape)
    logits = base.logits
    index = Categorical(logits=logits, validate_args=False).sample(sample_shape)
    zeros = torch.zeros(sample_shape + logits.shape, dtype=logits.dtype, device=logits.device)
    return zeros.scatter(-1, index.unsqueeze(-1), 1.0)
