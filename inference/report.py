"""The pictures of a run and ``report.html``, one self-contained page of them.

Shapes: B data, D latent, C H W image.
"""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from torch import Tensor

from inference.checkpoint import write_atomically
from inference.collapse import COLLAPSED_RATE
from inference.devices import isolated_rng
from inference.mixture_pictures import CAPTIONS as MIXTURE_CAPTIONS
from inference.mixture_pictures import mixture_figures
from inference.plotting import (
    image_grid,
    latent_scatter,
    learning_curves,
    rate_sites,
    reconstruction_grid,
    site_rates,
)
from inference.runs import Run, read_metrics
from inference.sampling import encode, reconstruct, sample, to_complete
from inference.sketches import are_drawings, drawing_file, pictures_of
from inference.weights import batch_size
from ppl_models.errors import PplError
from ppl_models.program import Batch

CAPTIONS = {
    "samples": "Draws from the prior predictive: means of p(x | z), or draws of it, for z ~ p(z).",
    "reconstructions": "Test data, and below each the mean of p(x | z), or a draw, z ~ q(z | x).",
    "learning_curves": "Every epoch on held-out data, unscaled; nats per datum.",
    "rates": "What each latent site tells of a datum: its rate in validation, unscaled, over the "
    "epochs and at the one that is kept. A site in red has collapsed: its posterior is all but its "
    "prior.",
    "latent_space": "Where the guide puts the test data.",
    **MIXTURE_CAPTIONS,
}


def to_images(x: Tensor | None) -> np.ndarray | None:
    """Data as images (N, C, H, W), or None: they are none. Drawings are drawn."""
    if x is None:
        return None
    if are_drawings(x):
        return pictures_of(x)
    if x.dim() == 3:
        x = x.unsqueeze(1)
    if x.dim() != 4 or x.shape[1] not in (1, 3):
        return None
    return x.detach().float().cpu().numpy()


def png(figure: Figure) -> bytes:
    """A figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120, bbox_inches="tight", pad_inches=0.06)
    return buffer.getvalue()


def make_pictures(run: Run, num: int = 64) -> dict[str, Path]:
    """Draw what can be drawn of a run into its folder.

    Args:
        run: an open run.
        num: samples in the grid.

    Returns:
        The files by name: samples, reconstructions, learning_curves, latent_space; of a
        program with two or more latent sites rates, of a Gaussian mixture mixture and components.
    """
    figures: dict[str, Figure] = {}
    with isolated_rng(0):  # transforms of the data draw too
        test = next(iter(run.data.test.batches(2000)))
    if "size" in run.program.options:
        given = to_complete(run.program, run.data.test, num)
        images = to_images(sample(run.program, num, given=given).get("x"))
        if images is not None:
            what = "completed test images" if given else "samples"
            title = f"{run.program.name}: {what} after epoch {run.epoch}"
            figures["samples"] = image_grid(images, title)
    pairs = reconstruction_figure(run, test)
    if pairs is not None:
        figures["reconstructions"] = pairs
    history = read_metrics(run.folder)
    if history:
        figures["learning_curves"] = learning_curves(history)
    if rate_sites(history):
        figures["rates"] = site_rates(history, run.epoch, COLLAPSED_RATE)
    codes = _widest_code(encode(run.program, test), batch_size(test))
    if codes is not None:
        site, values = codes
        labels = test["y"].cpu().numpy() if "y" in test else None
        figures["latent_space"] = latent_scatter(values, labels, site)
    figures |= mixture_figures(run.program, test)
    files = {name: run.folder / f"{name}.png" for name in figures}
    for name, figure in figures.items():
        write_atomically(files[name], png(figure))
    return files


def save_samples(path: Path, run: Run, drawn: Mapping[str, Tensor]) -> None:
    """Write draws as a PNG grid of images, or all sites as ``.npz``; drawings as SVG or GIF too.

    Raises:
        PplError: the draws are no images, or the file's ending is another.
    """
    if path.suffix == ".npz":
        buffer = io.BytesIO()
        arrays: dict[str, Any] = {name: value.cpu().numpy() for name, value in drawn.items()}
        np.savez(buffer, **arrays)
        return write_atomically(path, buffer.getvalue())
    if are_drawings(drawn.get("x")) and path.suffix != ".png":
        return write_atomically(path, drawing_file(path.suffix, drawn["x"]))
    images = to_images(drawn["x"]) if "x" in drawn else None
    if path.suffix != ".png" or images is None:
        what = "the draws are no images" if images is None else f"cannot write {path.suffix!r}"
        raise PplError(f"{what}: give --out FILE.npz for the arrays, or FILE.png for images")
    title = f"{run.program.name}: samples after epoch {run.epoch}"
    write_atomically(path, png(image_grid(images, title)))


def reconstruction_figure(run: Run, batch: Batch, num: int = 40, seed: int = 0) -> Figure | None:
    """Data and their reconstructions, or None: field ``x`` is no image, or no site observes it."""
    some = {name: value[:num] for name, value in batch.items()}
    originals = to_images(some.get("x"))
    again = to_images(reconstruct(run.program, some, seed=seed).get("x"))
    if originals is None or again is None or again.shape != originals.shape:
        return None
    title = f"{run.program.name}: data, and below each its reconstruction"
    return reconstruction_grid(originals, again, title)


def _widest_code(codes: Mapping[str, Tensor], num_data: int) -> tuple[str, np.ndarray] | None:
    """The local latent site with the most dimensions, as (N, D)."""
    flat = {
        name: value.detach().flatten(1) if value.dim() > 1 else value.detach().unsqueeze(-1)
        for name, value in codes.items()
        if value.is_floating_point() and value.dim() > 0 and len(value) == num_data
    }
    if not flat:
        return None
    name = max(flat, key=lambda key: flat[key].shape[1])
    return name, flat[name].double().cpu().numpy()


def write_report(run: Run, numbers: Mapping[str, Any], pictures: Mapping[str, Path]) -> Path:
    """Write ``report.html``: numbers, pictures and configuration in one file.

    Args:
        run: an open run.
        numbers: an evaluation.
        pictures: files by name.
    """
    rows = "".join(
        f"<tr><td>{html.escape(name)}</td><td>{html.escape(format_number(value))}</td></tr>"
        for name, value in numbers.items()
        if value is not None and name != "note"
    )
    figures = "".join(
        f'<figure><img alt="{name}" src="data:image/png;base64,'
        f'{base64.b64encode(path.read_bytes()).decode()}"><figcaption>'
        f"{html.escape(CAPTIONS[name])}</figcaption></figure>"
        for name, path in pictures.items()
    )
    config = html.escape(yaml.safe_dump(run.config, sort_keys=False, allow_unicode=True))
    title = html.escape(f"{run.program.name} on {run.data.info.name}")
    note = f"<p>{html.escape(numbers['note'])}</p>" if numbers.get("note") else ""
    page = PAGE.format(
        title=title,
        rows=rows,
        figures=figures,
        config=config,
        note=note,
        torch=torch.__version__,
        epoch=run.epoch,
    )
    path = run.folder / "report.html"
    write_atomically(path, page.encode())
    return path


def format_number(value: Any) -> str:
    """A number for people."""
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1 else f"{value:.2f}"
    if isinstance(value, dict):
        return ", ".join(f"{k}: {format_number(v)}" for k, v in value.items()) or "none"
    return str(value)


def print_table(numbers: dict[str, Any]) -> None:
    """Names and values, aligned; tables within tables one below the other.

    What has a ``text`` of its own is printed as that.
    """
    if hasattr(numbers, "text"):
        return print(numbers.text)
    for name, value in numbers.items():
        if isinstance(value, dict) and value and all(isinstance(v, str) for v in value.values()):
            print(f"{name}:")
            width = max(map(len, value))
            print("\n".join(f"  {k:<{width}}  {v}" for k, v in value.items()))
    flat = {
        k: v for k, v in numbers.items() if v is not None and v is not False and not _is_table(v)
    }
    width = max(map(len, flat), default=0)
    for name, value in flat.items():
        print(f"{name:<{width}}  {format_number(value)}")


def _is_table(value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(v, str) for v in value.values())


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
color: #222 }}
table {{ border-collapse: collapse }} td {{ padding: .15rem .8rem .15rem 0;
border-bottom: 1px solid #ddd }} td:last-child {{ text-align: right;
font-variant-numeric: tabular-nums }}
figure {{ margin: 1.5rem 0 }} img {{ max-width: 100% }} figcaption {{ color: #666 }}
pre {{ background: #f5f5f5; padding: 1rem; overflow: auto }}
</style></head><body>
<h1>{title}</h1>
<p>Test data; nats per datum unless a name says otherwise; a higher ELBO is better.
Parameters of epoch {epoch}.</p>{note}
<table>{rows}</table>
{figures}
<h2>Configuration</h2><pre>{config}</pre>
<p>torch {torch}</p>
</body></html>
"""
