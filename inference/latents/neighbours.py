"""The training images nearest to others: does a program make new ones, or copy?

Shapes: B images, N data, K neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from inference.data.dataset import Split
from inference.evaluation import as_batches
from ppl_models.errors import PplError
from ppl_models.program import Batch


class Neighbours(NamedTuple):
    """The nearest data of each image, the nearest first."""

    indices: Tensor
    """Places in the data, (B, K)."""
    distances: Tensor
    """Root of the mean squared difference of the pixels, (B, K)."""
    images: Tensor
    """(B, K, ...)."""


@torch.no_grad()
def nearest_training(
    images: Tensor, batches: Iterable[Batch] | Batch | Split, *, num: int = 1, field: str = "x"
) -> Neighbours:
    """The training images nearest to these.

    Args:
        images: (B, ...), such as samples of a program.
        batches: a split, batches of it in order, or one batch.
        num: K.
        field: of the images.

    Raises:
        PplError: there are fewer than K data, or they have another shape.
    """
    found: Neighbours | None = None
    seen = 0
    for batch in as_batches(batches):
        data = batch[field]
        if data.shape[1:] != images.shape[1:]:
            raise PplError(
                f"the images have shape {tuple(images.shape[1:])}, the data "
                f"{tuple(data.shape[1:])}; distances need one shape"
            )
        distances = torch.cdist(images.flatten(1), data.flatten(1)) / data[0].numel() ** 0.5
        where = torch.arange(seen, seen + len(data), device=data.device).expand(len(images), -1)
        seen += len(data)
        if found is not None:
            distances = torch.cat([found.distances, distances], 1)
            where = torch.cat([found.indices, where], 1)
        least, order = distances.topk(min(num, distances.shape[1]), largest=False)
        kept = 0 if found is None else found.distances.shape[1]
        pool = data[(order - kept).clamp_min(0)]  # (B, K, ...)
        if found is not None:
            old = order < kept
            rows = torch.arange(len(images), device=data.device).unsqueeze(-1)
            earlier = found.images[rows, order.clamp_max(kept - 1)]
            pool = torch.where(old.reshape(*old.shape, *[1] * (pool.dim() - 2)), earlier, pool)
        found = Neighbours(where.gather(1, order), least, pool)
    if found is None or seen < num:
        raise PplError(f"{num} nearest of {seen} data: there must be at least as many, and one")
    return found
