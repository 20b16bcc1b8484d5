"""Draws from the prior of what a posterior is of: latents, and data sets of as many data.

Shapes: S draws, K of them in a block, B data.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from inference.densities import data_plate, is_local
from inference.diagnostics.bits import QuickBits
from inference.diagnostics.layout import Layout, whole_dtype
from inference.elbo.traces import sample_sites
from inference.sampling import prior_trace
from inference.weights import MOST_DRAWN, batch_size, repeat, rows_at_once
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
        generated: fields that are drawn.
        num_samples: S.
        max_rows: draws times data that are run at once.
        seed: of the draws.

    Raises:
        ProgramError: the model takes no ``size``, or needs a field that the batch lacks.
    """
    size = batch_size(batch)
    given = {k: v for k, v in batch.items() if k in program.fields and k not in generated}
    rows = max_rows or rows_at_once(batch, MOST_DRAWN)
    seeds = torch.Generator().manual_seed(seed + 1)  # other draws than the posterior's
    block, done = 1, 0
    while done < num_samples:
        count = min(block, num_samples - done)
        found = _block(program, repeat(given, count), sites, count, size, _next(seeds))
        yield found
        if not set(found.values) - found.local:  # what is shared has one value a run
            block = max(1, rows // size)
        done += count


def _next(seeds: torch.Generator) -> int:
    return int(torch.randint(2**31, (), generator=seeds))


def _block(
    program: Program, given: Batch, sites: Collection[str], count: int, size: int, seed: int
) -> PriorDraws:
    with QuickBits():
        trace = prior_trace(program, count * size, given or None, seed=seed)
    layout = Layout(data_plate(trace, count * size), count)
    found = PriorDraws({}, {}, set())
    for name, site in sample_sites(trace):
        if name in sites:
            dtype = whole_dtype(site["fn"])
            value = site["value"] if dtype is None else site["value"].to(dtype)
            found.values[name] = layout.values(site, value)
            found.dims[name] = layout.dims(site)
            found.local.update([name] if is_local(site, layout.plate) else [])
    return found
