"""The order in which an epoch goes through its data."""

from __future__ import annotations

import torch
from torch import Tensor

from inference.data.dataset import Split

POOL = 50
"""Batches whose data are sorted among each other by their lengths."""


def epoch_order(split: Split, batch_size: int, seed: int, epoch: int) -> Tensor:
    """The permutation of an epoch, a function of seed and epoch alone.

    Data of different lengths (``split.lengths``) share batches with others of about theirs, so
    that little of a batch is padding: a permutation is cut into pools, each is sorted and cut into
    batches, and these come in a random order. What is too few for a batch comes last, unsorted.

    Args:
        split: that is trained on, N data.
        batch_size: of the batches that the order is cut into.
        seed: of the training.
        epoch: from 0.

    Returns:
        Indices, (N,).
    """
    mixed = (seed * 1_000_003 + epoch) % 2**63
    generator = torch.Generator().manual_seed(mixed)
    order = torch.randperm(len(split), generator=generator)
    lengths = getattr(split, "lengths", None)
    if lengths is None or len(order) < batch_size:
        return order
    whole = len(order) // batch_size * batch_size
    known = lengths.cpu()
    pools = [pool[known[pool].argsort()] for pool in order[:whole].split(POOL * batch_size)]
    batches = torch.cat(pools).view(-1, batch_size)
    turns = torch.randperm(len(batches), generator=generator)
    return torch.cat([batches[turns].flatten(), order[whole:]])
