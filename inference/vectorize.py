"""Whether a program's particles can be drawn in one pass, through an outermost plate."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.util import check_site_shape
from torch import Tensor

from inference.elbo.base import Estimator, forked_rng, plate_depth
from inference.elbo.traces import PARTICLES, Traces, log_prob_of, run_traces, sample_sites
from inference.weights import evaluation_mode
from ppl_models.program import Batch, Program


def choose_vectorization(
    estimator: Estimator, program: Program, batch: Batch, traces: Traces, num_data: int | None
) -> None:
    """Draw an estimator's particles in one pass, if it leaves that open and the program allows it.

    Args:
        estimator: is changed.
        program: primed: all its parameters exist.
        batch: a few data.
        traces: of the program on them.
        num_data: size of the training set.
    """
    if estimator.vectorize_particles is None:
        estimator.vectorize_particles = estimator.num_particles > 1 and can_vectorize(
            program, batch, num_data, plate_depth(traces)
        )


def can_vectorize(program: Program, batch: Batch, num_data: int | None, plates: int) -> bool:
    """Try it: two particles in a plate must have the densities that each has by itself.

    Networks that take one batch dimension (convolutions, flattening) may fail in a plate, or,
    worse, give other numbers.

    Args:
        program: primed: all its parameters exist.
        batch: a few data, two or more.
        num_data: size of the training set.
        plates: depth of the program's own.
    """
    over_particles = pyro.plate(PARTICLES, 2, dim=-plates - 1)

    def run(model: Callable[..., Any], guide: Callable[..., Any]) -> Traces:
        return run_traces(model, guide, (batch,), {"num_data": num_data})

    with forked_rng(), torch.no_grad(), evaluation_mode(program), program.scope():
        try:
            both = run(over_particles(program.run_model), over_particles(program.run_guide))
            for trace in both:
                trace.compute_log_prob()
                for _, site in sample_sites(trace):
                    check_site_shape(site, plates + 1)
        except Exception:  # whatever a network makes of one dimension more
            return False
        first = _particle(both.guide, plates)
        alone = run(program.run_model, poutine.replay(program.run_guide, trace=first))
    return all(_agree(*pair, plates) for pair in zip(both, alone, strict=True))


def _particle(trace: poutine.Trace, plates: int) -> poutine.Trace:
    """The trace with the first particle's values."""
    first = trace.copy()
    for name, site in sample_sites(trace):
        value, full = site["value"], plates + 1 + len(site["fn"].event_shape)
        chosen = value[0] if value.dim() == full else value
        first.nodes[name] = dict(site) | {"value": chosen}
    return first


def _agree(both: poutine.Trace, alone: poutine.Trace, plates: int) -> bool:
    sites = dict(sample_sites(alone))
    return all(
        _close(log_prob_of(site), log_prob_of(sites[name]), plates)
        for name, site in sample_sites(both)
    )


def _close(both: Tensor, alone: Tensor, plates: int) -> bool:
    first = both[0] if both.dim() == plates + 1 else both
    return first.shape == alone.shape and torch.allclose(first, alone, rtol=1e-3, atol=1e-4)
