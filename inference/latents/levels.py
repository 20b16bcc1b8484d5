"""What each level of a hierarchy decides: the levels above are kept, the others drawn anew.

Shapes: B data, C H W image.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from pyro import poutine
from torch import Tensor

from inference.devices import isolated_rng
from inference.elbo.handlers import FixedValues
from inference.elbo.traces import run_traces, sample_sites
from inference.sites import known_mean
from inference.summed_out import enumerates
from inference.weights import batch_size, evaluation_mode
from ppl_models.errors import PplError
from ppl_models.program import Batch, Program, as_program


def levels_of(program: object, batch: Batch) -> list[str]:
    """The latent sites in the order in which the model draws them.

    Raises:
        PplError: a latent is summed out, or there is none.
    """
    program = as_program(program)
    with evaluation_mode(program), isolated_rng(0), program.scope(), torch.no_grad():
        traces = run_traces(program.run_model, program.run_guide, (batch,), {})
    names = [name for name, site in sample_sites(traces.model) if not site["is_observed"]]
    if enumerates(traces) or not names:
        raise PplError(f"{program.name} has no latents that its guide draws: nothing to resample")
    return names


@torch.no_grad()
def resample(
    program: object, batch: Batch, levels: Sequence[int] | None = None, *, seed: int = 0
) -> Tensor:
    """Images whose latents above a level are those of data, and from there down the prior's.

    Args:
        program: any object with ``model`` and ``guide``; its model takes ``size``.
        batch: fields (B, ...), of which the latents above are read off.
        levels: numbers l of latent sites, from 1, in the order in which the model draws them: z_l
            and all after it are drawn anew. One more than there are keeps all of them. All of
            these when left out, from the last to the first.
        seed: of the draws.

    Returns:
        Means of p(x | z), (levels, B, C, H, W).

    Raises:
        PplError: there is no such level.
    """
    program = as_program(program)
    names = levels_of(program, batch)
    wanted = range(len(names) + 1, 0, -1) if levels is None else levels
    if not wanted:
        raise PplError(f"levels must name one level or more, from 1 to {len(names) + 1}; got none")
    for level in wanted:
        if not 1 <= level <= len(names) + 1:
            raise PplError(
                f"there is no level {level}; {program.name} draws {', '.join(names)}: levels 1 to "
                f"{len(names)}, and {len(names) + 1} keeps all"
            )
    with evaluation_mode(program), isolated_rng(seed), program.scope():
        guide = dict(sample_sites(poutine.trace(program.run_guide).get_trace(batch)))
    drawn = []
    for level in wanted:
        kept = {name: guide[name]["value"] for name in names[: level - 1]}
        drawn.append(_drawn_given(program, batch, kept, seed))
    return torch.stack(drawn)


def _drawn_given(program: Program, batch: Batch, kept: dict[str, Tensor], seed: int) -> Tensor:
    """Means of ``x`` with these latents, the others from the prior."""
    given = {name: value for name, value in batch.items() if name != "x"}
    with evaluation_mode(program), isolated_rng(seed), program.scope(), FixedValues(kept):
        trace = poutine.trace(program.draw_prior).get_trace(batch_size(batch), given)
    site = trace.nodes["x"]
    mean = known_mean(site["fn"])
    return site["value"] if mean is None else mean
