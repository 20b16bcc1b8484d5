"""DisARM: antithetic pairs of draws for Bernoulli latents."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from torch import Tensor

from inference.elbo.base import Estimator, value_neutral
from inference.elbo.rao_blackwellized import downstream
from inference.elbo.relaxation import discrete_sites, logits_of, noise_like
from inference.elbo.score import total_cost
from inference.elbo.terms import stacked, terms_of
from inference.elbo.traces import Traces, run_model, run_traces, sample_sites, with_value
from inference.sites import family, innermost
from ppl_models.errors import ProgramError

_BERNOULLI = torch.distributions.Bernoulli


class AntitheticDraws(Messenger):
    """Draws Bernoulli latents by a uniform u, and keeps what 1 − u would have given."""

    def __init__(self) -> None:
        super().__init__()
        self.mirrored: dict[str, Tensor] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["done"] or not isinstance(innermost(msg["fn"]), _BERNOULLI):
            return
        logits = logits_of(msg["fn"]).detach()
        uniform, on = noise_like(logits), logits.sigmoid()
        msg["value"] = (1 - uniform < on).to(logits.dtype)
        self.mirrored[msg["name"]] = (uniform < on).to(logits.dtype)
        msg["done"] = True


class Pair(Traces):
    """A run, and for each Bernoulli site one that branches off to its mirrored draw."""

    branches: dict[str, Traces]


class DisARM(Estimator):
    """The ELBO with ½ (f(b) − f(b̃)) (b − b̃) σ(|α|) as the gradient of each Bernoulli's logits α.

    b and b̃ are antithetic draws, f the ELBO's terms downstream of the site. A site costs one
    more run of the model (and of the guide, if it draws further sites after it: there the
    guide must be without noise of its own, such as dropout). Other sites must be reparameterized.

    References:
        Dong, Mnih, Tucker: DisARM: An Antithetic Gradient Estimator for Binary Latent Variables,
        2020, arXiv:2006.10680. Yin, Ren, Zhou: Probabilistic Best Subset Selection via
        Gradient-Based Optimization, 2020, arXiv:2006.06448.
    """

    name: ClassVar[str] = "disarm"
    latents: ClassVar[str] = "Bernoulli (others pathwise)"
    reference: ClassVar[str] = "Dong et al. 2020, arXiv:2006.10680"

    def check(self, traces: Traces) -> None:
        """Refuse discrete sites that are not Bernoulli."""
        found = discrete_sites(traces)
        for name, site in found.items():
            if not isinstance(innermost(site["fn"]), _BERNOULLI):
                raise ProgramError(
                    f"estimator {self.name!r} serves Bernoulli sites, but guide site {name!r} is "
                    f"{family(site['fn'])}; use 'leave_one_out'"
                )
        if not found:
            raise ProgramError(
                f"estimator {self.name!r} serves Bernoulli latents, and the guide has none; use "
                "'pathwise'"
            )

    def run(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Pair:
        """The run and its branches."""
        with AntitheticDraws() as draws:
            main = Pair(*run_traces(model, guide, args, kwargs))
        main.branches = {
            name: _branch(main.guide, name, value, model, guide, args, kwargs)
            for name, value in draws.mirrored.items()
        }
        return main

    def surrogate(self, runs: list[Any]) -> Tensor:
        """The mean ELBO of runs and branches, and the pairs' gradient."""
        terms, names = terms_of(runs, self.max_plate_nesting), list(runs[0].branches)
        elbos, score = [terms.elbo(without=names)], torch.zeros(())
        for name in names:
            branch = terms_of([r.branches[name] for r in runs], self.max_plate_nesting)
            if branch.model.keys() != terms.model.keys():
                raise ProgramError(
                    f"estimator {self.name!r} compares a run with one in which {name!r} has "
                    "another value, and the program draws other sites there; use 'leave_one_out'"
                )
            elbos.append(branch.elbo(without=names))
            model_sites, guide_sites = downstream(terms, name)
            gap = total_cost(terms, name, model_sites, guide_sites)
            gap = gap - total_cost(branch, name, model_sites, guide_sites)
            pairs = [_pair_weight(r, name) for r in runs]
            weight = stacked(pairs, int(self.max_plate_nesting), self.vectorized)
            score = score + 0.5 * (gap * weight).sum()
        elbo = sum(elbos[1:], elbos[0]) / len(elbos)
        return elbo + value_neutral(score / self.num_particles)


def _pair_weight(run: Pair, name: str) -> Tensor:
    """Σ over a site's event of (b − b̃) σ(|α|) · α, where α alone has a gradient, (batch...)."""
    site, mirrored = run.guide.nodes[name], run.branches[name].guide.nodes[name]["value"]
    logits = logits_of(site["fn"])
    weight = ((site["value"] - mirrored) * logits.abs().sigmoid()).detach() * logits
    dims = tuple(range(-len(site["fn"].event_shape), 0))
    return weight.sum(dims) if dims else weight


def _branch(
    trace: poutine.Trace, name: str, value: Tensor, model: Any, guide: Any, args: Any, kwargs: Any
) -> Traces:
    """The run with one site's value changed, and what comes after it drawn anew."""
    order = [n for n, _ in sample_sites(trace)]
    after = set(order[order.index(name) + 1 :])
    given = trace.copy()
    given.nodes[name] = with_value(given.nodes[name], value)
    if after:
        for later in after:
            given.remove_node(later)
        replayed = poutine.replay(guide, trace=given)
        given = poutine.trace(replayed).get_trace(*args, **kwargs)
    return Traces(run_model(model, given, args, kwargs), given)
