"""Simulated data with the latents that made them, and draws of the guide given the data.

Shapes: N simulations, L draws, B of the simulations at a time, Q quantities.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pyro import poutine
from torch import Tensor

from inference.densities import Plate, data_plate, densities_of
from inference.devices import isolated_rng
from inference.diagnostics.amortized import HEAD
from inference.diagnostics.check import CannotTell
from inference.diagnostics.columns import (
    column_names,
    columns_of,
    full_value,
    guided_sites,
    model_given,
    row_axis,
    spread_over,
)
from inference.elbo.traces import Site, run_traces, sample_sites
from inference.sampling import prior_trace
from inference.weights import batch_size, evaluation_mode, repeat, rows_at_once
from ppl_models.errors import PplError
from ppl_models.program import Batch, Program

Statistic = Callable[[Mapping[str, Tensor], Batch], Tensor]
"""Of latents and data (rows, ...): a number a row, (rows,)."""
LOG_JOINT = "log p(x, z)"
ROUNDING = 1e-6
"""Relative; log densities that differ by less are taken as equal."""


@dataclass
class Simulated:
    """Draws from the model: data, and what they were made of."""

    batch: dict[str, Tensor]
    """(N, ...)."""
    trace: poutine.Trace
    """Of the model."""


def simulate(program: Program, num: int, given: Batch | None, seed: int) -> Simulated:
    """Draw latents and data from the model.

    Args:
        program: its model takes ``size``.
        num: N.
        given: fields that the model conditions on, gone through in turn.
        seed: of the draws.

    Raises:
        CannotTell: fields of the data are drawn under other names.
        ProgramError: the model takes no ``size``, or needs a field that is not given.
    """
    index = torch.arange(num)
    fixed = {name: value[index % len(value)] for name, value in (given or {}).items()}
    trace = prior_trace(program, num, fixed or None, seed=seed)
    drawn = {
        name: full_value(site).detach()
        for name, site in sample_sites(trace)
        if name in program.fields
    }
    batch = fixed | drawn
    inferred = [name for name in drawn if name not in fixed and _infers(program, batch, name, seed)]
    batch = {name: value for name, value in batch.items() if name not in inferred}
    optional = program.optional_fields if batch else frozenset()
    missing = [n for n in program.fields if n not in batch and n not in optional]
    if missing:
        sites = ", ".join(repr(name) for name, _ in sample_sites(trace))
        raise CannotTell(
            f"the model draws no site named after the field(s) {', '.join(map(repr, missing))} "
            f"(its sites: {sites}), so simulated data cannot be given to the guide. Name the "
            "observed site as its field, or pass the field in `given`"
        )
    return Simulated(batch, trace)


@torch.no_grad()
def _infers(program: Program, batch: Batch, field: str, seed: int) -> bool:
    """Whether a field that is not given is a latent: the guide samples it, as semi-supervised ones
    do labels, or the model sums it out.
    """
    rest = {name: value[:HEAD] for name, value in batch.items() if name != field}
    if field not in program.optional_fields or not rest:
        return False
    with evaluation_mode(program), isolated_rng(seed), program.scope():
        try:
            traces = run_traces(program.run_model, program.run_guide, (rest,), {})
        except Exception:  # it cannot do without: the default None is of the signature alone
            return False
    summed = traces.model.nodes[field]["infer"].get("enumerate")
    return bool(summed) or any(name == field for name, _ in sample_sites(traces.guide))


@dataclass
class _Runs:
    """True latents and the guide's draws of some simulations, as rows of one run.

    The true ones stand last: (L + 1)·B rows, so that rounding treats all alike.
    """

    program: Program
    batch: Batch
    """(L + 1)·B rows."""
    plate: Plate
    sites: dict[str, Site]
    """With these values."""
    num_draws: int

    def by_draw(self, numbers: Tensor) -> Tensor:
        """(rows, ...) as (L + 1, B, ...)."""
        return numbers.unflatten(0, (self.num_draws + 1, -1))

    def log_joint(self) -> Tensor:
        """Log p(x, z), (rows,)."""
        values = {name: site["value"] for name, site in self.sites.items()}
        traces = model_given(self.program, self.batch, values)
        return densities_of(traces, batch_size(self.batch)).log_weights[0]


def _runs(program: Program, made: Simulated, num_draws: int) -> Iterator[_Runs]:
    """Run the guide on simulations, as many at a time as there is room for."""
    num = batch_size(made.batch)
    size = max(1, rows_at_once(made.batch) // (num_draws + 1))
    for start in range(0, num, size):
        part = {name: value[start : start + size] for name, value in made.batch.items()}
        wide = repeat(part, num_draws)
        traces = run_traces(program.run_model, program.run_guide, (wide,), {})
        plate = data_plate(traces.model, batch_size(wide))
        sites = {}
        for name, site in guided_sites(traces, plate):
            axis = row_axis(site, plate)
            true = full_value(made.trace.nodes[name])
            true = true.narrow(axis, start, batch_size(part)).to(site["value"])
            value = torch.cat([full_value(site), true], axis)
            sites[name] = {"fn": _Shape(value, site), "value": value}
        yield _Runs(program, repeat(part, num_draws + 1), plate, sites, num_draws)


class _Shape:
    """Batch and event of more rows than a distribution was made for."""

    def __init__(self, value: Tensor, site: Site) -> None:
        self.event_shape = site["fn"].event_shape
        self.batch_shape = value.shape[: value.dim() - len(self.event_shape)]


@torch.no_grad()
def ranked(
    program: Program,
    made: Simulated,
    num_draws: int,
    statistics: Mapping[str, Statistic],
    most_dims: int,
    seed: int,
) -> tuple[dict[str, NDArray[np.int64]], dict[str, str], int]:
    """Rank what made the data among the guide's draws; ties are broken at random.

    Args:
        program: amortized.
        made: N simulations.
        num_draws: L.
        statistics: of the user, beside the latents' dimensions and log p(x, z).
        most_dims: of a site.
        seed: of the draws.

    Returns:
        Ranks (N,) by quantity, the site of each, and how many dimensions were left out.

    Raises:
        CannotTell: no latent of the guide is local.
        PplError: a statistic has another shape than (rows,).
    """
    ranks: dict[str, list[Tensor]] = {}
    of_site: dict[str, str] = {}
    left_out = 0
    with evaluation_mode(program), isolated_rng(seed), program.scope():
        for run in _runs(program, made, num_draws):
            if not run.sites:
                raise CannotTell("no latent site stands both in the guide and in the data plate")
            left_out = 0
            for name, site in run.sites.items():
                values = run.by_draw(columns_of(site, run.plate).double())
                names = column_names(name, site, run.plate)
                chosen = spread_over(len(names), most_dims)
                left_out += len(names) - len(chosen)
                for i in chosen:
                    ranks.setdefault(names[i], []).append(_rank(values[..., i]))
                    of_site[names[i]] = name
            for key, numbers in _statistics(run, statistics):
                ranks.setdefault(key, []).append(_rank(run.by_draw(numbers.double()), ROUNDING))
                of_site[key] = key
    return {k: torch.cat(v).numpy() for k, v in ranks.items()}, of_site, left_out


def _statistics(run: _Runs, statistics: Mapping[str, Statistic]) -> Iterator[tuple[str, Tensor]]:
    yield LOG_JOINT, run.log_joint()
    values = {name: site["value"] for name, site in run.sites.items()}
    for name, statistic in statistics.items():
        numbers: Any = statistic(values, run.batch)
        if getattr(numbers, "shape", None) != (batch_size(run.batch),):
            raise PplError(
                f"the statistic {name!r} must give a tensor ({batch_size(run.batch)},), one number "
                f"a row of latents and data, got {getattr(numbers, 'shape', type(numbers))}"
            )
        yield name, numbers


def _rank(values: Tensor, rounding: float = 0.0) -> Tensor:
    """Of the last of L + 1 values among the others, (L + 1, B) -> (B,)."""
    draws, true = values[:-1], values[-1]
    slack = rounding * true.abs().clamp_min(1.0)
    below, near = draws < true - slack, (draws - true).abs() <= slack
    ties = near.sum(0)
    broken = (torch.rand(len(true), dtype=torch.float64, device=true.device) * (ties + 1)).floor()
    return (below.sum(0) + broken.long().clamp_max(ties)).cpu()


def check_statistics(statistics: Mapping[str, Any]) -> None:
    """Refuse what is no function.

    Raises:
        PplError: a name that is taken, or not callable.
    """
    for name, statistic in statistics.items():
        if name == LOG_JOINT:
            raise PplError(f"{name!r} is computed anyway; give the statistic another name")
        if not callable(statistic):
            raise PplError(f"the statistic {name!r} must be a function of (latents, batch)")
