"""A program's posterior, and all that belongs to it, as ArviZ takes it.

Shapes: S draws, P draws from the prior, B data.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from inference.diagnostics.arviz_lines import container, open_netcdf
from inference.diagnostics.drawn import Draws
from inference.diagnostics.draws import draw_blocks
from inference.diagnostics.groups import Groups, MemoryGroups, NetcdfGroups, check_path
from inference.diagnostics.prior_draws import PriorDraws, prior_blocks
from inference.diagnostics.source import attributes, batch_of, history, training_size
from inference.weights import batch_size
from ppl_models.errors import PplError, UnknownNameError, describe, whole_number, without_shapes
from ppl_models.program import as_program

GROUPS = (
    "posterior",
    "posterior_predictive",
    "prior",
    "prior_predictive",
    "observed_data",
    "log_likelihood",
    "sample_stats",
    "fit",
)
"""What can be left out, the first apart."""
SAMPLES = ("chain", "draw")


def to_arviz(
    source: object,
    data: Any = None,
    num_samples: int = 1000,
    *,
    prior_samples: int = 100,
    leave_out: Collection[str] = (),
    coords: Mapping[str, Sequence[Any]] | None = None,
    num_data: int | None = None,
    out: str | Path | None = None,
    overwrite: bool = False,
    max_rows: int | None = None,
    seed: int = 0,
) -> Any:
    """Draw from a posterior and give it to ArviZ: ``az.summary``, ``az.plot_ppc``, ``az.loo`` run.

    The groups, their dimensions and what stands in them are in ``docs/diagnostics.md``.

    Args:
        source: any object with ``model`` and ``guide``, the result of a fit, or an open run.
        data: a batch of fields (B, ...), one array (the field ``x``), a split, or a data set (test
            data, but all training data where latents are global); that of the fit or run when
            left out.
        num_samples: S, from the posterior.
        prior_samples: P, data sets of B data from the prior predictive; 0 for none.
        leave_out: groups that are not made, such as ``["posterior_predictive"]``.
        coords: names or numbers along a dimension, such as ``{"data": indices}``; counted from 0
            when left out.
        num_data: size of the training set, for programs that name it; that of the fit or run when
            left out.
        out: netCDF file that it is written to, block by block: for more than fits into memory.
        overwrite: replace that file if it is there.
        max_rows: draws times data that are run at once.
        seed: of the draws; the global random state is left as it was.

    Returns:
        ``arviz.InferenceData`` with ArviZ 0.x, an xarray ``DataTree`` with 1.x; with ``out`` its
        arrays are read from the file when they are used.

    Raises:
        CannotTell: nothing is latent.
        PplError: no data, an unknown group or dimension, coordinates of another length, a name that
            is a dimension's, or a file that exists.
        ProgramError: the sites cannot be told apart by datum, or a site changes its shape.
    """
    program = as_program(source)
    _check_groups(leave_out)
    whole_number("prior_samples", prior_samples, 0)
    if out is not None:
        check_path(Path(out), overwrite)
    batch = batch_of(source, program, data, seed)
    num_data = num_data if num_data is not None else training_size(source)
    attrs = attributes(source, program, batch, num_samples, seed)
    blocks = draw_blocks(
        program,
        batch,
        num_samples,
        predictive="posterior_predictive" not in leave_out,
        num_data=num_data,
        max_rows=max_rows,
        seed=seed,
    )
    first = next(blocks)
    _check_names(first)
    epochs = history(source)
    named = _coords(coords or {}, first, batch_size(batch))
    named["epoch"] = np.array([row.get("epoch", i + 1) for i, row in enumerate(epochs)])
    memory = MemoryGroups(named)
    with (
        nullcontext(memory) if out is None else NetcdfGroups(out, named, attrs, overwrite=overwrite)
    ) as groups:
        wanted = _Wanted(groups, leave_out)
        _put_posterior(wanted, first, blocks, num_samples)
        _put_history(wanted, epochs)
        if prior_samples and not {"prior", "prior_predictive"} <= set(leave_out):
            sites = [*first.local_latents, *first.global_latents, *first.observed]
            drawn = prior_blocks(
                program,
                batch,
                sites,
                list(first.observed),
                prior_samples,
                max_rows=max_rows,
                seed=seed,
            )
            attrs |= _put_prior(wanted, drawn, first, prior_samples)
    return container(memory.datasets(), attrs) if out is None else open_netcdf(Path(out))


class _Wanted:
    """Groups of which some are left out.

    Args:
        groups: where the others go.
        leave_out: names of those.
    """

    def __init__(self, groups: Groups, leave_out: Collection[str]) -> None:
        self.groups, self.leave_out = groups, leave_out
        self._places: dict[tuple[str, str], Any] = {}

    def put(
        self, group: str, name: str, dims: tuple[str, ...], part: Tensor, start: int, total: int
    ) -> None:
        """Draws (K, ...) of a variable, those from ``start`` on of so many."""
        if group in self.leave_out:
            return
        array, key = part.detach().cpu().numpy(), (group, _plain(name))
        if key not in self._places:
            shape = (1, total, *array.shape[1:])
            self._places[key] = self.groups.space(*key, (*SAMPLES, *dims), shape, array.dtype)
        self._places[key][0, start : start + len(array)] = array

    def put_whole(self, group: str, name: str, dims: tuple[str, ...], values: np.ndarray) -> None:
        """A variable that is of no draws."""
        if group not in self.leave_out:
            place = self.groups.space(group, _plain(name), dims, values.shape, values.dtype)
            place[...] = values


def _plain(name: str) -> str:
    return name.replace("/", ".")  # in a file a slash is a group


def _put_posterior(wanted: _Wanted, first: Draws, rest: Iterator[Draws], total: int) -> None:
    """What a run of guide and model gives, and the data."""
    data = (first.plate,)
    for name, value in first.observed.items():
        dims = data + _dims(first, name)
        wanted.put_whole("observed_data", name, dims, value.detach().cpu().numpy())
    block: Draws | None = first
    start = 0
    while block is not None:
        for group, table, lead in (
            ("posterior", block.global_latents, ()),
            ("posterior", block.local_latents, data),
            ("posterior_predictive", block.predictive, data),
        ):
            for name, part in table.items():
                wanted.put(group, name, lead + _dims(first, name), part, start, total)
        for name, part in block.log_likelihood.items():
            wanted.put("log_likelihood", name, data, part, start, total)
        for name, part, dims in (
            ("log_p", block.log_p, data),
            ("log_q", block.log_q, data),
            ("log_p_global", block.global_log_p, ()),
            ("log_q_global", block.global_log_q, ()),
        ):
            if dims or block.global_latents:
                wanted.put("sample_stats", name, dims, part, start, total)
        start += block.num_samples
        block = next(rest, None)


def _dims(draws: Draws, name: str) -> tuple[str, ...]:
    return tuple(_plain(dim) for dim in draws.dims[name])


def _put_prior(
    wanted: _Wanted, blocks: Iterator[PriorDraws], posterior: Draws, total: int
) -> dict[str, str]:
    """What the prior gives, or a note why there is none."""
    start = 0
    while True:
        try:
            block = next(blocks, None)
        except Exception as error:  # whatever a model makes of no data
            if start:
                raise
            reason = str(error) if isinstance(error, PplError) else describe(error)
            return {"prior_left_out": without_shapes(reason)}
        if block is None:
            return {}
        for name, part in block.values.items():
            group = "prior_predictive" if name in posterior.observed else "prior"
            lead = (posterior.plate,) if name in block.local else ()
            dims = lead + tuple(_plain(dim) for dim in block.dims[name])
            wanted.put(group, name, dims, part, start, total)
        start += len(next(iter(block.values.values())))


def _put_history(wanted: _Wanted, rows: list[dict[str, Any]]) -> None:
    """The numbers of every epoch, those that are numbers; NaN where an epoch lacks one."""
    names = dict.fromkeys(name for row in rows for name in row)
    for name in names:
        column = [row.get(name) for row in rows]
        if name == "epoch" or not all(isinstance(v, int | float | None) for v in column):
            continue
        values = np.array([math.nan if v is None else v for v in column], float)
        wanted.put_whole("fit", name, ("epoch",), values)


def _check_groups(leave_out: Collection[str]) -> None:
    if isinstance(leave_out, str):
        raise PplError(f"leave_out must be a list of groups, such as [{leave_out!r}]")
    for name in leave_out:
        if name not in GROUPS[1:]:
            raise UnknownNameError("group to leave out", name, GROUPS[1:])


def _check_names(draws: Draws) -> None:
    """Refuse plates and sites whose names are those of other dimensions.

    Pyro has no site that is named as a plate of the program.
    """
    dims = {draws.plate, *(dim for name in draws.dims for dim in _dims(draws, name))}
    for kind, names, taken in (
        ("plate", dims, {*SAMPLES, "epoch"}),
        ("site", map(_plain, draws.dims), {*SAMPLES, *dims}),
    ):
        for name in names:
            if name in taken:
                shown = ", ".join(sorted({*SAMPLES, *dims}))
                raise PplError(
                    f"a {kind} of the program is named {name!r}, as a dimension is that is not its "
                    f"own (dimensions: {shown}); rename the {kind}, in model and guide"
                )


def _coords(
    given: Mapping[str, Sequence[Any]], draws: Draws, num_data: int
) -> dict[str, np.ndarray]:
    """The coordinates that were given, each fit for its dimension."""
    sizes = {draws.plate: num_data}
    for name in draws.dims:
        value = draws.observed.get(name, draws.local_latents.get(name))
        value = draws.global_latents[name] if value is None else value
        dims = _dims(draws, name)
        sizes |= dict(zip(dims, value.shape[value.dim() - len(dims) :], strict=True))
    found = {}
    for dim, values in given.items():
        if dim not in sizes:
            raise UnknownNameError("dimension in coords", dim, sizes)
        found[dim] = np.asarray(values)
        if found[dim].shape != (sizes[dim],):
            raise PplError(
                f"coords[{dim!r}] must have one entry for each of {sizes[dim]}, got shape "
                f"{found[dim].shape}"
            )
    return found
