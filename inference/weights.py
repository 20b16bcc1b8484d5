"""Log importance weights, per particle and datum, of any program.

Everything that is reported of a program is derived from here.

Particles are drawn by repeating the data: a batch of B data is run as K·B rows, so any program
whose latents are local is vectorized as it stands, whatever its networks make of extra
dimensions. A program with global latents is run once a particle.

Shapes: K particles, B data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor

from inference.densities import SiteDensities, densities_of, stack
from inference.summed_out import run_summed
from ppl_models.errors import PplError
from ppl_models.program import Batch, Program, as_program


def batch_size(batch: Batch) -> int:
    """B, the length of the batch's fields."""
    return len(next(iter(batch.values())))


def fields_of(batch: object) -> dict[str, Tensor]:
    """A batch's fields by name, in a dict of their own.

    Raises:
        PplError: it is no mapping.
    """
    if not isinstance(batch, Mapping):
        raise PplError(
            f"a batch must be a dict of fields {{'x': x}}, got {type(batch).__name__}; of a data "
            "set it is next(iter(data.train.batches(16)))"
        )
    return dict(batch)


MOST_ROWS = 16_384
MOST_NUMBERS = 2**24
"""Of the data in a block: 1,024 a row, as many as an image of 32×32 has."""
MOST_DRAWN = 6 * 2**20
"""The same in a block that draws new data. What is made of larger ones, above 32 MB each, does not
come from memory that is at hand: the system has to clear it anew, a third of the time. Smaller
blocks read the data more often: those of two thirds of the size took 8 % longer."""


def rows_at_once(batch: Batch, most_numbers: int | None = None) -> int:
    """Particles times data that are run at once, if nothing else is asked.

    A row of large images takes more memory, in a hierarchy of latents above all.

    Args:
        batch: fields (B, ...).
        most_numbers: of the data in a block; ``MOST_NUMBERS`` when left out.
    """
    largest = max(value.numel() // max(1, len(value)) for value in batch.values())
    return min(MOST_ROWS, max(1, (most_numbers or MOST_NUMBERS) // max(1, largest)))


def repeat(batch: Batch, num_particles: int) -> dict[str, Tensor]:
    """The batch K times over, particle by particle: fields (K·B, ...)."""
    if num_particles == 1:
        return dict(batch)
    return {k: v.repeat(num_particles, *[1] * (v.dim() - 1)) for k, v in batch.items()}


class Take(Protocol):
    """Log densities of one run of a program on K·B rows."""

    def __call__(
        self, program: Program, batch: Batch, num_particles: int, num_data: int | None
    ) -> SiteDensities:
        """By site, (K, B); ``batch`` has the K·B rows."""


def run_densities(
    program: Program, batch: Batch, num_particles: int, num_data: int | None
) -> SiteDensities:
    """Run guide and model once, and take every site's log density per particle and datum."""
    options: dict[str, Any] = {"num_data": num_data}
    with program.scope():
        traces = run_summed(program, batch, options)
    return densities_of(traces, batch_size(batch), num_particles)


def site_densities(
    program: object, batch: Batch, num_particles: int = 1, *, num_data: int | None = None
) -> SiteDensities:
    """Run guide and model on a batch and take every site's log density per datum.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (B, ...).
        num_particles: K, all run at once.
        num_data: size of the data set, for programs with global latents.

    Raises:
        ProgramError: the program's sites cannot be told apart by datum.
    """
    program = as_program(program)
    first = run_densities(program, batch, 1, num_data)
    return stack([first, *_more(program, batch, first, num_particles - 1, num_data, run_densities)])


def _more(
    program: Program,
    batch: Batch,
    first: SiteDensities,
    num_particles: int,
    num_data: int | None,
    take: Take,
) -> list[SiteDensities]:
    """Further particles of a program that has shown in a first one what latents it has."""
    if num_particles == 0:
        return []
    if first.exact:  # nothing is drawn: one run is all of them
        return [first] * num_particles
    if first.global_sites:  # repeated rows would share a global draw: no independent particles
        return [take(program, batch, 1, num_data) for _ in range(num_particles)]
    return [take(program, repeat(batch, num_particles), num_particles, num_data)]


def log_weights(
    program: object,
    batch: Batch,
    num_particles: int = 1,
    *,
    num_data: int | None = None,
    max_rows: int | None = None,
) -> Tensor:
    """Log importance weights log p(x, z) − log q(z), per particle and datum.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (B, ...).
        num_particles: K.
        num_data: size of the data set, for programs that name it.
        max_rows: particles times data that are run at once; bounds the memory. When left out
            16,384, or fewer of data of more than 1,024 numbers.

    Returns:
        (K, B), without any ``poutine.scale`` and without gradient. Densities of global latents
        are left out: they belong to the data set, not to a datum.

    References:
        Burda, Grosse, Salakhutdinov: Importance Weighted Autoencoders, 2016, arXiv:1509.00519.
    """
    program = as_program(program)
    with evaluation_mode(program):
        rows = max_rows or rows_at_once(batch)
        blocks = particle_blocks(program, batch, num_particles, num_data, rows)
        return torch.cat([block.log_weights for block in blocks])


@contextmanager
def evaluation_mode(program: Program) -> Iterator[None]:
    """Within, every module is in evaluation mode; afterwards each is in its own mode again."""
    modes = {module: module.training for module in program.modules()}
    program.eval()
    try:
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def particle_blocks(
    program: Program,
    batch: Batch,
    num_particles: int,
    num_data: int | None,
    max_rows: int,
    take: Take = run_densities,
) -> Iterator[SiteDensities]:
    """The K particles in blocks of at most ``max_rows`` rows.

    Args:
        program: in evaluation mode.
        batch: fields (B, ...).
        num_particles: K.
        num_data: size of the data set.
        max_rows: particles times data that are run at once.
        take: runs the program.
    """
    block = min(num_particles, max(1, max_rows // batch_size(batch)))
    first = take(program, batch, 1, num_data)
    yield stack([first, *_more(program, batch, first, block - 1, num_data, take)])
    for start in range(block, num_particles, block):
        size = min(block, num_particles - start)
        yield stack(_more(program, batch, first, size, num_data, take))
