"""Clauses about numbers that must not change: copies, orders, precisions, batch sizes.

Shapes: B data.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import pyro
import torch
from torch import Tensor

from inference.contract.subject import Subject, run, sites_of
from inference.densities import data_plate, densities_of, is_local
from inference.elbo.handlers import FixedValues
from inference.elbo.traces import Traces, sample_sites
from inference.sites import is_point
from inference.summed_out import enumerates, over_all_states
from inference.weights import batch_size
from ppl_models.errors import ProgramError
from ppl_models.program import Batch, Program


def _log_weights(
    program: Program, batch: Batch, values: Mapping[str, Tensor] | None = None
) -> tuple[Tensor, Traces]:
    """Log weights (B,) with these latent values, or fresh ones drawn from one seed."""
    torch.manual_seed(1)
    with FixedValues(values or {}):
        traces = run(program, batch)
        if enumerates(traces):
            with program.scope(), torch.no_grad(), pyro.validation_enabled(False):
                traces = over_all_states(traces, program.run_model, (batch,), {})
    return densities_of(traces, batch_size(batch)).log_weights[0], traces


def _values_of(traces: Traces, num_data: int, data: Tensor) -> dict[str, Tensor]:
    """The guide's draws for some of the data, by index; global ones as they are."""
    plate = data_plate(traces.model, num_data)
    values = {}
    for name, site in _draws(traces):
        axis = plate[1] - site["fn"].event_dim
        local = is_local(site, plate)
        values[name] = site["value"].index_select(axis, data) if local else site["value"]
    return values


def _draws(traces: Traces) -> list[tuple[str, Any]]:
    """The guide's sites but points, whose values are no draws: each run has its own."""
    return [(n, s) for n, s in sample_sites(traces.guide) if not is_point(s["fn"])]


def _require_close(ours: Tensor, theirs: Tensor, what: str, tolerance: float = 1e-4) -> None:
    ours, theirs = ours.detach(), theirs.detach()
    if not torch.allclose(ours.double(), theirs.double(), rtol=tolerance, atol=tolerance):
        gap = float((ours.double() - theirs.double()).abs().max())
        raise ProgramError(f"{what} (log weights differ by up to {gap:.3g})")


def check_state_dict(subject: Subject) -> str:
    """Parameters saved and loaded into a fresh copy give the same numbers."""
    program = subject.program
    before, _ = _log_weights(program, subject.batch)
    state = copy.deepcopy(program.state_dict())
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(0.1)
    program.load_state_dict(state)
    after, _ = _log_weights(program, subject.batch)
    _require_close(after, before, "the state dict does not hold all that the program learns")
    return f"{len(state)} tensors make the round trip"


def check_deepcopy(subject: Subject) -> str:
    """A deep copy gives the same numbers and shares nothing that is learned."""
    before, _ = _log_weights(subject.program, subject.batch)
    twin = copy.deepcopy(subject.program)
    theirs, _ = _log_weights(twin, subject.batch)
    _require_close(theirs, before, "a deep copy gives other numbers")
    state = copy.deepcopy(twin.state_dict())
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(0.1)
    after, _ = _log_weights(subject.program, subject.batch)
    twin.load_state_dict(state)
    _require_close(
        after,
        before,
        "changing a deep copy's parameters changes the original; make the networks attributes of a "
        "class with model and guide as its methods",
    )
    return "a copy is independent"


def check_per_datum(subject: Subject) -> str:
    """Permuting batch and latents permutes the log weights: no datum leaks into another."""
    weights, traces = _log_weights(subject.program, subject.batch)
    order = torch.arange(subject.num_data).roll(1)
    values = _values_of(traces, subject.num_data, order)
    permuted = {name: value[order] for name, value in subject.batch.items()}
    theirs, _ = _log_weights(subject.program, permuted, values)
    _require_close(theirs, weights[order], "a datum's log weight depends on the rest of its batch")
    return "log weights are per datum"


def check_precisions(subject: Subject) -> str:
    """The program runs in float64 and agrees with itself in float32."""
    single, traces = _log_weights(subject.program, subject.batch)
    values = {n: _double(s["value"]) for n, s in _draws(traces)}
    batch = {name: _double(value) for name, value in subject.batch.items()}
    program = copy.deepcopy(subject.program).double()
    double, _ = _log_weights(program, batch, values)
    sites = sites_of(run(program, batch).model)
    program.float()  # networks that a copy shares are as they were
    for name, site in sites.items():
        if site["value"].is_floating_point() and site["value"].dtype != torch.float64:
            raise ProgramError(f"in float64, site {name!r} is {site['value'].dtype}")
    _require_close(single, double, "float32 and float64 disagree", tolerance=1e-3)
    return "float32 and float64 agree"


def _double(value: Tensor) -> Tensor:
    return value.double() if value.is_floating_point() else value


def check_batch_sizes(subject: Subject) -> str:
    """A batch of one, and a last batch that is short, give each datum the same number."""
    weights, traces = _log_weights(subject.program, subject.batch)
    for size in (1, subject.num_data - 1):
        values = _values_of(traces, subject.num_data, torch.arange(size))
        batch = {name: value[:size] for name, value in subject.batch.items()}
        theirs, _ = _log_weights(subject.program, batch, values)
        _require_close(theirs, weights[:size], f"a batch of {size} gives other numbers")
    return f"batches of 1 and {subject.num_data - 1} run"
