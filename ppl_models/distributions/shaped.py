"""A distribution of vectors as one of images, or of single numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints


class Shaped(TorchDistribution):
    """A distribution over vectors (D,) with another event shape of D elements.

    Args:
        base_dist: event shape (D,), such as ``MultivariateNormal``.
        event_shape: such as (C, H, W), or () where D is one.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    is_wrapper = True

    def __init__(self, base_dist: Any, event_shape: Sequence[int]) -> None:
        self.base_dist = base_dist
        shape = torch.Size(event_shape)
        super().__init__(base_dist.batch_shape, shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """As the base."""
        return self.base_dist.has_rsample

    @property
    def support(self) -> Any:
        """All real numbers."""
        return constraints.independent(constraints.real, len(self.event_shape))

    @property
    def mean(self) -> Tensor:
        """The mean, shaped."""
        return self._shape(self.base_dist.mean)

    @property
    def variance(self) -> Tensor:
        """The variance of every element, shaped."""
        return self._shape(self.base_dist.variance)

    def _shape(self, vectors: Tensor) -> Tensor:
        return vectors.reshape(*vectors.shape[:-1], *self.event_shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Shaped:
        """The same, over a larger batch."""
        return Shaped(self.base_dist.expand(batch_shape), self.event_shape)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  (torch's own)
        """Reparameterized draws, (sample..., batch..., event...)."""
        return self._shape(self.base_dist.rsample(sample_shape))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws, (sample..., batch..., event...)."""
        return self._shape(self.base_dist.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of (..., event...): the base's of the flat vectors."""
        batch = value.shape[: value.dim() - len(self.event_shape)]
        return self.base_dist.log_prob(value.reshape(*batch, -1))
