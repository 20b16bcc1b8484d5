"""Likelihoods p(x | decoder output): modules that turn a network's outputs into a distribution.

Each is built for one event shape and says how many outputs it wants per element of it:
a decoder yields ``(..., num_outputs, *event_shape)``, the likelihood a distribution with
batch shape ``...`` and that event shape.

Shapes: B data, C H W image.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_models.distributions import ContinuousBernoulli, DiscretizedLogisticMixture
from ppl_models.errors import ProgramError, UnknownNameError

MIN_SCALE = 1e-4
"""Floor of every learned scale: a pixel that never changes must not give infinite density."""


def full_precision(outputs: Tensor) -> Tensor:
    """Half-precision network outputs as float32: densities are never computed in bf16."""
    return outputs.float() if outputs.dtype in (torch.bfloat16, torch.float16) else outputs


def positive(raw: Tensor) -> Tensor:
    """A scale from an unconstrained output: softplus, with a floor of ``MIN_SCALE``."""
    return F.softplus(raw) + MIN_SCALE


class Likelihood(nn.Module):
    """Base of the likelihoods.

    Args:
        event_shape: shape of one datum, such as ``(1, 28, 28)``.
    """

    num_outputs: int = 1
    """Network outputs wanted per element of the event shape."""

    def __init__(self, event_shape: Sequence[int]) -> None:
        super().__init__()
        self.event_shape = torch.Size(event_shape)

    @property
    def output_shape(self) -> torch.Size:
        """What one datum's decoder output must look like: ``(num_outputs, *event_shape)``."""
        return torch.Size((self.num_outputs, *self.event_shape))

    def resized(self, event_shape: Sequence[int]) -> Likelihood:
        """The same, with the same parameters, for data of another shape."""
        if torch.Size(event_shape) == self.event_shape:
            return self
        twin = copy.copy(self)  # shares the tables of parameters
        twin.event_shape = torch.Size(event_shape)
        return twin

    def split(self, outputs: Tensor) -> tuple[Tensor, ...]:
        """The ``num_outputs`` parameter maps, each ``(..., *event_shape)``, in full precision."""
        outputs, dim = full_precision(outputs), -1 - len(self.event_shape)
        if outputs.shape[dim:] != self.output_shape:
            raise ProgramError(
                f"{type(self).__name__} wants decoder outputs (..., {tuple(self.output_shape)}), "
                f"got {tuple(outputs.shape)}"
            )
        return (outputs.squeeze(dim),) if self.num_outputs == 1 else outputs.unbind(dim)

    def independent(self, elementwise: dist.TorchDistribution) -> dist.TorchDistribution:
        """Declare the event dimensions of a distribution over single elements."""
        return elementwise.to_event(len(self.event_shape))


class BernoulliLikelihood(Likelihood):
    """x in {0, 1}, independent given z: ``Bernoulli(logits)``."""

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """The distribution of x given decoder outputs ``(..., 1, *event_shape)``."""
        (logits,) = self.split(outputs)
        return self.independent(dist.Bernoulli(logits=logits))


class ContinuousBernoulliLikelihood(Likelihood):
    """x in [0, 1], independent given z: a proper density where grey pixels meet a Bernoulli's.

    References:
        Loaiza-Ganem, Cunningham 2019, arXiv:1907.06845.
    """

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """The distribution of x given decoder outputs ``(..., 1, *event_shape)``."""
        (logits,) = self.split(outputs)
        return self.independent(ContinuousBernoulli(logits))


class NormalLikelihood(Likelihood):
    """x real, independent given z: ``Normal(loc, scale)`` with one fixed scale.

    With ``scale=1`` the negative log density is the lecture's ½‖x − x̂‖² plus the constant
    (d/2) log 2π.
    """

    scale: Tensor

    def __init__(self, event_shape: Sequence[int], scale: float = 1.0) -> None:
        super().__init__(event_shape)
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """The distribution of x given decoder outputs ``(..., 1, *event_shape)``."""
        (loc,) = self.split(outputs)
        return self.independent(dist.Normal(loc, self.scale))


class SharedScaleNormalLikelihood(Likelihood):
    """``Normal(loc, scale)`` with one learned scale for all elements.

    References:
        Rybkin, Daniilidis, Levine: Simple and Effective VAE Training with Calibrated
        Decoders, 2021, arXiv:2006.13202.
    """

    def __init__(self, event_shape: Sequence[int], initial_scale: float = 0.3) -> None:
        super().__init__(event_shape)
        raw = math.log(math.expm1(initial_scale - MIN_SCALE))
        self.raw_scale = nn.Parameter(torch.tensor(raw))

    @property
    def scale(self) -> Tensor:
        """The learned scale, a positive scalar."""
        return positive(self.raw_scale)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """The distribution of x given decoder outputs ``(..., 1, *event_shape)``."""
        (loc,) = self.split(outputs)
        return self.independent(dist.Normal(loc, self.scale))


class PixelScaleNormalLikelihood(Likelihood):
    """``Normal(loc, scale)`` with loc and scale of every element from the decoder."""

    num_outputs: int = 2

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """The distribution of x given decoder outputs ``(..., 2, *event_shape)``."""
        loc, raw_scale = self.split(outputs)
        return self.independent(dist.Normal(loc, positive(raw_scale)))


class DiscretizedLogisticMixtureLikelihood(Likelihood):
    """x in [0, 1] on ``levels`` grey levels: a mixture of logistics, as probabilities of levels.

    Of an image (C, H, W) a pixel's channels share their component; in colour (C = 3) green depends
    on red and blue on both.

    Args:
        event_shape: shape of one datum.
        levels: grey levels, 256 for bytes.
        num_components: of the mixture.

    Raises:
        ProgramError: an image of other than 1 or 3 channels, or fewer than two levels.

    References:
        Salimans, Karpathy, Chen, Kingma 2017, arXiv:1701.05517.
    """

    def __init__(
        self, event_shape: Sequence[int], levels: int = 256, num_components: int = 5
    ) -> None:
        super().__init__(event_shape)
        if levels < 2:
            raise ProgramError(f"levels must be at least 2, got {levels}")
        if len(event_shape) == 3 and event_shape[0] not in (1, 3):
            raise ProgramError(
                f"a discretized logistic mixture takes grey or colour images, 1 or 3 channels, got "
                f"{event_shape[0]}"
            )
        self.levels = levels
        self.num_components = num_components
        self.colour = len(event_shape) == 3 and event_shape[0] == 3
        self.num_outputs = num_components * (4 if self.colour else 3)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """The distribution of x given decoder outputs ``(..., 3M or 4M, *event_shape)``."""
        event_dim = len(self.event_shape)
        maps = torch.stack(self.split(outputs), dim=-1 - event_dim)
        logits, locs, log_scales, *rest = maps.split(self.num_components, dim=-1 - event_dim)
        coefficients = rest[0].tanh() if rest else None
        if event_dim == 3:
            logits = logits.mean(-3)  # one a pixel
        return DiscretizedLogisticMixture(
            logits, locs, log_scales, self.levels, event_dim, coefficients
        )


LIKELIHOODS: dict[str, Callable[[Sequence[int]], Likelihood]] = {
    "normal": NormalLikelihood,
    "bernoulli": BernoulliLikelihood,
    "normal_shared_scale": SharedScaleNormalLikelihood,
    "normal_pixel_scale": PixelScaleNormalLikelihood,
    "continuous_bernoulli": ContinuousBernoulliLikelihood,
    "discretized_logistic_mixture": DiscretizedLogisticMixtureLikelihood,
}
"""Likelihoods by the name that models take."""


def make_likelihood(name: str, event_shape: Sequence[int], levels: int | None = None) -> Likelihood:
    """The likelihood of this name for data of this shape.

    Args:
        name: one of ``LIKELIHOODS``.
        event_shape: shape of one datum.
        levels: grey levels of the data, for likelihoods that ask; 256 if not known.

    Raises:
        UnknownNameError: no likelihood has that name.
    """
    if name not in LIKELIHOODS:
        raise UnknownNameError("likelihood", name, LIKELIHOODS)
    likelihood = LIKELIHOODS[name]
    if levels is not None and likelihood is DiscretizedLogisticMixtureLikelihood:
        return DiscretizedLogisticMixtureLikelihood(event_shape, levels)
    return likelihood(event_shape)
