"""What the latents of each datum carry: rates by dimension, mutual information, collapse.

The rate of a site is what its codes tell of which datum they are of (mutual information) and how
far the codes of all data lie from the prior. A dimension whose posterior is the prior for every
datum is dead; a site in which all are dead has collapsed.

Shapes: B data, D latent dimensions of a site (of all its plates within a datum), K draws.

References:
    Hoffman, Johnson: ELBO surgery, NeurIPS workshop 2016.
    Burda, Grosse, Salakhutdinov: Importance Weighted Autoencoders, 2016, arXiv:1509.00519 (active
    units).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import kl_divergence

from inference.aggregate import AggregatedPosterior, aggregated_posterior
from inference.collapse import COLLAPSED_RATE
from inference.densities import data_plate, densities_of, stack
from inference.devices import isolated_rng
from inference.diagnostics.check import CannotTell, Check
from inference.diagnostics.weighing import no_latents, refuse_points
from inference.elbo.traces import Site, Traces, sample_sites
from inference.evaluation import ACTIVE_VARIANCE
from inference.plotting.posterior_checks import dimension_figure
from inference.sites import innermost, is_point, known_mean
from inference.summed_out import run_summed
from inference.weights import batch_size, evaluation_mode
from ppl_models.errors import PplError, whole_number
from ppl_models.program import Batch, Program, as_program

DEAD_KL = 0.01
"""Nats per datum below which a dimension is dead, where the guide's mean is not known."""
AT_THE_CAP = 0.9
"""Share of log B above which a mutual information says only that B is small."""
NUM_DRAWS = 8
"""K."""
MOST_DATA = 2000
"""Of which the codes are compared with one another; the first of more."""


@dataclass(frozen=True)
class SiteSurgery:
    """One local latent site; nats per datum."""

    site: str
    rate: float
    """KL(q(z | x) ‖ p(z)), mean over data; by formula where there is one."""
    kl: np.ndarray | None
    """By dimension, (D,); None where the site's densities do not fall apart by dimension."""
    variance_of_means: np.ndarray | None
    """Var_x E_q[z], (D,); None where the guide does not tell its mean."""
    aggregated: AggregatedPosterior | None
    """Codes of all data against the prior; None where :func:`aggregated_posterior` refuses."""
    why_not: str
    """Its reason."""

    @property
    def dead(self) -> np.ndarray | None:
        """Dimensions out of use, (D,) bool, or None: not known."""
        if self.variance_of_means is not None:
            return self.variance_of_means <= ACTIVE_VARIANCE
        return None if self.kl is None else self.kl < DEAD_KL

    @property
    def collapsed(self) -> bool:
        """Whether the site tells next to nothing of a datum."""
        return self.rate < COLLAPSED_RATE


@dataclass(frozen=True)
class Surgery:
    """The local latent sites of a program on some data."""

    sites: Mapping[str, SiteSurgery]
    num_data: int

    def checks(self) -> list[Check]:
        """``posterior_collapse``, ``mutual_information`` and ``aggregated_posterior`` by site."""
        found = []
        for site in self.sites.values():
            found.append(_collapse(site))
            if site.aggregated is not None and not site.collapsed:
                found += _of_aggregate(site, site.aggregated, self.num_data)
        return found

    def figures(self) -> dict[str, Figure]:
        """KL by dimension, where dimensions fall apart and it is finite."""
        shown = {
            name: site
            for name, site in self.sites.items()
            if site.kl is not None and site.dead is not None and np.isfinite(site.kl).all()
        }
        if not shown:
            return {}
        kl = {name: site.kl for name, site in shown.items() if site.kl is not None}
        dead = {name: site.dead for name, site in shown.items() if site.dead is not None}
        return {"latent_dimensions": dimension_figure(kl, dead)}


def _collapse(site: SiteSurgery) -> Check:
    dead = site.dead
    count = None if dead is None else int(dead.sum())
    numbers: dict[str, Any] = {"rate": site.rate, "dead_dimensions": count}
    if dead is not None:
        numbers |= {"dimensions": len(dead), "active_units": len(dead) - int(dead.sum())}
    if site.kl is not None:
        numbers["kl"] = [round(float(v), 6) for v in site.kl]
    name = f"posterior_collapse[{site.site}]"
    by = (
        f"mean varies by {ACTIVE_VARIANCE:g} or less"
        if site.variance_of_means is not None
        else (f"KL below {DEAD_KL:g}")
    )
    dims = "" if dead is None else f"; {count} of its {len(dead)} dimensions are dead ({by})"
    if site.collapsed:
        text = (
            f"Posterior collapse: {site.site} has a rate of {site.rate:.3f} nats per datum{dims}. "
            "Its posterior is all but the prior, so it tells next to nothing of a datum. Warm up "
            "the KL term, use free bits, or a weaker decoder."
        )
        return Check(name, "bad", text, site.rate, COLLAPSED_RATE, numbers)
    text = f"{site.site} has a rate of {site.rate:.2f} nats per datum{dims}."
    if not math.isfinite(site.rate):
        text += " The guide draws what the prior makes impossible: compare their supports."
        return Check(name, "bad", text, site.rate, COLLAPSED_RATE, numbers)
    if count:
        text += " The dead ones tell next to nothing of a datum: fewer would do, or use free bits."
    return Check(name, "warning" if count else "ok", text, site.rate, COLLAPSED_RATE, numbers)


def _of_aggregate(site: SiteSurgery, found: AggregatedPosterior, num_data: int) -> list[Check]:
    cap, checks = math.log(num_data), []
    mutual = found.mutual_information
    if mutual is not None:
        name = f"mutual_information[{site.site}]"
        text = f"{site.site} tells {mutual:.2f} nats of which of {num_data} data it is of"
        numbers = {"cap": cap, "marginal_kl": found.marginal_kl}
        if mutual > AT_THE_CAP * cap:
            text = (
                f"Cannot tell, because {text}, near the most that so many data allow "
                f"({cap:.2f}): it is that or more. Give more data."
            )
            checks.append(Check(name, "cannot tell", text, mutual, cap, numbers))
        else:
            text += f", of a rate of {site.rate:.2f}."
            checks.append(Check(name, "ok", text, mutual, cap, numbers))
    off = found.mmd > found.mmd_of_chance
    text = (
        f"MMD² of the codes of all data and the prior {found.mmd:.2g}, by chance below "
        f"{found.mmd_of_chance:.2g} in 95 of 100 cases. "
    )
    text += (
        "Draws from the prior are not where codes of data lie, so samples are worse than "
        "reconstructions: learn the prior, or train with a larger weight of the rate."
        if off
        else "Codes of the data lie as the prior draws them."
    )
    numbers = {"gaussian_kl": found.gaussian_kl, "marginal_kl": found.marginal_kl}
    name = f"aggregated_posterior[{site.site}]"
    verdict = "warning" if off else "ok"
    checks.append(Check(name, verdict, text, found.mmd, found.mmd_of_chance, numbers))
    return checks


def elbo_surgery(
    program: object, batch: Batch, *, num_draws: int = NUM_DRAWS, seed: int = 0
) -> Surgery:
    """Take the rate of every local latent site apart.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (B, ...), some hundred data; of more than 2,000 the first.
        num_draws: K of the rates, where they have no formula.
        seed: of the draws.

    Raises:
        CannotTell: all latents are global, or the guide is a point.
        PplError: fewer than three data, or the program has no latents.
    """
    program = as_program(program)
    whole_number("num_draws", num_draws)
    batch = {name: value[:MOST_DATA] for name, value in batch.items()}
    if batch_size(batch) < 3:
        raise PplError(f"at least 3 data are needed, got {batch_size(batch)}")
    with evaluation_mode(program), isolated_rng(seed, "surgery"), torch.no_grad():
        refuse_points(program, batch)
    runs = _runs(program, batch, num_draws, seed)
    with torch.no_grad():
        rates = stack([densities_of(run, batch_size(batch)) for run in runs]).kl
    if not rates:
        raise PplError(no_latents(program))
    sites = {
        name: _site(program, batch, name, float(rate.double().mean()), runs, seed)
        for name, rate in rates.items()
        if rate.dim() == 2 and not _is_function(name, runs[0])
    }
    if not sites:
        raise CannotTell(
            f"all latents ({', '.join(rates)}) are global: they belong to no datum, so there "
            "is no code of a datum to take apart"
        )
    return Surgery(sites=sites, num_data=batch_size(batch))


def _is_function(name: str, run: Traces) -> bool:
    """Whether a site is a function of other latents (a code's vector), and none of its own."""
    return name in run.model.nodes and is_point(run.model.nodes[name]["fn"])


def _runs(program: Program, batch: Batch, num: int, seed: int) -> list[Traces]:
    """Runs of guide and model with latents that are summed out in all their states."""
    with (
        evaluation_mode(program),
        isolated_rng(seed, "surgery"),
        program.scope(),
        torch.no_grad(),
    ):
        return [run_summed(program, batch, {"num_data": None}) for _ in range(num)]


def _site(
    program: Program, batch: Batch, name: str, rate: float, runs: list[Traces], seed: int
) -> SiteSurgery:
    kl, means = _dimensions(name, runs, batch_size(batch))
    found, why = None, ""
    try:
        if any(name not in dict(sample_sites(trace)) for trace in runs[0]):
            raise CannotTell(f"{name!r} is not a site of both model and guide")
        found = aggregated_posterior(program, batch, site=name, seed=seed)
    except (PplError, NotImplementedError) as error:  # a flow without an inverse is the latter
        why = str(error)
    return SiteSurgery(
        site=name,
        rate=rate if kl is None else float(kl.sum()),
        kl=None if kl is None else kl.double().cpu().numpy(),
        variance_of_means=None if means is None else means.double().cpu().numpy(),
        aggregated=found,
        why_not=why,
    )


@torch.no_grad()
def _dimensions(name: str, runs: list[Traces], rows: int) -> tuple[Tensor | None, Tensor | None]:
    """KL and variance of the guide's means by dimension, (D,) each, or None.

    Where the means depend on other draws, what these draws add to the variance is taken off.
    """
    if any(name not in dict(sample_sites(trace)) for trace in runs[0]):
        return None, None
    plate = data_plate(runs[0].model, rows)
    auxiliary = any(n not in runs[0].model.nodes for n, _ in sample_sites(runs[0].guide))
    kls, means = [], []
    for run in runs:
        q, p = run.guide.nodes[name], run.model.nodes[name]
        if auxiliary or is_point(p["fn"]):
            return None, None
        kls.append(_by_dimension(q, _elementwise_kl(q, p), plate))
        means.append(_by_dimension(q, known_mean(q["fn"]), plate))
    kl, mean = (_mean_of(parts) for parts in (kls, means))
    if mean is None or bool(mean.isnan().any()):
        return None if kl is None else kl.mean(0), None
    chance = torch.stack([m for m in means if m is not None]).var(0, unbiased=True).mean(0)
    variance = mean.var(0) - (chance / len(runs) if len(runs) > 1 else 0.0)
    return None if kl is None else kl.mean(0), variance.clamp_min(0.0)


def _mean_of(parts: list[Tensor | None]) -> Tensor | None:
    known = [part for part in parts if part is not None]
    return torch.stack(known).mean(0) if len(known) == len(parts) else None


def _by_dimension(site: Site, value: Tensor | None, plate: tuple[str, int]) -> Tensor | None:
    """A value of every element of a site as (B, D)."""
    fn = site["fn"]
    if value is None or not value.is_floating_point():
        return None
    whole = value.broadcast_to(fn.batch_shape + fn.event_shape)
    return (
        whole.movedim(plate[1] - len(fn.event_shape), 0).flatten(1)
        if whole.dim() > 1
        else (whole.unsqueeze(1))
    )


def _elementwise_kl(guide: Site, model: Site) -> Tensor | None:
    """KL of every element, by formula or at the draw; None where elements depend on another."""
    q, p = innermost(guide["fn"]), innermost(model["fn"])
    if guide["mask"] is not None or model["mask"] is not None or q.event_shape or p.event_shape:
        return None
    try:
        return kl_divergence(q, p)
    except NotImplementedError:
        value = guide["value"]
        return q.log_prob(value) - p.log_prob(value)
