"""The score function with a running mean of past costs as baseline."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inference.elbo.rao_blackwellized import RaoBlackwellized
from inference.elbo.terms import Terms
from inference.elbo.traces import Traces, log_prob_of, sample_sites


class RunningMoments(nn.Module):
    """Decaying mean and mean square of a stream of costs, one number each.

    A number, not a tensor of the plate's shape, so that a short last batch is like any other.

    Args:
        decay: weight of the past.
        like: a tensor of the device and dtype to keep them in.
    """

    mean_sum: Tensor
    square_sum: Tensor
    weight: Tensor

    def __init__(self, decay: float, like: Tensor) -> None:
        super().__init__()
        self.decay = decay
        for name in ("mean_sum", "square_sum", "weight"):
            self.register_buffer(name, torch.zeros((), device=like.device, dtype=like.dtype))

    def mean(self) -> Tensor:
        """Mean of the past, corrected for its start at zero; zero before the first update."""
        return self.mean_sum / self._weight()

    def scale(self) -> Tensor:
        """Standard deviation of the past; one before the first update."""
        variance = self.square_sum / self._weight() - self.mean().square()
        return torch.where(self.weight > 0, variance.clamp(min=1e-8).sqrt(), 1.0)

    def _weight(self) -> Tensor:
        return torch.where(self.weight > 0, self.weight, 1.0)

    @torch.no_grad()
    def update(self, cost: Tensor) -> None:
        """Take in the costs of a step."""
        new = 1 - self.decay
        for total, value in (
            (self.mean_sum, cost.mean()),
            (self.square_sum, cost.square().mean()),
            (self.weight, torch.ones_like(self.weight)),
        ):
            total.mul_(self.decay).add_(value, alpha=new)


class DecayingAverage(RaoBlackwellized):
    """The score function, with the decaying average of past costs as each site's baseline.

    The baseline of a step is made of the steps before it, so the gradient stays unbiased.

    Args:
        num_particles: K, draws from the guide per step.
        decay: weight of the past in the average.
        **options: ``sites``, ``vectorize_particles``, ``max_plate_nesting``.

    References:
        Mnih, Gregor: Neural Variational Inference and Learning in Belief Networks, 2014,
        arXiv:1402.0030, section 2.2.
    """

    name: ClassVar[str] = "decaying_average"
    reference: ClassVar[str] = "Mnih & Gregor 2014, arXiv:1402.0030, section 2.2"

    def __init__(self, num_particles: int = 1, *, decay: float = 0.9, **options: Any) -> None:
        super().__init__(num_particles, **options)
        self.decay = decay

    def prepare(self, traces: Traces) -> None:
        """Make the averages of the score-function sites."""
        super().prepare(traces)
        sites = dict(sample_sites(traces.guide))
        for name in self.score_sites(traces):
            self.moments(name, log_prob_of(sites[name]))

    def moments(self, site: str, like: Tensor) -> RunningMoments:
        """Running mean and scale of a site's costs; new ones, if it has none yet."""
        if not hasattr(self.state, key(site)):
            self.state.add_module(key(site), RunningMoments(self.decay, like))
        found: Any = getattr(self.state, key(site))
        return found

    def signal(self, terms: Terms, site: str, cost: Tensor, runs: list[Traces]) -> Tensor:
        """The cost's excess over the average, which it then enters."""
        moments = self.moments(site, cost)
        excess = cost - moments.mean()
        if torch.is_grad_enabled():
            moments.update(cost)
        return excess


def key(site: str) -> str:
    """A site's name as the name of a submodule."""
    return "site_" + site.replace(".", "/")
