"""What the tests of data share."""

from __future__ import annotations

import torch
from PIL import Image

PARTS = ("train", "valid", "test")


def whole(split, batch_size=10_000):
    """All of a split as one batch."""
    batches = list(split.batches(batch_size))
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


def sizes(data):
    return [len(data.split(part)) for part in PARTS]


def save_images(folder, arrays):
    """Byte images (H, W) or (H, W, 3) by file name."""
    for name, array in arrays.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(array).save(path)
