"""The continuous Bernoulli by its natural parameter, exact in both tails.

p(x) = η e^{ηx} / (e^η − 1) for x in [0, 1], uniform at η = 0. Torch has it by the probability
σ(η), which in single precision is 0 or 1 beyond |η| = 16; here nothing saturates.

References:
    Loaiza-Ganem, Cunningham: The continuous Bernoulli: fixing a pervasive error in variational
    autoencoders, 2019, arXiv:1907.06845.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

SMALL = 0.05
"""|η| below which series take the place of formulas that divide by η."""


class ContinuousBernoulli(TorchDistribution):
    """x in [0, 1] with density proportional to e^{ηx}.

    Args:
        logits: η.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Tensor, validate_args: bool | None = None) -> None:
        self.logits = logits
        super().__init__(logits.shape, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> ContinuousBernoulli:
        """The same, over a larger batch."""
        return ContinuousBernoulli(self.logits.expand(batch_shape), validate_args=False)

    def _log_norm(self) -> Tensor:
        """log((e^η − 1) / η) − η/2 = log(sinh(η/2) / (η/2)), even in η."""
        half = self.logits.abs() / 2
        large = half.clamp(min=SMALL)
        formula = large + torch.log(-torch.expm1(-2 * large)) - torch.log(2 * large)
        series = half.square() / 6 - half.pow(4) / 180
        return torch.where(half < SMALL, series, formula)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density."""
        if self._validate_args:
            self._validate_sample(value)
        return self.logits * (value - 0.5) - self._log_norm()

    @property
    def mean(self) -> Tensor:
        """1 / (1 − e^{−η}) − 1/η = ½ + ½ coth(η/2) − 1/η."""
        small = self.logits.abs() < SMALL
        eta = torch.where(small, torch.ones_like(self.logits), self.logits)
        formula = 0.5 + 0.5 / torch.tanh(eta / 2) - 1 / eta
        series = 0.5 + self.logits / 12 - self.logits.pow(3) / 720
        return torch.where(small, series, formula)

    def rsample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  (torch's own)
        """Reparameterized draws, by the inverse of the distribution function."""
        shape = self._extended_shape(sample_shape)
        u = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        # For η > 0, x = 1 + log(u + (1 − u) e^{−η}) / η; draws for −η are mirrored.
        eta = self.logits.abs().clamp(min=1e-6)
        tail = (1 - u) * torch.expm1(-eta)  # in (−1, 0]
        x = 1 + torch.log1p(tail.clamp(min=-1 + torch.finfo(u.dtype).eps)) / eta
        return torch.where(self.logits < 0, 1 - x, x).clamp(0, 1)
