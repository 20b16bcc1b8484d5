"""Small drawings and small sketch models that tests share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ppl_models.sketch_rnn import ClassSketchRNN, SketchDecoder, SketchRNN

TINY = {"decoder_dim": 12, "num_components": 3}


def some_drawings(lengths: tuple[int, ...] = (3, 7, 1, 5), rows: int = 9, seed: int = 0) -> Tensor:
    """Stroke-5 (B, rows, 5), with so many movements each."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.zeros(len(lengths), rows, 5)
    x[..., 4] = 1
    for drawing, n in zip(x, lengths, strict=True):
        drawing[:n, :2] = torch.randn(n, 2, generator=generator)
        lifted = torch.rand(n, generator=generator) < 0.3
        drawing[:n, 2], drawing[:n, 3], drawing[:n, 4] = (~lifted).float(), lifted.float(), 0
    return x


def tiny_sketch_rnn(**options: object) -> SketchRNN:
    return SketchRNN((9, 5), 4, 6, **(TINY | options))


def tiny_class_rnn(**options: object) -> ClassSketchRNN:
    return ClassSketchRNN((9, 5), 3, 4, 6, **(TINY | options))


def tiny_decoder(**options: object) -> SketchDecoder:
    return SketchDecoder((9, 5), **(TINY | options))


def write_sketches(
    path: Path, more: Sequence[np.ndarray] = (), seed: int = 0, sizes: Sequence[int] = (20, 6, 6)
) -> Path:
    """An ``.npz`` in QuickDraw's format, with further drawings in its training part."""
    random = np.random.RandomState(seed)
    parts = {}
    for part, size in zip(("train", "valid", "test"), sizes, strict=True):
        drawings = [_random_strokes(random) for _ in range(size)]
        drawings += list(more) if part == "train" else []
        parts[part] = np.empty(len(drawings), dtype=object)
        parts[part][:] = drawings
    np.savez(path, **parts)
    return path


def _random_strokes(random: np.random.RandomState) -> np.ndarray:
    moves = random.randint(1, 60, size=(random.randint(2, 9), 2))
    return np.column_stack([moves, np.arange(len(moves)) % 3 == 2]).astype(np.int16)
