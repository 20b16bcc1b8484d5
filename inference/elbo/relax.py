"""RELAX: REBAR's control variate with a learned network beside it."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inference.elbo.base import value_neutral
from inference.elbo.decaying_average import RunningMoments
from inference.elbo.neural_baseline import features
from inference.elbo.rebar import Parts, Rebar
from inference.elbo.relaxation import logits_of
from inference.elbo.terms import plates_of
from inference.elbo.traces import Traces


class ControlVariate(nn.Module):
    """r(z, x): one hidden layer, of which the data's part serves all particles.

    Args:
        event_dim: dimensions of an event of the site.
        widths: elements of an event, and of a datum (0 for none).
        hidden_dim: width of the hidden layer.
    """

    def __init__(self, event_dim: int, widths: tuple[int, int], hidden_dim: int) -> None:
        super().__init__()
        self.event_dim = event_dim
        self.widths = widths
        self.of_value = nn.Linear(widths[0], hidden_dim)
        self.of_data = nn.Linear(widths[1], hidden_dim, bias=False) if widths[1] else None
        self.last = nn.Linear(hidden_dim, 1, bias=False)  # a constant is no control variate
        nn.init.zeros_(self.last.weight)

    def forward(self, values: tuple[Tensor, ...], data: Tensor | None) -> list[Tensor]:
        """Its value at each of the relaxed draws (batch, event), (batch...)."""
        shift = 0.0 if self.of_data is None or data is None else self.of_data(data)
        return [self.last((self.of_value(self._flat(v)) + shift).tanh())[..., 0] for v in values]

    def _flat(self, value: Tensor) -> Tensor:
        return value.reshape(*value.shape[: value.dim() - self.event_dim], -1)


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
        fn, seen = traces.guide.nodes[self.site]["fn"], self._data(traces)
        widths = fn.event_shape.numel(), 0 if seen is None else seen.shape[-1]
        known: Any = getattr(self.state, "network", None)
        if known is None or known.widths != widths:
            like = logits_of(fn).detach()
            network = ControlVariate(len(fn.event_shape), widths, self.hidden_dim)
            self.state.add_module("network", network.to(like))
            self.state.add_module("scale", RunningMoments(self.decay, like))

    def combine(self, parts: Parts, eta: Tensor, run: Any) -> Tensor:
        """REBAR's gradient with the network's part, and the network's loss with value zero."""
        coupled, leaf = run.coupled, run.coupled.leaf()
        rebar = (parts.score + eta * parts.control).detach()
        network: Any = self.state.network
        moments: Any = self.state.scale
        values = coupled.soft(leaf), coupled.conditional(leaf)
        at_soft, at_cond = network(values, self._data(run))
        (through,) = torch.autograd.grad((at_soft - at_cond).sum(), leaf, create_graph=True)
        at_cond = at_cond.reshape(at_cond.shape + (1,) * len(coupled.fn.event_shape))
        scale = moments.scale()
        of_network = through - at_cond * coupled.score()
        gradient = rebar + scale * self._masked(of_network, run)
        moments.update(parts.score)
        learned = (gradient.detach() * coupled.logits).sum()
        return learned - value_neutral((gradient / scale).square().mean())

    def _masked(self, of_network: Tensor, run: Traces) -> Tensor:
        """Zero where the site is masked out."""
        site = run.guide.nodes[self.site]
        if not isinstance(site["mask"], Tensor):
            return of_network
        mask = site["mask"].reshape(site["mask"].shape + (1,) * len(site["fn"].event_shape))
        return torch.where(mask, of_network, 0.0)

    def _data(self, run: Traces) -> Tensor | None:
        """The observed values of each datum, or None."""
        return features(run, plates_of(run.guide.nodes[self.site]))
