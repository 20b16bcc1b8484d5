"""One movement of a pen: where to, and what the pen does there.

A row of stroke-5 is (dx, dy, down, up, end): an offset, and one of three pen states. After a
movement the pen stays down (the next one draws), is lifted (the next one does not), or the drawing
ended before it, and then there is no offset to speak of, (0, 0, 0, 0, 1):

    pen ~ Categorical(softmax(pen_logits))
    component m ~ Categorical(softmax(logits))
    (dx, dy) ~ Normal(loc_m, Σ_m)           Σ_m of scales s_x, s_y and correlation ρ; not at an end

so that p(end) + Σ_{down, up} ∫ p(dx, dy, pen) = 1. Parameters are a network's outputs, of any size:
scales are bounded between e^−5 and e^5, correlations by ±0.999, smoothly, so that no density is
infinite and no gradient is cut off. The lower bound matters with data on a grid of integers, where
exact zeros would be worth any number of nats.

A temperature T divides all logits and multiplies variances, as in section 3.3 of the paper; the
density is that of what is drawn.

Shapes: M components.

References:
    Ha, Eck: A Neural Representation of Sketch Drawings, 2018, arXiv:1704.03477, section 3.2.
    Graves: Generating Sequences With Recurrent Neural Networks, 2013, arXiv:1308.0850, eq. 24-25.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints

LOG_SCALE_BOUND = 5.0
CORRELATION_BOUND = 0.999
NUM_PEN_STATES = 3
END = 4
"""The column of a row that says that the drawing has ended."""


class StrokeRows(constraints.Constraint):
    """Rows (dx, dy, down, up, end): one pen state, and no offset at an end."""

    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        """Whether each row is one."""
        pen = value[..., 2:]
        known = ((pen == 0) | (pen == 1)).all(-1) & (pen.sum(-1) == 1)
        offset = value[..., :2]
        still = (offset == 0).all(-1) | (value[..., END] == 0)
        return known & still & torch.isfinite(offset).all(-1)


class StrokeMixture(TorchDistribution):
    """A movement (dx, dy, down, up, end), event shape (5,).

    Args:
        logits: of the components, (..., M).
        locs: (..., M, 2).
        log_scales: (..., M, 2), before they are bounded.
        correlations: (..., M), before they are bounded.
        pen_logits: (..., 3).
        temperature: T > 0.
    """

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        logits: Tensor,
        locs: Tensor,
        log_scales: Tensor,
        correlations: Tensor,
        pen_logits: Tensor,
        temperature: float = 1.0,
    ) -> None:
        self.logits = logits
        self.locs = locs
        self.log_scales = log_scales
        self.correlations = correlations
        self.pen_logits = pen_logits
        self.temperature = temperature
        super().__init__(logits.shape[:-1], torch.Size([2 + NUM_PEN_STATES]), validate_args=False)

    @classmethod
    def num_outputs(cls, num_components: int) -> int:
        """How many outputs of a network make one."""
        return 6 * num_components + NUM_PEN_STATES

    @classmethod
    def from_outputs(cls, outputs: Tensor, temperature: float = 1.0) -> StrokeMixture:
        """Of a network's outputs (..., 6 M + 3)."""
        mixture, pen = outputs[..., :-NUM_PEN_STATES], outputs[..., -NUM_PEN_STATES:]
        logits, x, y, log_x, log_y, correlations = mixture.chunk(6, dim=-1)
        locs, log_scales = torch.stack([x, y], -1), torch.stack([log_x, log_y], -1)
        return cls(logits, locs, log_scales, correlations, pen, temperature)

    @property
    def support(self) -> Any:
        """Rows of stroke-5."""
        return StrokeRows()

    @property
    def scales(self) -> Tensor:
        """Standard deviations, (..., M, 2)."""
        bounded = LOG_SCALE_BOUND * torch.tanh(self.log_scales / LOG_SCALE_BOUND)
        return bounded.exp() * math.sqrt(self.temperature)

    @property
    def rho(self) -> Tensor:
        """Correlations, (..., M)."""
        return CORRELATION_BOUND * torch.tanh(self.correlations)

    def expand(self, batch_shape: Any, _instance: Any = None) -> StrokeMixture:
        """The same, over a larger batch."""
        kept = len(self.batch_shape)

        def wide(part: Tensor) -> Tensor:
            return part.expand(*batch_shape, *part.shape[kept:])

        return StrokeMixture(
            wide(self.logits),
            wide(self.locs),
            wide(self.log_scales),
            wide(self.correlations),
            wide(self.pen_logits),
            self.temperature,
        )

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density of rows (..., 5); at an end, the log probability of ending."""
        pen = (self._at_temperature(self.pen_logits) * value[..., 2:]).sum(-1)
        offset = self._log_density(value[..., :2])
        return pen + torch.where(value[..., END] > 0, torch.zeros_like(offset), offset)

    def _log_density(self, offset: Tensor) -> Tensor:
        """Of offsets (..., 2) under the mixture."""
        scales, rho = self.scales, self.rho
        x, y = ((offset.unsqueeze(-2) - self.locs) / scales).unbind(-1)
        rest = 1 - rho.square()
        # x alone, and y given x: no difference of large numbers.
        squares = x.square() + (y - rho * x).square() / rest
        log_norm = scales.log().sum(-1) + 0.5 * rest.log() + math.log(2 * math.pi)
        mixed = self._at_temperature(self.logits) - 0.5 * squares - log_norm
        return torch.logsumexp(mixed, -1)

    def _at_temperature(self, logits: Tensor) -> Tensor:
        """Log probabilities; the largest logit is 0 first, so that a low temperature keeps it."""
        if self.temperature != 1:
            logits = (logits - logits.amax(-1, keepdim=True)) / self.temperature
        return logits.log_softmax(-1)

    def sample(self, sample_shape: Any = torch.Size()) -> Tensor:  # noqa: B008  (torch's own)
        """Draws, (sample..., batch..., 5)."""
        with torch.no_grad():
            wide = self.expand((*torch.Size(sample_shape), *self.batch_shape))
            pen = torch.nn.functional.one_hot(wide._drawn(wide.pen_logits), NUM_PEN_STATES)
            chosen = wide._drawn(wide.logits).unsqueeze(-1)
            pair = chosen.unsqueeze(-1).expand(*chosen.shape, 2)
            loc, scale = (t.gather(-2, pair).squeeze(-2) for t in (wide.locs, wide.scales))
            rho = wide.rho.gather(-1, chosen).squeeze(-1)
            first, second = torch.randn_like(loc).unbind(-1)
            noise = torch.stack([first, rho * first + (1 - rho.square()).sqrt() * second], -1)
            offset = (loc + scale * noise) * (1 - pen[..., -1:])
            return torch.cat([offset, pen.to(offset.dtype)], -1)

    def _drawn(self, logits: Tensor) -> Tensor:
        """Categories (...) of logits (..., C)."""
        shares = self._at_temperature(logits).exp()
        flat = torch.multinomial(shares.reshape(-1, shares.shape[-1]), 1)
        return flat.reshape(shares.shape[:-1])
