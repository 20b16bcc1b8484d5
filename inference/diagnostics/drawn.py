"""What draws of a posterior are: latents, log densities and new data of the same runs.

Shapes: S draws, B data.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from ppl_models.errors import ProgramError


@dataclass(frozen=True)
class Draws:
    """Draws from q, or a block of them, of the model's own latents; unscaled densities, nats.

    Latents that the guide leaves out are drawn from their exact posterior given the others, and
    count as part of q.
    """

    local_latents: dict[str, Tensor]
    """By site, (S, B, other plates..., event...); discrete ones as integers."""
    global_latents: dict[str, Tensor]
    """By site, (S, plates..., event...)."""
    log_p: Tensor
    """Log p(x, z) of the sites of each datum, (S, B)."""
    log_q: Tensor
    """Log q(z | x) of the sites of each datum, (S, B)."""
    global_log_p: Tensor
    """Log p of the latents that data share, (S,)."""
    global_log_q: Tensor
    """Log q of them, (S,)."""
    log_likelihood: dict[str, Tensor]
    """Log p(x | z) by observed site, (S, B). A single observed site has what is summed out of it
    summed out: the likelihood given the latents of the guide alone."""
    predictive: dict[str, Tensor]
    """New data given the latents, by observed site, (S, B, ...); empty if not asked for."""
    observed: dict[str, Tensor]
    """The data, by observed site, (B, ...)."""
    dims: dict[str, tuple[str, ...]]
    """By site, names of the dimensions after those of draws and data."""
    plate: str
    """Name of the data plate."""

    @property
    def num_samples(self) -> int:
        """S."""
        return len(self.log_p)

    @property
    def log_weights(self) -> Tensor:
        """Log p(x, z) − log q(z | x), (S, B), as :func:`inference.log_weights` has them."""
        return self.log_p - self.log_q


OVER_DRAWS = ("local_latents", "global_latents", "log_likelihood", "predictive")
"""Fields of :class:`Draws` that are tables of tensors along S."""
TOTALS = ("log_p", "log_q", "global_log_p", "global_log_q")
"""Fields that are one such tensor."""


def named(draws: Draws) -> Iterator[tuple[tuple[str, str], Tensor]]:
    """Every tensor along S, under its field of :class:`Draws` and its site ("" of the totals)."""
    for table in OVER_DRAWS:
        yield from (((table, site), value) for site, value in getattr(draws, table).items())
    yield from (((total, ""), getattr(draws, total)) for total in TOTALS)


def of_all(blocks: list[Draws], combine: Callable[[list[Tensor]], Tensor]) -> Draws:
    """Draws whose every tensor along S is made of those of some blocks.

    Args:
        blocks: of the same sites and shapes.
        combine: the blocks' tensors of one site to one.
    """
    tables: dict[str, Any] = {
        table: {
            site: combine([getattr(block, table)[site] for block in blocks])
            for site in getattr(blocks[0], table)
        }
        for table in OVER_DRAWS
    }
    totals: dict[str, Any] = {
        total: combine([getattr(block, total) for block in blocks]) for total in TOTALS
    }
    return replace(blocks[0], **tables, **totals)


def check_same(first: Draws, block: Draws, done: int) -> None:
    """Refuse sites that come, go, or change their shape.

    Args:
        first: the first draws.
        block: later ones.
        done: how many there were before these.

    Raises:
        ProgramError: a site does so; the message has both shapes.
    """
    known, now = (
        {key: tuple(value.shape[1:]) for key, value in named(draws)} for draws in (first, block)
    )
    for key in {**known, **now}:
        if known.get(key) != now.get(key):
            shown = [s if s is not None else "absent" for s in (known.get(key), now.get(key))]
            raise ProgramError(
                f"site {key[1]!r} ({key[0].replace('_', ' ')}) is {shown[0]} in the first draw, "
                f"but {shown[1]} in draw {done}: draws of changing shapes are no array. Draw "
                "one shape always, and mask what a draw does not use"
            )
