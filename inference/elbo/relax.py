"""RELAX: REBAR's control variate with a learned network beside it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inference.elbo.base import value_neutral
from inference.elbo.coupling import Coupled
from inference.elbo.decaying_average import RunningMoments
from inference.elbo.neural_baseline import features
from inference.elbo.rebar import Parts, Rebar
from inference.elbo.terms import plates_of
from inference.elbo.traces import Traces


class Relax(Rebar):
    """``rebar`` with the control variate η f(z) + r(z, x), r a network.

    The network reads the relaxed draw, and the observed values of the datum where there are any;
    it is trained, with the program's parameters, to the squared norm of the logits' gradient,
    which is its variance up to a constant. Its parameters are in ``state``; ``fit`` and
    ``pyro.infer.SVI`` train them, a loop of one's own has to.

    Args:
        num_particles: K, draws from the guide per step.
        hidden_dim: width of the network's hidden layer.
        **options: ``temperature``, ``decay``, ``vectorize_particles``, ``max_plate_nesting``.

    References:
        Grathwohl, Choi, Wu, Roeder, Duvenaud: Backpropagation through the Void, 2018,
        arXiv:1711.00123.
    """

    name: ClassVar[str] = "relax"
    reference: ClassVar[str] = "Grathwohl et al. 2018, arXiv:1711.00123"

    def __init__(self, num_particles: int = 1, *, hidden_dim: int = 100, **options: Any) -> None:
        super().__init__(num_particles, **options)
        self.hidden_dim = hidden_dim

    def prepare(self, traces: Traces) -> None:
        """Make the network."""
        super().prepare(traces)
        if not hasattr(self.state, "network"):
            site = traces.guide.nodes[self.site]
            coupled = Coupled.draw(site["fn"], self.temperature)
            width = self._inputs(traces, coupled, coupled.hard).shape[-1]
            last = nn.Linear(self.hidden_dim, 1, bias=False)  # a constant is no control variate
            nn.init.zeros_(last.weight)
            network = nn.Sequential(nn.Linear(width, self.hidden_dim), nn.Tanh(), last)
            self.state.add_module("network", network.to(coupled.hard))
            self.state.add_module("scale", RunningMoments(self.decay, coupled.hard))

    def combine(self, parts: Parts, eta: Tensor, run: Any) -> Tensor:
        """REBAR's gradient with the network's part, and the network's loss with value zero."""
        coupled, leaf = run.coupled, run.coupled.leaf()
        rebar = (parts.score + eta * parts.control).detach()
        scale: Any = self.state.scale
        at_soft = self._network(run, coupled.soft(leaf))
        at_cond = self._network(run, coupled.conditional(leaf))
        (through,) = torch.autograd.grad((at_soft - at_cond).sum(), leaf, create_graph=True)
        at_cond = at_cond.reshape(at_cond.shape + (1,) * len(coupled.fn.event_shape))
        gradient = rebar + scale.scale() * (through - at_cond * coupled.score())
        scale.update(parts.score)
        learned = (gradient.detach() * coupled.logits).sum()
        return learned - value_neutral((gradient / scale.scale()).square().mean())

    def _network(self, run: Any, value: Tensor) -> Tensor:
        """r(z, x), (batch...)."""
        network: Any = self.state.network
        return network(self._inputs(run, run.coupled, value))[..., 0]

    def _inputs(self, run: Traces, coupled: Coupled, value: Tensor) -> Tensor:
        """A value of the site beside the data, (batch..., width)."""
        batch = value.shape[: value.dim() - len(coupled.fn.event_shape)]
        flat = value.reshape(*batch, -1)
        plates = plates_of(run.guide.nodes[self.site])
        seen = features(run, plates) if len(plates) == len(batch) or batch else None
        if seen is None or not plates:
            return flat
        return torch.cat([flat, seen.to(flat).expand(*batch, seen.shape[-1])], dim=-1)
