"""Changes of the pixel values: binarization and dequantization.

Images are held in [0, 1]; the bytes they came from are 0..255.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from inference.data.dataset import (
    DataSet,
    MemorySplit,
    Split,
    StreamSplit,
    fitting_likelihoods,
)
from ppl_models.errors import PplError, UnknownNameError

BINARIZATIONS = ("none", "threshold", "static", "dynamic")


def dynamic_binarization(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """X ~ Bernoulli(x), drawn anew for every batch."""
    return {**batch, "x": torch.bernoulli(batch["x"])}


def threshold_binarization(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """X > 0.5."""
    return {**batch, "x": (batch["x"] > 0.5).to(batch["x"].dtype)}


@dataclass(frozen=True)
class Dequantization:
    """Grey levels k as (k + u) / levels with u uniform in [0, 1), drawn anew for every batch.

    Args:
        levels: 256 for bytes.

    References:
        Theis, van den Oord, Bethge: A note on the evaluation of generative models, 2016,
        arXiv:1511.01844, section 3.1.
    """

    levels: int

    def __call__(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """The batch with noise on ``x``."""
        x = batch["x"]
        level = (x * (self.levels - 1)).round()
        return {**batch, "x": (level + torch.rand_like(x)) / self.levels}


def binarize(data: DataSet, how: str, seed: int = 0) -> DataSet:
    """The data set with binary x.

    Args:
        data: x in [0, 1].
        how: ``threshold`` (x > 0.5), ``static`` (drawn once, with this seed), ``dynamic``
            (drawn anew for every batch) or ``none``.
        seed: of the static draw.

    Raises:
        UnknownNameError: another ``how``.
        PplError: x is not in [0, 1], or is streamed and asked to be static.
    """
    if how not in BINARIZATIONS:
        raise UnknownNameError("binarization", how, BINARIZATIONS)
    if how == "none":
        return data
    if any(getattr(data.split(p), "transform", None) for p in ("train", "valid", "test")):
        raise PplError(f"cannot binarize {data.info.name!r}: its batches are changed already")
    low, high = data.info.value_range
    if low < 0 or high > 1:
        raise PplError(f"cannot binarize {data.info.name!r}: x in [{low:g}, {high:g}], not [0, 1]")
    info = replace(
        data.info,
        name=f"{data.info.name} ({how} binarization)",
        value_range=(0.0, 1.0),
        likelihoods=("bernoulli",),
        levels=None,
        log_jacobian=0.0,
    )
    if how == "static":
        generator = torch.Generator().manual_seed(seed)
        return replace(data.map(lambda split: _draw_once(split, generator)), info=info)
    if how == "threshold":
        return replace(data.map(lambda split: _each(split, threshold_binarization)), info=info)
    return replace(data.map(lambda split: _each(split, dynamic_binarization)), info=info)


def dequantize(data: DataSet) -> DataSet:
    """The data set with uniform noise on its grey levels, so that densities give bits.

    Raises:
        PplError: the data are not known to be grey levels scaled to [0, 1].
    """
    levels = data.info.levels
    if levels is None:
        raise PplError(
            f"cannot dequantize {data.info.name!r}: its x is not known to be grey levels scaled "
            "to [0, 1]. In Python say so: from_tensors(..., levels=256)."
        )
    info = replace(
        data.info,
        name=f"{data.info.name} (dequantized)",
        likelihoods=fitting_likelihoods(*data.info.value_range, None),
        levels=None,
        log_jacobian=-math.log(levels),
    )
    return replace(data.map(lambda split: _each(split, Dequantization(levels))), info=info)


def _each(split: Split, change: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> Split:
    if change is threshold_binarization and isinstance(split, MemorySplit):
        return replace(split, tensors=change(split.tensors))  # always the same: once will do
    assert isinstance(split, MemorySplit | StreamSplit)
    return replace(split, transform=change)


def _draw_once(split: Split, generator: torch.Generator) -> Split:
    if not isinstance(split, MemorySplit):
        raise PplError(
            "static binarization needs the data in memory; use binarize='dynamic' for a stream"
        )
    x = torch.bernoulli(split.tensors["x"], generator=generator)
    return replace(split, tensors={**split.tensors, "x": x})
