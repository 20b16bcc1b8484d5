"""Whether a guide has an answer to other data than those that it was fitted to."""

from __future__ import annotations

import torch
from pyro import poutine
from pyro.infer.autoguide import AutoGuide

from inference.densities import has_global_latents
from inference.devices import isolated_rng
from inference.diagnostics.check import CannotTell
from inference.elbo.traces import Traces, log_prob_of, run_traces, sample_sites
from inference.sites import is_point
from inference.weights import batch_size
from ppl_models.errors import PplError, without_shapes
from ppl_models.program import Batch, Program

HEAD = 8
"""Data that are enough to see it."""


def has_autoguide(program: Program) -> bool:
    """Whether the guide is one of Pyro's, whose parameters belong to its data."""
    return any(isinstance(module, AutoGuide) for module in program.modules())


@torch.no_grad()
def refusal_of(program: Program, batch: Batch) -> str | None:
    """What the guide's run on a batch failed by; None where it ran.

    A guide with a row of parameters for each datum runs on as many data alone.

    Args:
        program: in its scope.
        batch: other data than those that it was fitted to, or these many times over.

    Raises:
        PplError: what the program itself has to say.
    """
    try:
        with isolated_rng(0):
            poutine.trace(program.run_guide).get_trace(batch)
    except PplError:
        raise
    except Exception as error:
        first = without_shapes(str(error)).splitlines()[:1]
        return ": ".join([type(error).__name__, *first])
    return None


def check_amortized(program: Program, batch: Batch, seed: int) -> None:
    """Refuse a guide that has no answer to new data.

    Raises:
        CannotTell: its latents are global, or belong to the data that it was fitted to, or it is a
            point.
    """
    remedy = (
        "it would have to be fitted again to every simulation. Fit it to a few simulated data "
        "sets yourself, or compare it with NUTS (`against_nuts`) and by its Pareto k"
    )
    if has_autoguide(program):
        raise CannotTell(
            "the guide is an autoguide: its parameters belong to the data that it was fitted to, "
            f"and {remedy}"
        )
    head = {name: value[:HEAD] for name, value in batch.items()}
    turned = {name: value.roll(1, 0) for name, value in head.items()}
    refusal = refusal_of(program, head)
    if refusal is not None:
        raise CannotTell(
            f"the guide fails on new data ({refusal}), as one does whose parameters belong to the "
            f"data that it was fitted to; such a guide is not amortized, and {remedy}"
        )
    values = []
    for data in (head, turned):
        with isolated_rng(seed):
            traces = run_traces(program.run_model, program.run_guide, (data,), {})
        sites = dict(sample_sites(traces.guide))
        values.append({n: (site["value"], log_prob_of(site)) for n, site in sites.items()})
    if not values[0]:
        raise CannotTell(
            "the guide samples nothing: latents that are summed out have their exact posterior, "
            "and there is no approximation to calibrate"
        )
    if has_global_latents(traces, batch_size(head)):
        raise CannotTell(
            f"the guide has latents outside the data plate; it is not amortized, and {remedy}"
        )
    _check_spread(traces)
    same = (map(torch.equal, values[0][name], values[1][name]) for name in values[0])
    if all(all(pair) for pair in same):
        raise CannotTell(
            "the guide draws the same latents whatever the data are; it is not amortized, and "
            f"{remedy}"
        )


def _check_spread(traces: Traces) -> None:
    """Refuse a guide that is a point, unless it is one at a draw of its own.

    Raises:
        CannotTell: naming the site.
    """
    model = dict(sample_sites(traces.model))
    guide = dict(sample_sites(traces.guide))
    if not set(guide) <= set(model):
        return
    for name, site in guide.items():
        if is_point(site["fn"]) and not is_point(model[name]["fn"]):
            raise CannotTell(
                f"the guide is a point at {name!r}: all of its draws are equal, and it is no "
                "posterior whose width could be right or wrong"
            )
