"""Replicated data under masks: what a mask takes out of the likelihood is as it was observed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions import MaskedDistribution
from torch import Tensor
from torch.distributions import Distribution

from inference.diagnostics.check import CannotTell
from inference.elbo.traces import Site
from inference.sites import innermost


def replicate(site: Site, observed: Tensor) -> Tensor:
    """A site's value where it counts, and the observed one where a mask hides it.

    Args:
        site: with a value that was drawn, (B, ...).
        observed: of that shape.

    Raises:
        CannotTell: a mask is where it cannot be read.
    """
    return torch.where(counted(site), site["value"], observed)


def counted(site: Site) -> Tensor:
    """Where a site's value counts in its density: bool, to be broadcast to the value.

    Args:
        site: masked by ``poutine.mask``, by ``fn.mask``, by both or by none.

    Raises:
        CannotTell: a mask is where it cannot be read, such as under a transform.
    """
    found = torch.ones((), dtype=torch.bool, device=site["value"].device)
    masks = [(site["mask"], site["fn"]), *((fn._mask, fn) for fn in _masked(site["fn"]))]
    for mask, fn in masks:
        if isinstance(mask, Tensor):  # of a batch: (batch..., 1 for each dimension of the event)
            found = found & mask.reshape(mask.shape + (1,) * len(fn.event_shape))
        elif mask is False:
            found = torch.zeros_like(found)
    return found


def _masked(fn: Any) -> Iterator[MaskedDistribution]:
    """The masked distributions that one consists of, from without to within."""
    inner = innermost(fn)
    while isinstance(inner, MaskedDistribution):
        yield inner
        inner = innermost(inner.base_dist)
    if _hides_a_mask(inner):
        raise CannotTell(
            f"a mask within {type(inner).__name__} does not tell which of the data it hides, and "
            "what is hidden is not to be compared; mask the site from outside (poutine.mask), or "
            "its whole distribution (fn.mask)"
        )


def _hides_a_mask(fn: Any) -> bool:
    """Whether a distribution is made of others of which one is masked, not in name alone."""
    parts = [part for part in vars(fn).values() if isinstance(part, Distribution)]
    masks = [part._mask for part in parts if isinstance(part, MaskedDistribution)]
    return any(not torch.as_tensor(m).all() for m in masks) or any(map(_hides_a_mask, parts))
