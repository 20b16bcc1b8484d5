"""A mixture of discretized logistics over images of grey levels, in the manner of PixelCNN++.

A pixel's level k = 0, ..., L − 1 stands for x = k / (L − 1); on the scale v = 2x − 1 in [−1, 1] it
is an interval of width 2h = 2 / (L − 1), open outwards at both ends:

    component m ~ Categorical(logits)              one a pixel, for all its channels
    P(k | m) = σ((v + h − loc) / s) − σ((v − h − loc) / s)

In colour, the channels of a pixel depend on one another, green on red and blue on both:

    loc_green = loc_1 + c_0 v_red,   loc_blue = loc_2 + c_1 v_red + c_2 v_green

Shapes: M components, C H W image. Without channels every element is a pixel.

References:
    Salimans, Karpathy, Chen, Kingma: PixelCNN++, 2017, arXiv:1701.05517, sections 2.1 and 2.2.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.nn import functional as F


class GreyLevels(constraints.Constraint):
    """Multiples of 1 / (levels − 1) in [0, 1].

    Args:
        levels: L.
    """

    is_discrete = True

    def __init__(self, levels: int) -> None:
        super().__init__()
        self.levels = levels

    def check(self, value: Tensor) -> Tensor:
        """Whether each value is a level, up to rounding."""
        level = value * (self.levels - 1)
        near = (level - level.round()).abs() < 1e-3
        return near & (level > -0.5) & (level < self.levels - 0.5)


class DiscretizedLogisticMixture(TorchDistribution):
    """Images (C, H, W), or anything without channels, of grey levels in [0, 1].

    Args:
        logits: (..., M, H, W) with channels, (..., M, *event) without.
        locs: (..., M, *event), on the scale of [−1, 1].
        log_scales: the same.
        levels: L.
        event_dim: dimensions of the event; three are an image with channels.
        coefficients: c_0, c_1, c_2 of a colour image, (..., M, 3, H, W).
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        logits: Tensor,
        locs: Tensor,
        log_scales: Tensor,
        levels: int,
        event_dim: int,
        coefficients: Tensor | None = None,
    ) -> None:
        self.logits = logits
        self.locs = locs
        self.log_scales = log_scales
        self.levels = levels
        self.coefficients = coefficients
        self._axis = -event_dim - 1  # of the components
        super().__init__(locs.shape[: self._axis], locs.shape[-event_dim:], validate_args=False)

    @property
    def support(self) -> Any:
        """The grey levels."""
        return constraints.independent(GreyLevels(self.levels), self.event_dim)

    @property
    def _has_channels(self) -> bool:
        return self.event_dim == 3

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiscretizedLogisticMixture:
        """The same, over a larger batch."""

        def wide(parameter: Tensor) -> Tensor:
            kept = parameter.shape[len(self.batch_shape) :]
            return parameter.expand(*batch_shape, *kept)

        coefficients = None if self.coefficients is None else wide(self.coefficients)
        parts = (wide(self.logits), wide(self.locs), wide(self.log_scales))
        return DiscretizedLogisticMixture(*parts, self.levels, self.event_dim, coefficients)

    def log_prob(self, value: Tensor) -> Tensor:
        """Log probability of images (..., C, H, W)."""
        v = (2 * value - 1).unsqueeze(self._axis)
        locs = self.locs + self._shift(v, self.coefficients, self._axis + 1)
        pixels = _log_mass(v, locs, self.log_scales, self.levels)  # (..., M, *event)
        axis = self._axis
        if self._has_channels:
            pixels, axis = pixels.sum(-3), -3
        mixed = torch.logsumexp(pixels + F.log_softmax(self.logits, axis), axis)
        return mixed.flatten(len(mixed.shape) - (-axis - 1)).sum(-1)

    @staticmethod
    def _shift(v: Tensor, coefficients: Tensor | None, axis: int) -> Tensor:
        """What the channels before it add to the loc of each."""
        if coefficients is None:
            return torch.zeros((), dtype=v.dtype, device=v.device)
        red, green, _ = v.unbind(axis)
        c0, c1, c2 = coefficients.unbind(axis)
        return torch.stack([torch.zeros_like(c0 * red), c0 * red, c1 * red + c2 * green], axis)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  (torch's own)
        """Draws, (sample..., batch..., event...)."""
        with torch.no_grad():
            wide = self.expand((*torch.Size(sample_shape), *self.batch_shape))
            chosen = wide._chosen()

            def of_chosen(parameter: Tensor) -> Tensor:
                return (parameter * chosen).sum(self._axis)

            locs, scales = of_chosen(wide.locs), _scale(of_chosen(wide.log_scales))
            u = torch.rand_like(locs).clamp(1e-5, 1 - 1e-5)
            noise = scales * torch.logit(u)
            if wide.coefficients is None:
                return self._nearest(locs + noise)
            coefficients = of_chosen(wide.coefficients)
            v = torch.zeros_like(locs)
            for _ in range(3):  # one channel more is right after every pass
                x = self._nearest(locs + self._shift(v, coefficients, -3) + noise)
                v = 2 * x - 1
            return x

    def _chosen(self) -> Tensor:
        """Indicators of a component drawn for every pixel, (..., M, *event) or with C = 1."""
        axis = -3 if self._has_channels else self._axis
        last = self.logits.movedim(axis, -1)
        drawn = torch.distributions.Categorical(logits=last).sample()
        chosen = F.one_hot(drawn, last.shape[-1]).movedim(-1, axis).to(self.locs.dtype)
        return chosen.unsqueeze(-3) if self._has_channels else chosen

    def _nearest(self, v: Tensor) -> Tensor:
        level = ((v + 1) / 2 * (self.levels - 1)).round().clamp(0, self.levels - 1)
        return level / (self.levels - 1)

    @property
    def mean(self) -> Tensor:
        """Σ_k k P(k) / (L − 1), by Σ_{k ≥ 1} P(level ≥ k).

        Raises:
            NotImplementedError: in colour, where green's mean is a sum over all levels of red.
        """
        if self.coefficients is not None:
            raise NotImplementedError("the mean of a colour image has no closed form; draw samples")
        scales, total = _scale(self.log_scales), torch.zeros_like(self.locs)
        for k in range(1, self.levels):
            edge = (2 * k - 1) / (self.levels - 1) - 1
            total = total + torch.sigmoid((self.locs - edge) / scales)
        axis = -3 if self._has_channels else self._axis
        weights = self.logits.softmax(axis)
        weights = weights.unsqueeze(-3) if self._has_channels else weights
        return (weights * total).sum(self._axis) / (self.levels - 1)


def _scale(log_scales: Tensor) -> Tensor:
    """Scales between e^−7, far below a level, and e^7, uniform for all that matters."""
    return log_scales.clamp(-7, 7).exp()


def _log_mass(v: Tensor, locs: Tensor, log_scales: Tensor, levels: int) -> Tensor:
    """Log probability of each level under each component.

    σ(a) − σ(b) = σ(a) σ(−b) (1 − e^{b − a}), every factor of which has a safe logarithm, however
    far the level is from the loc; at either end one of the sigmoids is 1.
    """
    half, scales = 1 / (levels - 1), _scale(log_scales)
    above = F.logsigmoid((v + half - locs) / scales)
    below = F.logsigmoid((locs - v + half) / scales)
    inner = above + below + torch.log(-torch.expm1(-2 * half / scales))
    return torch.where(v < -1 + half, above, torch.where(v > 1 - half, below, inner))
