"""Codes as data: what a vector quantizer makes of a data set, for a prior to be trained on.

A quantized program is any whose owner has ``encode_codes(x)``, ``grids``, ``num_codes``,
``code_prior`` and ``fingerprint()``; see ``docs/vqvae_prior.md``.

Shapes: B data, h w grid.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from inference.data.dataset import DataInfo, DataSet, MemorySplit, Split, as_dataset
from inference.devices import isolated_rng
from inference.weights import evaluation_mode
from ppl_models.errors import PplError, ProgramError
from ppl_models.program import Batch, Program, as_program

QUANTIZED = ("encode_codes", "grids", "num_codes", "code_prior", "fingerprint")
"""What the engine asks of a quantized program."""


def quantized(program: object) -> Any:
    """The owner of a quantized program.

    Raises:
        ProgramError: it is none.
    """
    owner = as_program(program).owner
    lacking = [name for name in QUANTIZED if not hasattr(owner, name)]
    if lacking:
        raise ProgramError(
            f"{as_program(program).name} has no codes to learn a prior of (it lacks "
            f"{', '.join(lacking)}); train a quantizer first: ppl train vqvae --data DATA"
        )
    return owner


def facts_of_codes(program: object) -> dict[str, Any]:
    """What a prior over a quantized program's codes is made with."""
    owner = quantized(program)
    return {"grids": dict(owner.grids), "num_codes": owner.num_codes}


@torch.no_grad()
def coded(program: Program, batch: Batch) -> dict[str, Any]:
    """A batch of images as one of codes, (B, h, w) by site; labels stay."""
    with evaluation_mode(program):
        codes = quantized(program).encode_codes(batch["x"])
    return codes | {name: value for name, value in batch.items() if name == "y"}


def code_data(program: object, data: object, *, batch_size: int = 512) -> DataSet:
    """A data set of images as one of codes; every image is encoded once.

    Args:
        program: a quantized program, or the result of its ``fit``.
        data: a data set, or tensors, as ``fit`` takes them. On the program's device.
        batch_size: images encoded at a time.

    Returns:
        Fields (N, h, w) of integers by site, and ``y`` where there are labels. What the data draw
        at random for every batch (dynamic binarization) is drawn once.

    Raises:
        ProgramError: the program has no codes.
    """
    program, images = as_program(program), as_dataset(data)
    owner = quantized(program)
    like = next(program.parameters())

    def encoded(split: Split) -> Split:
        placed = split.to(like.device, like.dtype)
        with isolated_rng(0):
            parts = [coded(program, batch) for batch in placed.batches(batch_size)]
        if not parts:
            none = {name: torch.empty(0, *grid) for name, grid in owner.grids.items()}
            return MemorySplit({name: grid.long() for name, grid in none.items()})
        return MemorySplit({name: torch.cat([p[name] for p in parts]) for name in parts[0]})

    described = DataInfo(
        name=f"codes of {images.info.name}",
        x_shape=next(iter(owner.grids.values())),
        value_range=(0, owner.num_codes - 1),
        likelihoods=(),
        summary=f"codes of {images.info.summary}",
        num_classes=images.info.num_classes,
    )
    return replace(images.map(encoded), info=described)


def check_fingerprint(program: object, expected: str | None, codes: str) -> None:
    """Refuse a codebook that a prior was not trained on.

    Args:
        program: the quantized program.
        expected: the codebook's fingerprint when the prior was trained; None: not trained yet.
        codes: folder of the program's run.

    Raises:
        PplError: the codebook is another.
    """
    found = quantized(program).fingerprint()
    if expected not in (None, found):
        raise PplError(
            f"this prior was trained on codes of the codebook {expected}, but {codes} now holds "
            f"the codebook {found}: it was trained further, or is another run. Train the prior "
            f"anew: ppl train vqvae_prior --codes {codes} --out NEW"
        )


def code_numbers(program: Program, kl: Mapping[str, float]) -> dict[str, Any]:
    """Bits a code, by site, of an evaluation of a quantized program; nothing of another.

    Args:
        program: what was evaluated.
        kl: its rate by site, in nats: −log p of the codes, whose guide is certain.
    """
    owner = program.owner
    if not hasattr(owner, "num_codes") or not set(getattr(owner, "grids", {"": 0})) <= set(kl):
        return {}
    bits = {site: kl[site] / math.prod(owner.grids[site]) / math.log(2) for site in owner.grids}
    return {"bits_per_code": bits, "bits_per_code_uniform": math.log2(owner.num_codes)}
