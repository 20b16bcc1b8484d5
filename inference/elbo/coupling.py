"""A discrete draw, the relaxation that it discretizes, and another one given the draw.

Shapes: logits, draws and noise: batch and event of the site.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference.elbo.relaxation import (
    harden,
    is_one_hot,
    logits_of,
    noise_like,
    perturbed,
    soften,
)


@dataclass(frozen=True)
class Coupled:
    """One draw b with its relaxation z and an independent relaxation z̃ given b."""

    fn: Any
    temperature: float
    logits: Tensor
    """Log-odds, or normalized log-probabilities; with their gradient."""
    uniform: Tensor
    """Noise of z."""
    further: Tensor
    """Noise of z̃ given b."""
    hard: Tensor
    """b, 0/1 or one-hot, detached."""

    @classmethod
    def draw(cls, fn: Any, temperature: float) -> Coupled:
        """Draw from a Bernoulli or one-hot categorical distribution."""
        logits = logits_of(fn)
        uniform, further = noise_like(logits.detach()), noise_like(logits.detach())
        hard = harden(fn, perturbed(fn, logits.detach(), uniform))
        return cls(fn, temperature, logits, uniform, further, hard)

    def soft(self, logits: Tensor) -> Tensor:
        """Z as a function of the logits."""
        return soften(self.fn, perturbed(self.fn, logits, self.uniform), self.temperature)

    def conditional(self, logits: Tensor) -> Tensor:
        """z̃ as a function of the logits, b held fixed."""
        return soften(self.fn, self._given_draw(logits), self.temperature)

    def _given_draw(self, logits: Tensor) -> Tensor:
        """Perturbed logits, given which discretization they have."""
        if is_one_hot(self.fn):
            arrival = -self.further.log()  # exponential; the drawn class arrives first
            first = (arrival * self.hard).sum(-1, keepdim=True)
            rest = -torch.logaddexp(arrival.log() - logits, first.log())
            return torch.where(self.hard > 0, -first.log(), rest)
        on = logits.sigmoid()
        uniform = torch.where(self.hard > 0, 1 - on + self.further * on, self.further * (1 - on))
        eps = torch.finfo(logits.dtype).eps
        return logits + uniform.clamp(eps, 1 - eps).logit()

    def score(self) -> Tensor:
        """∂ log q(b) / ∂ logits."""
        logits = self.logits.detach()
        return self.hard - (logits.softmax(-1) if is_one_hot(self.fn) else logits.sigmoid())

    def leaf(self) -> Tensor:
        """The logits, as a variable of their own."""
        return self.logits.detach().requires_grad_()

    def beside(self, cost: Tensor) -> Tensor:
        """A cost (K, plates...) in the shape that multiplies the logits."""
        cost = cost.reshape(cost.shape + (1,) * len(self.fn.event_shape))
        while cost.dim() > self.logits.dim():
            cost = cost.squeeze(0)
        return cost
