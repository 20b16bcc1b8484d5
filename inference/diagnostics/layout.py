"""How the draws and data of a run stand in the tensors of its sites, and what their axes are.

Shapes: K draws, B data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from inference.densities import is_local
from inference.diagnostics.bits import bit_probs, draw_bits
from inference.elbo.traces import Site, masked_log_prob
from inference.sites import known_support

ONE_BYTE = (constraints.boolean, constraints.one_hot)
WHOLE = (
    constraints.integer_interval,
    type(constraints.nonnegative_integer),
    type(constraints.positive_integer),
)


@dataclass(frozen=True)
class Layout:
    """Of a run of K draws of B data: as K·B rows of the data plate, or in a plate of their own."""

    plate: tuple[str, int]
    """Name and dimension of the data plate."""
    num_draws: int
    particles: int | None = None
    """Dimension of the plate of draws; None: the data plate holds K·B rows, draw by draw."""

    def values(self, site: Site, value: Tensor) -> Tensor:
        """A value of a site: (K, B, other plates..., event...), of a global one (K, ...)."""
        return self._arranged(site, value, len(site["fn"].event_shape))

    def density(self, site: Site) -> Tensor:
        """A site's log density, with its mask, without its scale: (K, B), of a global one (K,)."""
        found = self._arranged(site, masked_log_prob(site), 0)
        kept = 2 if is_local(site, self.plate) else 1
        return found.flatten(kept).sum(-1) if found.dim() > kept else found

    def _arranged(self, site: Site, value: Tensor, event_dim: int) -> Tensor:
        own = value.dim() - event_dim
        batch = torch.broadcast_shapes(site["fn"].batch_shape, value.shape[:own])
        full = value.expand(batch + value.shape[own:])
        first = [] if self.particles is None else [len(batch) + self.particles]
        local = is_local(site, self.plate)
        first += [len(batch) + self.plate[1]] if local else []
        rest = [len(batch) + dim for dim in self._others(site, batch)]
        dropped = [i for i in range(len(batch)) if i not in (*first, *rest)]  # of size one
        event = range(len(batch), full.dim())
        found = full.permute([*dropped, *first, *rest, *event])
        found = found.reshape(found.shape[len(dropped) :])
        if self.particles is not None:
            return found
        return found.unflatten(0, (self.num_draws, -1)) if local else found.unsqueeze(0)

    def _others(self, site: Site, batch: torch.Size) -> list[int]:
        """Dimensions of a batch shape that are neither draws nor data nor mere fillers."""
        taken = {self.particles, self.plate[1] if is_local(site, self.plate) else None}
        names = _frames(site)
        dims = range(-len(batch), 0)
        return [d for d in dims if d not in taken and (d in names or batch[d] > 1)]

    def dims(self, site: Site) -> tuple[str, ...]:
        """Names of the axes after those of draws and data: of plates, else ``SITE_dim_0`` ..."""
        names, found = _frames(site), []
        unnamed = 0
        for dim in self._others(site, site["fn"].batch_shape):
            found.append(names.get(dim, f"{site['name']}_dim_{unnamed}"))
            unnamed += dim not in names
        events = range(unnamed, unnamed + len(site["fn"].event_shape))
        return (*found, *(f"{site['name']}_dim_{i}" for i in events))


def _frames(site: Site) -> dict[int, str]:
    return {f.dim: f.name for f in site["cond_indep_stack"] if f.vectorized}


def whole_dtype(fn: Any) -> torch.dtype | None:
    """What holds the values of a distribution over whole numbers, bits in a byte; else None.

    Args:
        fn: a distribution.
    """
    support = known_support(fn)
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if any(support is known for known in ONE_BYTE):
        return torch.int8
    return torch.int64 if isinstance(support, WHOLE) else None


def as_whole(value: Tensor, fn: Any) -> Tensor:
    """Values of a distribution over whole numbers as such; others as they are.

    Args:
        value: that was given; grey pixels under a Bernoulli are no whole numbers, and stay.
        fn: the distribution.
    """
    dtype = whole_dtype(fn)
    whole = value if dtype is None else value.to(dtype)
    return whole if bool((whole == value).all()) else value


def drawn_from(fn: Any) -> Tensor:
    """A draw, of whole numbers as such.

    Args:
        fn: a distribution.
    """
    dtype, probs = whole_dtype(fn), bit_probs(fn)
    if probs is not None:
        return draw_bits(probs)
    return fn.sample() if dtype is None else fn.sample().to(dtype)
