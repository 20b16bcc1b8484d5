"""Draws from the prior of what a posterior is of: latents, and data sets of as many data.

Shapes: S draws, K of them in a block, B data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor

from inference.densities import data_plate, is_local
from inference.diagnostics.bits import QuickBits
from inference.diagnostics.layout import Layout, whole_dtype
from inference.elbo.traces import sample_sites
from inference.sampling import prior_trace
from inference.sites import is_partial
from inference.weights import MOST_DRAWN, batch_size, repeat, rows_at_once
from ppl_models.errors import ProgramError
from ppl_models.program import Batch, Program


@dataclass(frozen=True)
class PriorDraws:
    """A block of them."""

    values: dict[str, Tensor]
    """By site, (K, B, other plates..., event...) or, of a global one, (K, plates..., event...)."""
    dims: dict[str, tuple[str, ...]]
    """By site, names of the dimensions after those of draws and data."""
    local: set[str]
    """Sites in the data plate."""


def prior_blocks(
    program: Program,
    batch: Batch,
    sites: Collection[str],
    generated: Collection[str],
    num_samples: int,
    *,
    max_rows: int | None = None,
    seed: int = 0,
) -> Iterator[PriorDraws]:
    """Draw data sets of the batch's size from the prior predictive, with their latents.

    Args:
        program: its model takes ``size``.
        batch: fields (B, ...); those that the model does not generate are held.
        sites: that are reported.
        generated: observed sites, whose values are drawn.
        num_samples: S.
        max_rows: draws times data that are run at once.
        seed: of the draws.

    Raises:
        ProgramError: the model takes no ``size``, needs a field that the batch lacks, or observes
            a site that it should draw.
    """
    size = batch_size(batch)
    given = _held(program, batch, generated)
    rows = max_rows or rows_at_once(batch, MOST_DRAWN)
    seeds = torch.Generator().manual_seed(seed + 1)  # other draws than the posterior's
    block, done = 1, 0
    while done < num_samples:
        count = min(block, num_samples - done)
        trace = _trace(program, repeat(given, count), generated, count * size, _next(seeds))
        found = _taken(trace, sites, count, count * size)
        yield found
        if not set(found.values) - found.local:  # what is shared has one value a run
            block = max(1, rows // size)
        done += count


def _next(seeds: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=seeds))


def _held(program: Program, batch: Batch, generated: Collection[str]) -> dict[str, Tensor]:
    """Fields that the model conditions on; what it observes, under whatever name, is left to it."""
    given = {k: v for k, v in batch.items() if k in program.fields and k not in generated}
    if set(generated) <= set(batch):
        return given
    trace = prior_trace(program, batch_size(batch), given)
    values = [site["value"] for name, site in sample_sites(trace) if name in generated]
    return {k: v for k, v in given.items() if not any(v is value for value in values)}


def _trace(
    program: Program, given: Batch, generated: Collection[str], rows: int, seed: int
) -> poutine.Trace:
    with QuickBits():
        trace = prior_trace(program, rows, given or None, seed=seed)
    for name, site in sample_sites(trace):
        if name in generated and site["is_observed"] and not is_partial(site["fn"]):
            raise ProgramError(
                f"the model observes its site {name!r} though no field that it generates is given, "
                "so its value is no draw from the prior. Observe a field as it is, "
                "pyro.sample('x', ..., obs=x), and let it be None where there are no data"
            )
    return trace


def _taken(trace: poutine.Trace, sites: Collection[str], count: int, rows: int) -> PriorDraws:
    layout = Layout(data_plate(trace, rows), count)
    found = PriorDraws({}, {}, set())
    for name, site in sample_sites(trace):
        if name in sites:
            dtype = whole_dtype(site["fn"])
            value = site["value"] if dtype is None else site["value"].to(dtype)
            found.values[name] = layout.values(site, value)
            found.dims[name] = layout.dims(site)
            found.local.update([name] if is_local(site, layout.plate) else [])
    return found
