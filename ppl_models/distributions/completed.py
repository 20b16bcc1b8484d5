"""A distribution of images of which some pixels are known."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor


class Completed(TorchDistribution):
    """Known pixels are what they are; the hidden ones follow a distribution.

    Its density is that of the hidden pixels: known ones add nothing, whatever value is scored.

    Args:
        base_dist: independent pixels (``to_event``), batch (...), event (C, H, W).
        hidden: (C, H, W), true where a pixel is not known.
        known: (..., C, H, W), read where ``hidden`` is false.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}
    is_partial = True

    def __init__(self, base_dist: Any, hidden: Tensor, known: Tensor) -> None:
        self.base_dist = base_dist
        self.hidden = hidden
        self.known = known.expand(base_dist.shape())
        super().__init__(base_dist.batch_shape, base_dist.event_shape, validate_args=False)

    @property
    def has_rsample(self) -> bool:
        """As the base."""
        return self.base_dist.has_rsample

    @property
    def support(self) -> Any:
        """As the base."""
        return self.base_dist.support

    @property
    def mean(self) -> Tensor:
        """The base's where hidden, else what is known."""
        return self._complete(self.base_dist.mean)

    def _complete(self, images: Tensor) -> Tensor:
        return torch.where(self.hidden, images, self.known)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Completed:
        """The same, over a larger batch."""
        return Completed(self.base_dist.expand(batch_shape), self.hidden, self.known)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  (torch's own)
        """Reparameterized draws, (sample..., batch..., event...)."""
        return self._complete(self.base_dist.rsample(sample_shape))

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008
        """Draws, (sample..., batch..., event...)."""
        return self._complete(self.base_dist.sample(sample_shape))

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of the hidden pixels of (..., C, H, W)."""
        pixels = self.base_dist.base_dist.log_prob(value)
        return torch.where(self.hidden, pixels, 0.0).flatten(-len(self.event_shape)).sum(-1)
