"""What is particular to programs of drawings: pictures, SVG, GIF, beginnings, the paper's numbers.

Drawings are stroke-5, (T, 5) each; see :mod:`inference.data.sketches`.

Shapes: B data, T rows, D latent, P movements of a beginning.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.data.dataset import DataSet
from inference.data.sketches.files import READERS, read_drawings
from inference.data.sketches.strokes import (
    Points,
    lines_of,
    simplified,
    stroke3,
    stroke5,
    tidied,
)
from inference.drawing import Sharpened
from inference.evaluation import Evaluation
from inference.plotting.drawings import being_drawn, raster, svg_sheet
from inference.sampling import decode, encode
from ppl_models.errors import PplError
from ppl_models.program import Batch, Program

GIF_DRAWINGS = 16
"""Drawings in a GIF, at most."""


def are_drawings(x: Tensor | None) -> bool:
    """Whether data are drawings in stroke-5, (B, T, 5): rows of one pen state, the last an end."""
    if x is None or x.dim() != 3 or x.shape[-1] != 5 or not x.is_floating_point() or not len(x):
        return False
    pen = x[..., 2:]
    states = bool(((pen == 0) | (pen == 1)).all()) and bool((pen.sum(-1) == 1).all())
    return states and bool((x[:, -1, 4] == 1).all())


def lines_in(x: Tensor) -> list[list[Points]]:
    """The lines of drawings (B, T, 5), in absolute points."""
    return [lines_of(strokes) for strokes in stroke3(x)]


def pictures_of(x: Tensor) -> np.ndarray:
    """Drawings (B, T, 5) in black on white, (B, 1, H, W)."""
    return raster(lines_in(x))


def drawing_file(ending: str, x: Tensor, columns: int | None = None) -> bytes:
    """Drawings (B, T, 5) as the content of an SVG, or as a GIF of the first being made.

    Raises:
        PplError: another ending.
    """
    if ending == ".svg":
        return svg_sheet(lines_in(x), columns).encode()
    if ending == ".gif":
        return being_drawn(lines_in(x[:GIF_DRAWINGS]))
    raise PplError(f"cannot write {ending!r}: give --out FILE.png, FILE.svg or FILE.gif")


def redrawn(program: Program, batch: Batch, *, temperature: float = 1.0, seed: int = 0) -> Tensor:
    """Drawings made again from their codes, z ~ q(z | x), at a temperature: (B, T, 5).

    Args:
        program: of drawings, with a latent.
        batch: fields (B, ...).
        temperature: of every movement.
        seed: of the draws.

    Raises:
        PplError: nothing is latent, so there is no code to draw from.
    """
    codes = encode(program, batch, draw="sample", seed=seed)
    if not codes:
        raise PplError(
            f"{program.name} has no latents to reconstruct drawings from; ppl sample RUN draws new "
            "ones, --beginning FILE draws on from one"
        )
    given = {name: batch[name] for name in program.fields if name in batch and name != "x"}
    with Sharpened(temperature, progress=False):
        return decode(program, codes, given=given or None, seed=seed)


def beside(originals: Tensor, drawn: Tensor) -> Tensor:
    """Drawings of two batches in turn, (2 B, T, 5)."""
    rows = max(originals.shape[1], drawn.shape[1])
    pair = [_longer(x, rows) for x in (originals, drawn)]
    return torch.stack(pair, 1).flatten(0, 1)


def _longer(x: Tensor, rows: int) -> Tensor:
    more = x.new_zeros(len(x), rows - x.shape[1], 5)
    more[..., 4] = 1
    return torch.cat([x, more], 1)


def read_beginning(text: str, program: Program, simplify: float = 0.0) -> Tensor:
    """The first drawing of a sketch file as a beginning, (1, P, 5), in a program's unit.

    Its last line is left open: the pen stays down.

    Args:
        text: path of an ``.svg``, ``.ndjson`` or ``.npz`` file.
        program: of drawings, which keeps the scale of what it was trained on.
        simplify: distance by which points may be off, in the unit of the file.

    Raises:
        PplError: no such file, nothing drawn in it, or the program knows no scale.
    """
    path, kept = Path(text), getattr(program.owner, "offset_scale", None)
    if kept is None:
        raise PplError(f"--beginning is of drawings, and {program.name} makes none; leave it out")
    scale = float(kept)
    if path.suffix not in READERS or not path.is_file():
        raise PplError(f"--beginning: expected an .svg, .ndjson or .npz file, got {text!r}")
    drawings = next(iter(read_drawings(path).parts.values()), [])
    strokes = tidied(drawings[0]) if drawings else np.zeros((0, 3))
    strokes = tidied(simplified(strokes, simplify)) if simplify else strokes
    if not len(strokes):
        raise PplError(f"--beginning: nothing is drawn in {text!r}")
    strokes[-1, 2] = 0.0
    return stroke5([strokes / (scale, scale, 1.0)])[:, :-1]


def sketch_numbers(
    program: Program, data: DataSet, split: str, result: Evaluation
) -> dict[str, Any]:
    """An evaluation's numbers a movement, and as the paper normalizes them; none of other data.

    The paper divides the distortion by the most movements that a drawing may have, and the rate by
    D. Both numbers are unscaled here, and the distortion is that of every row up to the first end,
    that one included, as a probability needs it.
    """
    if data.info.offset_scale is None:
        return {}
    parts = [batch["x"][..., 4] for batch in data.split(split).batches(512)]
    movements = sum(float((ends == 0).sum()) for ends in parts) / result.num_data
    most = data.info.x_shape[0] - 1
    found: dict[str, Any] = {
        "movements": movements,
        "distortion_per_movement": result.distortion / movements,
        "paper_reconstruction": result.distortion / most,
        "paper_kl": None,
        "left_out": dict(data.info.counts),
    }
    codes = encode(program, next(iter(data.split(split).batches(1))))
    if codes:
        found["paper_kl"] = result.rate / sum(code[0].numel() for code in codes.values())
    return found
