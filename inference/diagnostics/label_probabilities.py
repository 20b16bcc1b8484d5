"""p(state | x) of a program's discrete latent, for every datum.

Shapes: B data, K states, S draws of the other latents.
"""

from __future__ import annotations

import torch
from pyro import poutine
from torch import Tensor

from inference.densities import Plate, data_plate, densities_of, is_local
from inference.diagnostics.check import CannotTell
from inference.elbo.states import num_states
from inference.elbo.traces import Site, Traces, run_model, run_traces, sample_sites
from inference.sites import family
from inference.summed_out import enumerates, over_all_states
from inference.weights import batch_size
from ppl_models.errors import PplError, UnknownNameError
from ppl_models.program import Batch, Program


def discrete_sites(traces: Traces, plate: Plate) -> dict[str, Site]:
    """Local latents with finitely many states, of the guide or summed out."""
    both = dict(sample_sites(traces.model)) | dict(sample_sites(traces.guide))
    observed = {name for name, site in sample_sites(traces.model) if site["is_observed"]}
    return {
        name: site
        for name, site in both.items()
        if name not in observed and is_local(site, plate) and num_states(site) is not None
    }


def state_probabilities(
    program: Program, batch: Batch, site: str | None, labels: str, num_draws: int
) -> tuple[str, Tensor]:
    """Which site it is of, and p(state | x), (B, K): averaged over S draws of other latents.

    Args:
        program: in its scope.
        batch: fields (B, ...), without the labels.
        site: a discrete latent; may be left out if it is named as the labels, or the only one.
        labels: name of the field of labels.
        num_draws: S.

    Raises:
        CannotTell: there is no such latent, or it is no single number a datum.
        PplError: which latent is meant is not said.
        UnknownNameError: no such site.
    """
    traces = run_traces(program.run_model, program.run_guide, (batch,), {})
    plate = data_plate(traces.model, batch_size(batch))
    sites = discrete_sites(traces, plate)
    name = _chosen(sites, site, labels)
    _check_single(name, sites[name], batch_size(batch))
    others = [n for n, _ in sample_sites(traces.guide) if n != name]
    found = []
    turns = num_draws if others else 1
    for turn in range(turns):
        if turn:
            traces = run_traces(program.run_model, program.run_guide, (batch,), {})
        if name in dict(sample_sites(traces.guide)):
            found.append(_of_guide(traces.guide.nodes[name]))
        else:
            found.append(_summed_out(program, batch, traces, name))
    return name, torch.stack(found).mean(0)


def _chosen(sites: dict[str, Site], site: str | None, labels: str) -> str:
    if not sites:
        raise CannotTell("the program has no discrete latent with finitely many states")
    if site is not None and site not in sites:
        raise UnknownNameError("discrete latent site", site, sites)
    if site is None and labels not in sites and len(sites) > 1:
        raise PplError(f"which discrete latent? Give `site`, one of: {', '.join(sites)}")
    return site or (labels if labels in sites else next(iter(sites)))


def _check_single(name: str, site: Site, rows: int) -> None:
    fn = site["fn"]
    if fn.batch_shape.numel() != rows or not fn.has_enumerate_support:
        raise CannotTell(
            f"the latent {name!r} ({family(fn)}, batch {tuple(fn.batch_shape)}, event "
            f"{tuple(fn.event_shape)}) is several discrete numbers a datum; a label is one"
        )


def _of_guide(site: Site) -> Tensor:
    """(B, K) of the guide's distribution."""
    fn = site["fn"]
    return fn.log_prob(fn.enumerate_support()).exp().flatten(1).T.double()


def _summed_out(program: Program, batch: Batch, traces: Traces, name: str) -> Tensor:
    """The exact posterior given the guide's draws of other latents, (B, K)."""
    found = []
    for state in traces.model.nodes[name]["fn"].enumerate_support():
        model = poutine.condition(program.run_model, data={name: state})
        given = Traces(run_model(model, traces.guide, (batch,), {}), traces.guide)
        if enumerates(given):
            given = over_all_states(given, model, (batch,), {})
        found.append(densities_of(given, batch_size(batch)).log_weights[0])
    return torch.stack(found, 1).double().softmax(1)
