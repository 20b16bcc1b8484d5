"""What ``ppl explore`` does: a function that returns what is to be printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.checkpoint import write_atomically
from inference.explore import explore
from inference.explore.result import Exploration
from inference.plotting import animated
from inference.report import png
from inference.runs import load_run
from ppl_models.errors import PplError


def explore_run(
    run: str,
    *,
    kind: str,
    out: str | None = None,
    num: int | None = None,
    steps: int | None = None,
    images: list[int] | None = None,
    split: str | None = None,
    method: str | None = None,
    site: str | None = None,
    dims: list[int] | None = None,
    label: int | None = None,
    by: str | None = None,
    value: float | None = None,
    against: float | None = None,
    balance: str | None = None,
    files: str | None = None,
    levels: list[int] | None = None,
    seed: int | None = None,
    checkpoint: str = "best",
    device: str = "auto",
    data_root: str | None = None,
) -> dict[str, Any]:
    """Explore the latent space of a run: pictures, and GIFs of what moves.

    Kinds: manifold (plane of two components), interpolation (between images), traversal (one
    component at a time), attribute (a property added), analogy (a : b = c : ?), resynthesis
    (images from outside), nearest (training images nearest to samples), classes (label fixed,
    latent fixed), resample (upper latents kept, those from a level down drawn anew),
    disentanglement (traversals and MIG, DCI, SAP, of data with known factors), posterior (codes of
    all data against the prior), codebook (each code's picture and its use), temperature (draws of
    autoregressive sites at growing temperature).
    An option that a kind has no use for is refused.

    Args:
        run: folder of the run.
        kind: which picture.
        out: PNG, GIF or SVG file; when left out RUN/KIND.png, RUN/KIND.gif if it moves, and of
            drawings RUN/KIND.svg.
        num: images, samples, or draws a label.
        steps: of a walk or traversal; images a side of a manifold.
        images: places of data in the split, as [3,17]; for analogies in threes.
        split: that images are taken from: train, valid or test.
        method: of interpolation, slerp or lerp.
        site: the latent, by the name of its site; the one with the most components by default.
        dims: its components, as [0,1].
        label: the class y under which a conditional program is asked.
        by: property for an attribute vector: y, or a named column of the data.
        value: the property's value; 1 of 0 and 1, or above the mean, when left out.
        against: the other value; all others when left out.
        balance: a second property that the vector shall be free of.
        files: resynthesis of an image file, or of a folder of them.
        levels: from which everything is drawn anew, as [3,1]; 1 is the first latent drawn.
        seed: of samples.
        checkpoint: best (by validation ELBO) or last.
        device: auto, cpu or cuda.
        data_root: folder of data files, if it is another than in training.
    """
    options = {
        "num": num,
        "steps": steps,
        "images": images,
        "split": split,
        "method": method,
        "site": site,
        "dims": dims,
        "label": label,
        "by": by,
        "value": value,
        "against": against,
        "balance": balance,
        "files": files,
        "levels": levels,
        "seed": seed,
    }
    chosen = {name: option for name, option in options.items() if option is not None}
    if num is not None and num < 1:
        raise PplError(f"num must be at least 1, got {num}")
    opened = load_run(run, checkpoint=checkpoint, device=device, data_root=data_root)
    found = explore(opened, kind, **chosen)
    files_written = save(found, opened.folder / f"{kind}.png", out and Path(out))
    return {"kind": kind} | found.numbers | files_written


def save(found: Exploration, default: Path, out: Path | str | None) -> dict[str, str]:
    """Write an exploration as PNG, as GIF if it moves, and drawings as SVG too.

    Args:
        found: the exploration.
        default: PNG file; a GIF beside it.
        out: the one file to write instead, by its ending.

    Raises:
        PplError: another ending, or a GIF of what does not move.
    """
    path = Path(out) if out else default
    if path.suffix not in (".png", ".gif", ".svg"):
        raise PplError(f"cannot write {path.suffix!r}: give --out FILE.png, or FILE.gif")
    written = {}
    if path.suffix == ".png":
        write_atomically(path, png(found.figure))
        written["file"] = str(path)
    if path.suffix == ".svg" and found.svg is None:
        raise PplError("only drawings are written as SVG: give --out FILE.png, or FILE.gif")
    if found.svg is not None and (path.suffix == ".svg" or not out):
        write_atomically(path.with_suffix(".svg"), found.svg)
        written["lines"] = str(path.with_suffix(".svg"))
    if path.suffix == ".gif" or (found.frames is not None and not out):
        if found.frames is None:
            raise PplError("this kind does not move, so there is no GIF of it: give --out FILE.png")
        write_atomically(path.with_suffix(".gif"), animated(found.frames))
        written["animation"] = str(path.with_suffix(".gif"))
    return written
