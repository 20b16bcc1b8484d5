"""Draws from a program's posterior, with the log densities of the very same draws.

Shapes: S draws, B data.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

import torch

from inference.devices import rng_state, set_rng_state
from inference.diagnostics.draw_runs import Runs
from inference.diagnostics.drawn import Draws, check_same, named, of_all
from inference.weights import MOST_DRAWN, batch_size, rows_at_once
from ppl_models.errors import whole_number
from ppl_models.program import Batch, as_program


def posterior_draws(
    program: object,
    batch: Batch,
    num_samples: int = 1000,
    *,
    predictive: bool = True,
    num_data: int | None = None,
    max_rows: int | None = None,
    seed: int = 0,
) -> Draws:
    """Draw from the posterior of a program's latents, and new data given them.

    Args:
        program: any object with ``model`` and ``guide``, or the result of a fit.
        batch: fields (B, ...).
        num_samples: S.
        predictive: draw new data too.
        num_data: size of the data set, for programs that name it.
        max_rows: draws times data that are run at once; bounds the memory of a run, at least one
            draw of all data.
        seed: of the draws; the global random state is left as it was.

    Returns:
        All of it in memory; :func:`draw_blocks` gives the same draws piece by piece.

    Raises:
        CannotTell: nothing is latent.
        ProgramError: the sites cannot be told apart by datum, or a site changes its shape.
    """
    blocks = draw_blocks(
        program,
        batch,
        num_samples,
        predictive=predictive,
        num_data=num_data,
        max_rows=max_rows,
        seed=seed,
    )
    first = next(blocks)
    whole = of_all([first], lambda parts: parts[0].new_empty(num_samples, *parts[0].shape[1:]))
    places = dict(named(whole))
    start = 0
    for block in chain([first], blocks):
        for key, part in named(block):
            places[key][start : start + block.num_samples] = part
        start += block.num_samples
    return whole


def draw_blocks(
    program: object,
    batch: Batch,
    num_samples: int = 1000,
    *,
    predictive: bool = True,
    num_data: int | None = None,
    max_rows: int | None = None,
    seed: int = 0,
) -> Iterator[Draws]:
    """The draws of :func:`posterior_draws`, which see, in blocks of at most ``max_rows`` rows.

    Between blocks the program and the random state are as they were.
    """
    whole_number("num_samples", num_samples)
    runs = Runs(as_program(program), batch, num_data, predictive)
    rows = whole_number(
        "max_rows", rows_at_once(batch, MOST_DRAWN) if max_rows is None else max_rows
    )
    size = max(1, rows // batch_size(batch))
    done, state, first = 0, None, None
    while done < num_samples:
        count = 1 if first is None else min(size, num_samples - done)
        with runs.ready(seed), torch.no_grad():
            if state is not None:
                set_rng_state(state)
            block = runs.block(count)
            state = rng_state()
        first = first or block
        check_same(first, block, done)
        yield block
        done += count
