"""What an estimator refuses, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from pyro.distributions import MaskedDistribution
from pyro.infer import ELBO, TraceEnum_ELBO
from pyro.util import check_model_guide_match, check_site_shape

from inference.elbo.traces import Site, Traces, sample_sites
from inference.sites import family, innermost, is_point
from ppl_models.errors import ProgramError

ELBO_FOR_DISCRETE = (
    "'leave_one_out' (any latents, two particles or more), 'score_function', or 'enumerate' (few "
    "states)"
)
BOUND_FOR_DISCRETE = "'vimco' (the same bound for any latents) or 'reweighted_wake_sleep'"


def check_traces(traces: Traces, max_plate_nesting: float = float("inf")) -> None:
    """Refuse a model and guide that do not match.

    Raises:
        ProgramError: a latent of the model is missing from the guide.
    """
    in_guide = {name for name, _ in sample_sites(traces.guide)}
    for name, site in sample_sites(traces.model):
        if not site["is_observed"] and name not in in_guide:
            raise ProgramError(
                f"latent site {name!r} of the model is not in the guide (which has "
                f"{sorted(in_guide) or 'no sites'}). Sample it in the guide, or observe it "
                "with obs=; a discrete one can be marked infer={'enumerate': 'parallel'} instead, "
                "and summed out by the estimator 'enumerate'."
            )
    check_weights_agree(traces)
    check_model_guide_match(traces.model, traces.guide, max_plate_nesting)
    for trace in traces:
        trace.compute_log_prob()
        for _, site in sample_sites(trace):
            check_site_shape(site, max_plate_nesting)


def check_weights_agree(traces: Traces) -> None:
    """Refuse a latent whose scale (plates, ``poutine.scale``) or mask differs in the guide.

    Raises:
        ProgramError: naming the site; log p and log q would be weighed differently.
    """
    for _, message in weight_disagreements(traces):
        raise ProgramError(message)


def weight_disagreements(traces: Traces) -> Iterator[tuple[str, str]]:
    """Latents whose scale or mask differs in the guide, and the words for it."""
    for name, site in sample_sites(traces.model):
        guide_site = traces.guide.nodes.get(name)
        if site["is_observed"] or guide_site is None:
            continue
        ours, theirs = (torch.as_tensor(s["scale"]).double() for s in (site, guide_site))
        if not torch.equal(ours, theirs):
            numbers = [f"{float(s):g}" if s.dim() == 0 else f"{s}" for s in (ours, theirs)]
            yield (
                name,
                f"latent site {name!r} has scale {numbers[0]} in the model but {numbers[1]} in the "
                "guide, so its KL term would be no KL. Use the same plate sizes (num_data) and "
                "poutine.scale in both.",
            )
        elif (site["mask"] is None) != (guide_site["mask"] is None):
            yield (
                name,
                f"latent site {name!r} is masked in the model or the guide alone; mask it in both",
            )


def require_reparameterized(
    name: str, site: Site, estimator: str, instead: str = ELBO_FOR_DISCRETE
) -> None:
    """Refuse a guide site whose draws carry no gradient.

    Args:
        name: of the site.
        site: of the guide.
        estimator: its name.
        instead: what serves such a site.

    Raises:
        ProgramError: the site's distribution has no ``rsample``.
    """
    if not site["fn"].has_rsample:
        raise ProgramError(
            f"estimator {estimator!r} needs reparameterized draws, but guide site {name!r} is "
            f"{family(site['fn'])}, which has no rsample: its gradient would be silently wrong. "
            f"Use {instead}."
        )


def check_reparameterized(traces: Traces, estimator: str, instead: str = ELBO_FOR_DISCRETE) -> None:
    """Refuse a guide that is not reparameterized throughout.

    Args:
        traces: of the program.
        estimator: its name.
        instead: what serves other sites.

    Raises:
        ProgramError: naming the site.
    """
    for name, site in sample_sites(traces.guide):
        require_reparameterized(name, site, estimator, instead)


def check_densities(traces: Traces, sites: Sequence[str], estimator: str) -> None:
    """Refuse a guide site whose density is not to be had at a value that is handed to it.

    Raises:
        ProgramError: a flow without an inverse, which knows its last draw's density alone.
    """
    for name in sites:
        site = traces.guide.nodes[name]
        try:
            site["fn"].log_prob(site["value"].clone())
        except (NotImplementedError, KeyError) as error:
            raise ProgramError(
                f"estimator {estimator!r} takes densities at values, and guide site {name!r} has "
                "a flow without an inverse, which knows that of its own last draw alone; use "
                "'pathwise'"
            ) from error


def check_no_points(traces: Traces, estimator: str) -> None:
    """Refuse point masses in the guide.

    Raises:
        ProgramError: naming the site.
    """
    for name, site in sample_sites(traces.guide):
        if is_point(site["fn"]):
            raise ProgramError(
                f"estimator {estimator!r} knows the guide by its draws and their densities, and "
                f"guide site {name!r} is a point mass (as in automatic guides and flows by an "
                "auxiliary draw), whose value may depend on the guide's parameters directly; use "
                "'iwae' or 'vimco'"
            )


def check_unmasked(traces: Traces, sites: Sequence[str], estimator: str) -> None:
    """Refuse latents whose distribution carries a mask, which hides how their draws are made.

    Raises:
        ProgramError: naming the site.
    """
    for trace in traces:
        for name, site in sample_sites(trace):
            if name in sites and isinstance(innermost(site["fn"]), MaskedDistribution):
                raise ProgramError(
                    f"estimator {estimator!r} needs the probability of the draw at site {name!r}, "
                    "which a mask inside its distribution (fn.mask) hides; mask it from outside, "
                    "with poutine.mask in model and guide"
                )


def check_no_subsampled_joint(traces: Traces, estimator: str) -> None:
    """Refuse a K-sample bound over latents that stand outside a subsampled plate.

    Raises:
        ProgramError: with a minibatch's scale inside its logarithm it would be no bound.
    """
    sites = [*sample_sites(traces.guide), *sample_sites(traces.model)]
    plates = {n: _plates(s) for n, s in sites if not s["infer"].get("is_auxiliary_loss")}
    for _, site in sample_sites(traces.model):
        for frame in site["cond_indep_stack"]:
            if (frame.full_size or frame.size) == frame.size or not frame.vectorized:
                continue
            outside = [name for name, names in plates.items() if frame.name not in names]
            if outside:
                raise ProgramError(
                    f"estimator {estimator!r} weighs a whole data set at once where a site "
                    f"({outside[0]!r}) stands outside the plate {frame.name!r}; of a minibatch of "
                    "it, its objective would be no bound. Train with one batch of all data, or use "
                    "an estimator of the ELBO, such as 'pathwise' or 'leave_one_out'."
                )


def _plates(site: Site) -> set[str]:
    return {frame.name for frame in site["cond_indep_stack"]}


def require_enumeration(estimator: ELBO) -> None:
    """Refuse an estimator that cannot sum out a latent which the guide leaves out.

    Raises:
        ProgramError: naming one that can.
    """
    if not isinstance(estimator, TraceEnum_ELBO) and not getattr(estimator, "sums_out", False):
        raise ProgramError(
            "the model has enumerated latents, which the guide leaves out; they need an estimator "
            "that sums them out: 'enumerate'"
        )
