"""Files of drawings that ``ppl sample`` and ``ppl reconstruct`` write: PNG, SVG, GIF."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from inference import report
from inference.checkpoint import write_atomically
from inference.plotting import reconstruction_grid
from inference.runs import Run
from inference.sketches import are_drawings, beside, drawing_file, pictures_of, redrawn
from ppl_models.program import Batch

ENDINGS = (".png", ".svg", ".gif")
"""What drawings are written as when no file is named."""


def sample_files(path: Path, run: Run, drawn: Mapping[str, Tensor], *, named: bool) -> str:
    """Write draws to a file; drawings, if none was named, as all that they can be.

    Args:
        path: the file.
        run: that they are of.
        drawn: sites by name.
        named: the user named it.

    Returns:
        The files, for people.
    """
    every = not named and are_drawings(drawn.get("x"))
    files = [path.with_suffix(ending) for ending in ENDINGS] if every else [path]
    for file in files:
        report.save_samples(file, run, drawn)
    return ", ".join(map(str, files))


def reconstruct_drawings(
    run: Run, batch: Batch, out: str | None, temperature: float, seed: int
) -> dict[str, Any]:
    """Write drawings, and below each what its code is drawn as.

    Args:
        run: of a program with a latent.
        batch: fields (B, ...).
        out: a file; all kinds of them in the run's folder when left out.
        temperature: of every movement.
        seed: of the draws.
    """
    x = batch["x"]
    again = redrawn(run.program, batch, temperature=temperature, seed=seed)
    title = f"{run.program.name}: drawings, and below each its reconstruction"
    default = run.folder / "reconstructions.png"
    files = [Path(out)] if out else [default.with_suffix(ending) for ending in ENDINGS]
    for file in files:
        if file.suffix == ".png":
            figure = reconstruction_grid(pictures_of(x), pictures_of(again), title)
            write_atomically(file, report.png(figure))
        else:
            write_atomically(file, drawing_file(file.suffix, beside(x, again), 10))
    return {"reconstructions": len(x), "file": ", ".join(map(str, files))}
