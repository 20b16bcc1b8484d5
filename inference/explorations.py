"""The kinds of ``ppl explore``: each makes a picture of a run's latent space.

A kind is a function of an open run and its own options. It picks images, calls
:mod:`inference.latents` and gives a figure, the frames of an animation if it moves, and numbers.

Shapes: B images, T steps, D latent, C H W image.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from inference import latents
from inference.data.files import IMAGE_ENDINGS, read_image
from inference.image_choice import fit_to, has_property, pick, values_of
from inference.plotting import labelled_grid
from inference.runs import Run
from inference.sampling import sample
from inference.weights import log_weights
from ppl_models.errors import PplError, UnknownNameError
from ppl_models.program import Batch


@dataclass
class Exploration:
    """What a kind has found."""

    figure: Figure
    frames: np.ndarray | None = None
    """(T, N, C, H, W), if it moves."""
    numbers: dict[str, Any] = field(default_factory=dict)


def manifold(
    run: Run, *, side: int = 20, dims: list[int] | None = None, site: str | None = None,
    value: int | None = None,
) -> Exploration:
    """Images over the plane of two components, even in the prior's probability."""
    given = None if value is None else {"y": torch.tensor([value], device=_device(run))}
    images = _array(latents.manifold(run.program, side=side, dims=dims, site=site, given=given))
    names = [f"{(i + 0.5) / side:.2f}" for i in range(side)]
    every = max(1, side // 10)
    shown = [name if i % every == 0 else "" for i, name in enumerate(names)]
    across, up = dims or (0, 1)
    figure = labelled_grid(
        images,
        shown[::-1],
        shown,
        f"{run.program.name}: what codes decode to",
        row_title=f"quantile of component {up}",
        column_title=f"quantile of component {across}",
    )
    return Exploration(figure, numbers={"images": side * side})


def interpolation(
    run: Run, *, split: str = "test", indices: list[int] | None = None, num: int = 6,
    steps: int = 9, method: str = "slerp", site: str | None = None,
) -> Exploration:
    """Walks from image to image through their codes."""
    batch, places = pick(run.data.split(split), indices, num)
    walks = latents.interpolate(run.program, batch, num_steps=steps, method=method, site=site)
    ends = batch["x"]
    shown = torch.cat([ends[:-1].unsqueeze(1), walks, ends[1:].unsqueeze(1)], 1)
    columns = ["image", *(f"{i / (steps - 1):.2f}" for i in range(steps)), "image"]
    rows = [f"{a} → {b}" for a, b in zip(places, places[1:], strict=False)]
    title = f"{run.program.name}: {method} between codes of the {split} data"
    figure = labelled_grid(_array(shown), rows, columns, title, row_title="numbers of the images")
    return Exploration(figure, _array(walks.transpose(0, 1)), {"images": len(places)})


def traversal(
    run: Run, *, index: list[int] | None = None, split: str = "test", start: int | None = None,
    steps: int = 9, most: int = 20, site: str | None = None, value: int | None = None,
) -> Exploration:
    """One component after the other from three prior deviations below the mean to three above."""
    batch = None if start is None else pick(run.data.split(split), [start], 1)[0]
    given = None if value is None else {"y": torch.tensor([value], device=_device(run))}
    first = next(iter(run.data.split(split).batches(2)))
    chosen = latents.choose_site(_sites(run, first), site)
    wanted = list(range(min(chosen.size, most))) if index is None else index
    options: dict[str, Any] = {"batch": batch, "given": given, "site": chosen.name}
    images = latents.traverse(run.program, wanted, num_steps=steps, **options)
    deviations = np.linspace(-3, 3, steps)
    columns = [f"{d:+.1f}σ" if d else "0" for d in deviations]
    rows = [f"{chosen.name}[{i}]" for i in wanted]
    where = "the prior's mean" if start is None else f"image {start} of the {split} data"
    figure = labelled_grid(
        _array(images), rows, columns, f"{run.program.name}: traversals from {where}"
    )
    return Exploration(figure, _array(images.transpose(0, 1)), {"components": len(rows)})
