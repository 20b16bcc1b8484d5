"""The score-function gradient (REINFORCE) of the ELBO.

Shapes: K particles; plates: as in Pyro.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import torch
from torch import Tensor

from inference.elbo.base import Estimator, value_neutral
from inference.elbo.checks import check_densities, check_unmasked
from inference.elbo.handlers import ScoreFunctionMessenger
from inference.elbo.terms import Terms, sum_to, terms_of
from inference.elbo.traces import Traces, run_traces, sample_sites
from inference.sites import is_point
from ppl_models.errors import PplError, UnknownNameError


class ScoreEstimator(Estimator):
    """Base class of estimators that serve sites whose draws carry no gradient.

    Args:
        num_particles: K, draws from the guide per step.
        sites: guide sites that take the score function. ``auto``: those without ``rsample``, or
            all of them if every one has it; the others are pathwise. ``all``, or names.
        vectorize_particles: take them in one pass, through an outermost plate.
        max_plate_nesting: as in Pyro; read off the first run when left out.

    Raises:
        PplError: fewer particles than the estimator needs, or ``sites`` is neither.
    """

    latents: ClassVar[str] = "continuous, discrete"

    def __init__(
        self, num_particles: int = 1, *, sites: Collection[str] | str = "auto", **options: Any
    ) -> None:
        super().__init__(num_particles, **options)
        if isinstance(sites, str) and sites not in ("auto", "all"):
            raise PplError(f"sites must be 'auto', 'all' or a list of names, got {sites!r}")
        self.sites = sites
        self._forced: frozenset[str] | None = frozenset()

    def prepare(self, traces: Traces) -> None:
        """Choose the sites with ``rsample`` that take the score function all the same."""
        super().prepare(traces)
        self._forced = self._choose(traces)
        check_unmasked(traces, self.score_sites(traces), self.name)
        check_densities(traces, self.score_sites(traces), self.name)

    def plan(self) -> tuple[Any, ...]:
        """Also the sites that take the score function."""
        return (*super().plan(), self._forced)

    def _choose(self, traces: Traces) -> frozenset[str] | None:
        """Names of the sites, or None: all."""
        has_rsample = {name: site["fn"].has_rsample for name, site in sample_sites(traces.guide)}
        if self.sites == "all":
            return None
        if self.sites == "auto":
            return None if all(has_rsample.values()) else frozenset()
        for name in self.sites:
            if name not in has_rsample:
                raise UnknownNameError("guide site", name, has_rsample)
        return frozenset(self.sites)

    def score_sites(self, traces: Traces) -> list[str]:
        """The sites of a plain run of the guide that take the score function."""
        return [
            name
            for name, site in sample_sites(traces.guide)
            if not site["fn"].has_rsample
            or ((self._forced is None or name in self._forced) and not is_point(site["fn"]))
        ]

    def run(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Traces:
        """Guide and model, with detached draws at the score-function sites."""
        return run_traces(model, ScoreFunctionMessenger(self._forced)(guide), args, kwargs)

    def terms(self, runs: list[Traces]) -> Terms:
        """The log densities of the particles."""
        return terms_of(runs, self.max_plate_nesting)


class ScoreFunction(ScoreEstimator):
    """E_q[log p(x, z) − log q(z)] by ∇log q(z) · (log p(x, z) − log q(z)).

    The cost that multiplies a site's ∇log q is summed to the site's plates, so that a datum's
    latents pay for this datum alone.

    References:
        Williams: Simple statistical gradient-following algorithms for connectionist
        reinforcement learning, 1992. Ranganath, Gerrish, Blei: Black Box Variational Inference,
        2014, arXiv:1401.0118.
    """

    name: ClassVar[str] = "score_function"
    reference: ClassVar[str] = "Williams 1992; Ranganath et al. 2014, arXiv:1401.0118"

    def surrogate(self, runs: list[Traces]) -> Tensor:
        """The ELBO, and at each score-function site log q times its detached cost."""
        terms = self.terms(runs)
        score = torch.zeros(())
        for site in terms.score_sites():
            cost, mask = self.cost(terms, site), terms.guide[site].mask
            signal = self.signal(terms, site, cost, runs)
            if mask is not None:  # what is masked out has no baseline, for it may cost nothing
                signal = torch.where(mask, signal, cost)
            score = score + (terms.guide[site].score * signal).sum()
        elbo = terms.elbo(without=terms.score_sites())
        return elbo + value_neutral(score / self.num_particles) - self.baseline_loss()

    def cost(self, terms: Terms, site: str) -> Tensor:
        """What a site is credited with: the ELBO's terms, (K, the site's plates), detached."""
        return total_cost(terms, site, [*terms.model], [*terms.guide])

    def signal(self, terms: Terms, site: str, cost: Tensor, runs: list[Traces]) -> Tensor:
        """What multiplies ∇log q: the cost, or its excess over a baseline."""
        return cost

    def baseline_loss(self) -> Tensor | float:
        """Loss that trains a baseline, of value zero."""
        return 0.0


def total_cost(terms: Terms, site: str, model: list[str], guide: list[str]) -> Tensor:
    """The ELBO's terms of these sites, summed to the plates of one, (K, plates...), detached."""
    target = terms.own_plates(site)
    cost = torch.zeros(())
    for sign, found in (
        (1, [terms.model[n] for n in model]),
        (-1, [terms.guide[n] for n in guide]),
    ):
        for term in found:
            cost = cost + sign * sum_to(term.scaled().detach(), term.plates, target)
    return cost
