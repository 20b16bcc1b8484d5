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
from inference.elbo.traces import (
    PARTICLES,
    Traces,
    log_prob_of,
    run_traces,
    sample_sites,
    with_value,
)
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
    if estimator.vectorize_asked is None:
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
            for particle in (0, 1):
                given = _particle(both.guide, particle, plates)
                alone = run(program.run_model, poutine.replay(program.run_guide, trace=given))
                if not all(
                    _agree(*pair, particle, plates) for pair in zip(both, alone, strict=True)
                ):
                    return False
        except Exception:  # whatever a network makes of one dimension more
            return False
    return True


def _particle(trace: poutine.Trace, particle: int, plates: int) -> poutine.Trace:
    """The trace with one particle's values."""
    given = trace.copy()
    for name, site in sample_sites(trace):
        value, full = site["value"], plates + 1 + len(site["fn"].event_shape)
        given.nodes[name] = with_value(site, value[particle] if value.dim() == full else value)
    return given


def _agree(both: poutine.Trace, alone: poutine.Trace, particle: int, plates: int) -> bool:
    sites = dict(sample_sites(alone))
    return all(
        _close(log_prob_of(site), log_prob_of(sites[name]), particle, plates)
        for name, site in sample_sites(both)
    )


def _close(both: Tensor, alone: Tensor, particle: int, plates: int) -> bool:
    ours = both[particle] if both.dim() == plates + 1 else both
    return ours.shape == alone.shape and torch.allclose(ours, alone, rtol=1e-3, atol=1e-4)
