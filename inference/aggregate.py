"""How far the codes of a data set lie from the prior: the aggregated posterior against p(z).

A decoder knows what to make of z where codes of data lie. If q(z) = 1/N Σ_n q(z | x_n) is p(z),
draws from the prior are such places; an autoencoder's codes are somewhere else.

Shapes: N data, D latent.

References:
    Hoffman, Johnson: ELBO surgery, NeurIPS workshop 2016: the rate is the mutual information and
    KL(q(z) ‖ p(z)).
    Tolstikhin, Bousquet, Gelly, Schölkopf: Wasserstein Auto-Encoders, 2018, arXiv:1711.01558: the
    inverse multiquadratic kernel.
    Gretton et al.: A Kernel Two-Sample Test, JMLR 13, 2012.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference.devices import isolated_rng
from inference.elbo.traces import Site, run_traces, sample_sites
from inference.sites import is_point, known_support, masks_of
from inference.weights import batch_size, evaluation_mode
from ppl_models.errors import PplError, ProgramError, UnknownNameError
from ppl_models.program import Batch, as_program

MOST_NUMBERS = 2**20
"""Elements of the densities that are taken at a time."""
PERMUTATIONS = 500


@dataclass(frozen=True)
class AggregatedPosterior:
    """q(z) = 1/N Σ_n q(z | x_n) of one latent site against its prior p(z); nats."""

    site: str
    draws: Tensor
    """One z ~ q(z | x_n) for each datum, (N, D)."""
    prior_draws: Tensor
    """As many from the prior, (N, D)."""
    mean: Tensor
    """Of q(z), (D,)."""
    variance: Tensor
    """Of q(z), (D,)."""
    gaussian_kl: float
    """KL between Gaussians with the moments of the two sets of draws."""
    mmd: float
    """Squared maximum mean discrepancy, unbiased: 0 in expectation where q(z) = p(z)."""
    mmd_of_chance: float
    """What it stays below in 95 of 100 cases where q(z) = p(z)."""
    marginal_kl: float | None
    """KL(q(z) ‖ p(z)), by the mixture over the N data; None of a point guide, which has no
    density. Too large where the mutual information is near log N: give more data."""
    mutual_information: float | None
    """Rate − marginal_kl, at most log N: what z tells of which datum it is of."""

    def __str__(self) -> str:
        shown = {
            "mean of q(z)": f"{float(self.mean.norm()):.3f} from 0",
            "variance of q(z)": f"{float(self.variance.min()):.3f} to "
            f"{float(self.variance.max()):.3f}",
            "KL of the moments": f"{self.gaussian_kl:.3f}",
            "MMD²": f"{self.mmd:.5f} (by chance below {self.mmd_of_chance:.5f})",
            "KL(q(z) ‖ p(z))": None if self.marginal_kl is None else f"{self.marginal_kl:.3f}",
            "mutual information": None
            if self.mutual_information is None
            else f"{self.mutual_information:.3f} of at most {math.log(len(self.draws)):.3f}",
        }
        return "\n".join(f"{k:<20}{v}" for k, v in shown.items() if v is not None)


@torch.no_grad()
def aggregated_posterior(
    program: object, batch: Batch, *, site: str | None = None, seed: int = 0
) -> AggregatedPosterior:
    """Compare the codes of data with the prior.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (N, ...), some hundred data or thousands; memory and time grow with N².
        site: a latent site in the data plate; may be left out if there is one.
        seed: of the draws.

    Returns:
        An :class:`AggregatedPosterior`.

    Raises:
        PplError: fewer than three data; no such site, or several to choose from.
        ProgramError: the site does not stand in the data plate alone, or is discrete.
    """
    program, num_data = as_program(program), batch_size(batch)
    if num_data < 3:
        raise PplError(f"an aggregated posterior needs at least 3 data, got {num_data}")
    with evaluation_mode(program), isolated_rng(seed, "aggregated posterior"), program.scope():
        traces = run_traces(program.run_model, program.run_guide, (batch,), {"num_data": None})
        name = _chosen(dict(sample_sites(traces.guide)), site)
        guide_site, model_site = traces.guide.nodes[name], traces.model.nodes[name]
        _check_local(name, guide_site, num_data)
        _check_counted(name, guide_site, num_data)
        z = guide_site["value"].detach()
        drawn = model_site["fn"].sample()
        marginal, mutual = _information(guide_site, model_site, z)
        ours, theirs = (d.reshape(num_data, -1).double() for d in (z, drawn))
        discrepancy, chance = mmd(ours, theirs)
    return AggregatedPosterior(
        site=name,
        draws=ours,
        prior_draws=theirs,
        mean=ours.mean(0),
        variance=ours.var(0),
        gaussian_kl=_gaussian_kl(ours, theirs),
        mmd=discrepancy,
        mmd_of_chance=chance,
        marginal_kl=marginal,
        mutual_information=mutual,
    )


def _chosen(sites: dict[str, Site], site: str | None) -> str:
    if site is not None and site not in sites:
        raise UnknownNameError("latent site", site, sites)
    if site is None and len(sites) != 1:
        raise PplError(f"which latent site? There are: {', '.join(sites) or 'none'}")
    return site if site is not None else next(iter(sites))


def _check_local(name: str, site: Site, num_data: int) -> None:
    if tuple(site["fn"].batch_shape) != (num_data,):
        raise ProgramError(
            f"site {name!r} has batch shape {tuple(site['fn'].batch_shape)}; an aggregated "
            f"posterior is over a site that stands in the data plate alone, ({num_data},)"
        )
    support = known_support(site["fn"])
    if support is not None and support.is_discrete:
        raise ProgramError(f"site {name!r} is discrete; an aggregated posterior is over numbers")


def _check_counted(name: str, site: Site, num_data: int) -> None:
    """Refuse a site that a mask hides for some data: there it has no posterior."""
    if any(bool(mask.any()) and not bool(mask.all()) for mask in masks_of(site)):
        raise ProgramError(
            f"a mask hides site {name!r} for some of the {num_data} data, and what is hidden has "
            "no posterior; give the data for which it counts"
        )


def _information(guide_site: Site, model_site: Site, z: Tensor) -> tuple[Any, Any]:
    """KL(q(z) ‖ p(z)) and the mutual information, or None and None for a point."""
    if is_point(guide_site["fn"]):
        return None, None
    own = guide_site["fn"].log_prob(guide_site["value"])
    log_q, log_p = (_mixture(s["fn"], z) for s in (guide_site, model_site))
    return float((log_q - log_p).mean()), float((own - log_q).mean())


def _mixture(fn: Any, z: Tensor) -> Tensor:
    """Log 1/N Σ_n fn_n(z_i) for every z_i, (N,)."""
    chunk = max(1, MOST_NUMBERS // z.numel())
    parts = []
    for some in z.split(chunk):
        wide = some.unsqueeze(1).expand(len(some), *z.shape)
        parts.append(fn.log_prob(wide).double().logsumexp(1) - math.log(len(z)))
    return torch.cat(parts)


def _gaussian_kl(ours: Tensor, theirs: Tensor) -> float:
    """KL(N(moments of ours) ‖ N(moments of theirs)); infinite where ours are degenerate."""
    dim = ours.shape[1]
    (mean, cov), (to, scale) = (
        (d.mean(0), torch.cov(d.T).reshape(dim, dim)) for d in (ours, theirs)
    )
    away = mean - to
    inverse = torch.linalg.pinv(scale, hermitian=True)
    trace = (inverse * cov).sum() + away @ inverse @ away
    return float(0.5 * (trace - dim + torch.logdet(scale) - torch.logdet(cov)))


def mmd(ours: Tensor, theirs: Tensor) -> tuple[float, float]:
    """Squared maximum mean discrepancy of two sets of draws, and its 95 % point by permutations.

    Args:
        ours: (N, D).
        theirs: (N, D).
    """
    both = torch.cat([ours, theirs])
    base = 2 * ours.shape[1]
    distances = torch.cdist(both, both).square()
    kernel = torch.stack([base * s / (base * s + distances) for s in (0.1, 1.0, 10.0)]).sum(0)
    kernel.fill_diagonal_(0.0)
    num = len(ours)
    sign = torch.cat([torch.ones(num), -torch.ones(num)]).to(both)
    shuffled = torch.stack([sign[torch.randperm(2 * num)] for _ in range(PERMUTATIONS)], 1)
    signs = torch.cat([sign.unsqueeze(1), shuffled], 1)  # (2N, 1 + permutations)
    # Σ s_i s_j k_ij is the pairs within less the pairs across; each has its own number of pairs.
    total, signed = kernel.sum(), (signs * (kernel @ signs)).sum(0)
    within, across = (total + signed) / 2, (total - signed) / 2
    found = within / (num * (num - 1)) - across / num**2
    return float(found[0]), float(found[1:].quantile(0.95))
