"""REBAR: the score function with a relaxed program as control variate.

Shapes: K particles; plates: as in Pyro; logits: of the discrete site, batch and event.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.messenger import Messenger
from torch import Tensor

from inference.elbo.base import Estimator, value_neutral
from inference.elbo.coupling import Coupled
from inference.elbo.decaying_average import RunningMoments
from inference.elbo.rao_blackwellized import downstream
from inference.elbo.relaxation import (
    RelaxMessenger,
    check_relaxable,
    discrete_sites,
    linear_log_prob,
)
from inference.elbo.score import total_cost
from inference.elbo.terms import gather, plates_of, stacked, sum_to, terms_of
from inference.elbo.traces import Traces, run_model, run_traces, sample_sites, with_value
from ppl_models.errors import PplError, ProgramError


class CoupledDraw(Messenger):
    """Draws the one discrete site so that its relaxations are known.

    Args:
        site: its name.
        temperature: of the relaxation.
    """

    def __init__(self, site: str, temperature: float) -> None:
        super().__init__()
        self.site = site
        self.temperature = temperature
        self.coupled: Coupled | None = None

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] == self.site and not msg["done"]:
            self.coupled = Coupled.draw(msg["fn"], self.temperature)
            msg["value"], msg["done"] = self.coupled.hard, True


class RebarTraces(Traces):
    """A run at the discrete draw, and the model at its two relaxations."""

    coupled: Coupled
    soft: tuple[Tensor, Traces]
    """The relaxation that the draw discretizes, as a leaf, and the run at it."""
    conditional: tuple[Tensor, Traces]
    """Another with the same discretization, but for that independent of the first."""


@dataclass(frozen=True)
class Parts:
    """One run's gradient of the logits: ``score`` + η · ``control``, each of the logits' shape."""

    score: Tensor
    control: Tensor


class Rebar(Estimator):
    """∇ log q(b) (f(b) − η f(z̃)) + η ∇ f(z) − η ∇ f(z̃) for the logits of a discrete site.

    b is the discrete draw, z its Gumbel-softmax relaxation and z̃ another one given b; f is the
    ELBO's terms downstream of the site, continued to relaxed values. The control variate needs
    the model at z and z̃, so it runs three times. η is the ratio of running means that minimizes
    the variance of past steps; it does not depend on the step's own draws, so the gradient is
    unbiased. One discrete site, Bernoulli or OneHotCategorical, drawn last in the guide;
    other sites must be reparameterized.

    Args:
        num_particles: K, draws from the guide per step.
        temperature: of the relaxation.
        decay: weight of the past in the running means.
        **options: ``vectorize_particles``, ``max_plate_nesting``.

    References:
        Tucker, Mnih, Maddison, Lawson, Sohl-Dickstein: REBAR, 2017, arXiv:1703.07370.
    """

    name: ClassVar[str] = "rebar"
    latents: ClassVar[str] = "one site, Bernoulli or OneHotCategorical (others pathwise)"
    reference: ClassVar[str] = "Tucker et al. 2017, arXiv:1703.07370"

    def __init__(
        self,
        num_particles: int = 1,
        *,
        temperature: float = 0.5,
        decay: float = 0.99,
        **options: Any,
    ) -> None:
        if not temperature > 0:
            raise PplError(f"temperature must be positive, got {temperature}")
        super().__init__(num_particles, **options)
        self.temperature = temperature
        self.decay = decay
        self.site = ""
        self.downstream: list[str] = []

    def check(self, traces: Traces) -> None:
        """Refuse all but one discrete site at the guide's end."""
        check_relaxable(traces, self.name)
        found, order = list(discrete_sites(traces)), [n for n, _ in sample_sites(traces.guide)]
        if len(found) > 1 or order[-1] != found[0]:
            raise ProgramError(
                f"estimator {self.name!r} serves one discrete site that the guide draws last; this "
                f"guide draws {', '.join(map(repr, order))}, of which "
                f"{', '.join(map(repr, found))} discrete. Use 'disarm' or 'leave_one_out'."
            )

    def prepare(self, traces: Traces) -> None:
        """Make the running means of η."""
        super().prepare(traces)
        (self.site,) = discrete_sites(traces)
        self.downstream = downstream(
            terms_of([traces], self.max_plate_nesting - self.vectorized), self.site
        )[0]
        if not hasattr(self.state, "covariance"):
            like = Coupled.draw(traces.guide.nodes[self.site]["fn"], self.temperature).hard
            for name in ("covariance", "control"):
                self.state.add_module(name, RunningMoments(self.decay, like))

    def plan(self) -> tuple[Any, ...]:
        """Also the discrete site."""
        return (*super().plan(), self.site)

    def run(self, model: Any, guide: Any, args: Any, kwargs: Any) -> RebarTraces:
        """Guide and model at the draw, and the model at its relaxations."""
        with CoupledDraw(self.site, self.temperature) as draw:
            traces = RebarTraces(*run_traces(model, guide, args, kwargs))
        assert draw.coupled is not None
        traces.coupled = coupled = draw.coupled
        if torch.is_grad_enabled():
            logits = coupled.logits.detach()
            traces.soft, traces.conditional = (
                self._relaxed(traces.guide, value, model, args, kwargs)
                for value in (coupled.soft(logits), coupled.conditional(logits))
            )
        return traces

    def _relaxed(
        self, guide: Any, value: Tensor, model: Any, args: Any, kwargs: Any
    ) -> tuple[Tensor, Traces]:
        """A relaxed value as a leaf, and the model run at it, with nothing else to learn."""
        leaf = value.detach().requires_grad_()
        given = guide.copy()
        for name, site in sample_sites(guide):
            given.nodes[name] = with_value(site, site["value"].detach())
        given.nodes[self.site] = with_value(given.nodes[self.site], leaf)
        with RelaxMessenger(self.temperature, False, sites=[self.site]):
            return leaf, Traces(run_model(model, given, args, kwargs), given)

    def surrogate(self, runs: list[Any]) -> Tensor:
        """The ELBO, and the logits times their gradient."""
        terms = terms_of(runs, self.max_plate_nesting)
        elbo = terms.elbo(without=[self.site])
        if not torch.is_grad_enabled():
            return elbo
        costs = total_cost(terms, self.site, self.downstream, [self.site])
        per_run = [costs] if self.vectorized else costs.split(1)
        parts = [self._parts(run, cost) for run, cost in zip(runs, per_run, strict=True)]
        eta = self._eta()
        learned = [self.combine(p, eta, run) for p, run in zip(parts, runs, strict=True)]
        for p in parts:
            self.state.covariance.update(p.score * p.control)  # type: ignore[operator, union-attr]
            self.state.control.update(p.control.square())  # type: ignore[operator, union-attr]
        return elbo + value_neutral(sum(learned[1:], learned[0]) / self.num_particles)

    def combine(self, parts: Parts, eta: Tensor, run: Any) -> Tensor:
        """A scalar whose gradient of the logits is the run's estimate."""
        return ((parts.score + eta * parts.control).detach() * run.coupled.logits).sum()

    def _eta(self) -> Tensor:
        """−E[score · control] / E[control²] of past steps; 1 before the first."""
        covariance: Any = self.state.covariance
        control: Any = self.state.control
        eta = -covariance.mean() / control.mean().clamp(min=1e-12)
        return torch.where(control.weight > 0, eta, 1.0)

    def _parts(self, run: Any, at_draw: Tensor) -> Parts:
        coupled = run.coupled
        (soft, soft_run), (cond, cond_run) = run.soft, run.conditional
        at_soft, at_cond = self._costs(run, soft, soft_run), self._costs(run, cond, cond_run)
        total = torch.stack([cost.sum() for cost in at_soft + at_cond]).sum()
        of_soft, of_cond = torch.autograd.grad(total, (soft, cond))
        leaf, score = coupled.leaf(), coupled.score()
        pulled = (of_soft * coupled.soft(leaf) - of_cond * coupled.conditional(leaf)).sum()
        (through,) = torch.autograd.grad(pulled, leaf)
        per_plate = sum(at_cond[1:], at_cond[0]).detach()
        return Parts(
            score=coupled.beside(at_draw) * score,
            control=through - coupled.beside(per_plate) * score,
        )

    def _costs(self, main: Any, value: Tensor, run: Traces) -> list[Tensor]:
        """The ELBO's terms downstream of the site at a value of it, each (K, plates...)."""
        site, depth = main.guide.nodes[self.site], self.max_plate_nesting
        log_q = linear_log_prob(site["fn"], main.coupled.logits.detach(), value)
        log_q = scale_and_mask(log_q, site["scale"], site["mask"])
        target = plates_of(site)
        found = [
            sum_to(term.scaled(), term.plates, target)
            for name, term in gather([run.model], depth).items()
            if name in self.downstream
        ]
        return [-stacked([log_q], int(depth), self.vectorized), *found]
