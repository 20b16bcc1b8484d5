"""The clauses of a program's contract; :func:`inference.testing.check_program` runs them.

Each takes a fresh copy of the program and raises :class:`ProgramError` if it is broken.

Shapes: B data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from inference.densities import data_plate, densities_of, is_local
from inference.elbo import AnalyticKL, Enumerate, Estimator, LeaveOneOut
from inference.elbo.handlers import FixedValues
from inference.elbo.traces import Traces, run_traces, sample_sites
from inference.parameters import check_gradients, check_ownership, trainable
from inference.priming import pixel_hint, prime
from inference.sites import family, is_point, known_support
from inference.summed_out import enumerates, over_all_states
from inference.weights import batch_size
from ppl_models.errors import ProgramError
from ppl_models.program import Batch, Program


@dataclass(frozen=True)
class Subject:
    """What a check looks at: a fresh copy of the program, a batch, and one run of it."""

    program: Program
    batch: dict[str, Tensor]
    traces: Traces

    @property
    def num_data(self) -> int:
        """B."""
        return batch_size(self.batch)


def run(program: Program, batch: Batch) -> Traces:
    """Guide and model once, without gradient and without Pyro's validation."""
    options = {"num_data": batch_size(batch)}
    with program.scope(), torch.no_grad(), pyro.validation_enabled(False):
        return run_traces(program.run_model, program.run_guide, (batch,), options)


def _sites(trace: poutine.Trace) -> dict[str, Any]:
    return dict(sample_sites(trace))


def _latents(traces: Traces) -> dict[str, Any]:
    return {n: s for n, s in sample_sites(traces.model) if not s["is_observed"]}


def check_sites(subject: Subject) -> str:
    """Latents of the model are in the guide, and the other way round."""
    model, guide = _sites(subject.traces.model), _sites(subject.traces.guide)
    for name, site in guide.items():
        if name not in model and not site["infer"].get("is_auxiliary"):
            raise ProgramError(
                f"guide site {name!r} is not in the model (which has {sorted(model)}); name it as "
                "the latent it stands for, or mark it infer={'is_auxiliary': True}"
            )
        if site["is_observed"]:
            raise ProgramError(f"guide site {name!r} is observed; guides only sample")
        if name in model and model[name]["is_observed"]:
            raise ProgramError(f"site {name!r} is sampled in the guide but observed in the model")
    observed = [n for n, s in model.items() if s["is_observed"]]
    for name in observed:
        field = next((f for f, v in subject.batch.items() if v is model[name]["value"]), name)
        if field != name:
            raise ProgramError(
                f"site {name!r} observes the field {field!r}; name it {field!r}, for samples and "
                "reconstructions are found by name"
            )
    if not observed:
        raise ProgramError("the model observes nothing: give a sample site obs=x")
    return f"latent {sorted(_latents(subject.traces))}, observed {sorted(observed)}"


def check_plates(subject: Subject) -> str:
    """Every latent stands in the same plates in model and guide; the data plate is there."""
    data_plate(subject.traces.model, subject.num_data)
    guide = _sites(subject.traces.guide)
    for name, site in _latents(subject.traces).items():
        if name not in guide:
            continue  # summed out
        ours, theirs = (
            sorted((f.name, f.dim, f.size) for f in s["cond_indep_stack"] if f.vectorized)
            for s in (site, guide[name])
        )
        if ours != theirs:
            raise ProgramError(
                f"site {name!r} stands in plates {ours} in the model but {theirs} in the guide "
                "(name, dim, size)"
            )
    return "model and guide agree"


def check_shapes(subject: Subject) -> str:
    """A latent's value has the shape that the model's distribution says."""
    for name, site in _sites(subject.traces.model).items():
        expected = site["fn"].shape()
        if tuple(site["value"].shape) != tuple(expected):
            raise ProgramError(
                f"site {name!r} has values of shape {tuple(site['value'].shape)}, but the model's "
                f"distribution has {tuple(expected)} (batch {tuple(site['fn'].batch_shape)}, event "
                f"{tuple(site['fn'].event_shape)})"
            )
    return "values fit their distributions"


def check_supports(subject: Subject) -> str:
    """The guide draws nothing that the model holds impossible."""
    for _ in range(20):
        traces = run(subject.program, subject.batch)
        for name, site in _sites(traces.model).items():
            support = known_support(site["fn"])
            if support is None or bool(support.check(site["value"]).all()):
                continue
            kind = family(site["fn"])
            if site["is_observed"]:
                raise ProgramError(
                    f"the data at site {name!r} are outside the support of the model's {kind}."
                    + pixel_hint(kind)
                )
            raise ProgramError(
                f"site {name!r} takes values outside the support of the model's {kind} "
                f"({support}); a guide over the same support is needed (LogNormal for positive "
                "latents, say)"
            )
    return "values are in the model's supports"


def _estimator(traces: Traces) -> Estimator:
    if enumerates(traces):
        return Enumerate()
    reparameterized = all(site["fn"].has_rsample for _, site in sample_sites(traces.guide))
    return AnalyticKL() if reparameterized else LeaveOneOut(num_particles=2)


def check_every_gradient(subject: Subject) -> str:
    """A gradient reaches every parameter, and the loss depends on no parameter besides."""
    program = subject.program.train()
    estimator = _estimator(subject.traces)
    options = {"num_data": subject.num_data}
    count = len(trainable(program))
    with program.scope():
        loss = estimator.differentiable_loss(
            program.run_model, program.run_guide, subject.batch, **options
        )
        check_ownership(loss, program)
        loss.backward()
    check_gradients(program)
    for name, parameter in program.named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            raise ProgramError(f"the gradient of {name} is not finite")
    return f"a finite gradient reaches all {count} parameters"


def check_prior_predictive(subject: Subject) -> str:
    """The model runs without data, and draws what looks like data."""
    with subject.program.scope(), torch.no_grad():
        trace = poutine.trace(subject.program.draw_prior).get_trace(3)
    drawn = _sites(trace)
    for name, value in subject.batch.items():
        if name in drawn and drawn[name]["value"].shape[1:] != value.shape[1:]:
            raise ProgramError(
                f"the prior predictive draws {name!r} of shape "
                f"{tuple(drawn[name]['value'].shape[1:])}; the data have {tuple(value.shape[1:])}"
            )
        if name in drawn and len(drawn[name]["value"]) != 3:
            raise ProgramError(f"size=3 drew {len(drawn[name]['value'])} of {name!r}")
    return f"draws {sorted(drawn)}"


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


def check_validation(subject: Subject) -> str:
    """Pyro's own validation finds nothing: arguments, shapes against plates, supports."""
    prime(subject.program, subject.batch, subject.num_data)
    return "Pyro's validation passes"


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
    sites = _sites(run(program, batch).model)
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


CHECKS: dict[str, Callable[[Subject], str]] = {
    "sites": check_sites,
    "plates": check_plates,
    "shapes": check_shapes,
    "supports": check_supports,
    "validation": check_validation,
    "gradients": check_every_gradient,
    "prior predictive": check_prior_predictive,
    "state dict": check_state_dict,
    "deepcopy": check_deepcopy,
    "per datum": check_per_datum,
    "precisions": check_precisions,
    "batch sizes": check_batch_sizes,
}
"""The contract, clause by clause."""
