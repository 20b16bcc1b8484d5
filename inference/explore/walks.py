"""Kinds of exploration that go through the latent space: manifold, interpolation, traversal.

Shapes: B images, T steps.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from inference import latents
from inference.explore.choice import asked_for, pick, pictures, some_places, under_label, vectors
from inference.explore.result import Explorable, Exploration
from inference.plotting import labelled_grid

MOST_ROWS = 24
"""Traversals that are drawn when none are named."""


def manifold(
    run: Explorable,
    *,
    steps: int = 20,
    dims: list[int] | None = None,
    site: str | None = None,
    label: int | None = None,
) -> Exploration:
    """Images over the plane of two components, even in the prior's probability."""
    given = asked_for(run, label)
    images = latents.manifold(run.program, side=steps, dims=dims, site=site, given=given)
    every = -(-steps // 10)
    names = [f"{(i + 0.5) / steps:.2f}" if i % every == 0 else "" for i in range(steps)]
    across, up = dims or (0, 1)
    figure = labelled_grid(
        pictures(images),
        names[::-1],
        names,
        f"{run.program.name}: what codes decode to",
        row_title=f"quantile of component {up}",
        column_title=f"quantile of component {across}",
    )
    return Exploration(figure, numbers={"images": steps * steps})


def interpolation(
    run: Explorable,
    *,
    split: str = "test",
    images: list[int] | None = None,
    num: int = 6,
    steps: int = 9,
    method: str = "slerp",
    site: str | None = None,
    label: int | None = None,
) -> Exploration:
    """Walks from image to image through their codes, from label to label or under one."""
    part, given = run.data.split(split), None if label is None else under_label(run, label)
    places = some_places(part, num) if images is None else images
    batch = pick(part, places)
    walks = latents.interpolate(
        run.program, batch, num_steps=steps, method=method, site=site, given=given
    )
    ends = batch["x"].unsqueeze(1)
    shown = torch.cat([ends[:-1], walks, ends[1:]], 1)
    columns = ["image", *(f"{t:.2f}" for t in np.linspace(0, 1, steps)), "image"]
    rows = [f"{a} → {b}" for a, b in pairwise(places)]
    title = f"{run.program.name}: {method} between the codes of {split} images"
    if "y" in run.program.fields:
        title += ", the label changed half-way" if label is None else f", all decoded as {label}"
    figure = labelled_grid(pictures(shown), rows, columns, title)
    frames = pictures(walks.transpose(0, 1))
    return Exploration(figure, frames, {"images": len(places)}, vectors(shown))


def traversal(
    run: Explorable,
    *,
    dims: list[int] | None = None,
    split: str = "test",
    images: list[int] | None = None,
    steps: int = 9,
    site: str | None = None,
    label: int | None = None,
) -> Exploration:
    """One component after the other, from three prior deviations below the mean to three above."""
    batch = pick(run.data.split(split), images) if images else None
    given = asked_for(run, label) if batch is None else None
    _, chosen = latents.site_for(run.program, batch or given or {}, site)
    wanted = list(range(min(chosen.size, MOST_ROWS))) if dims is None else dims
    found = latents.traverse(
        run.program, wanted, batch=batch, given=given, site=chosen.name, num_steps=steps
    )
    rows = [f"{chosen.name}[{i}]" for i in wanted]
    start = f"the code of {split} image {images[0]}" if images else "the prior's mean"
    title = f"{run.program.name}: one component at a time, from {start}"
    figure = labelled_grid(pictures(found), rows, deviations(steps), title)
    frames = pictures(found.transpose(0, 1))
    return Exploration(figure, frames, {"components": len(wanted)}, vectors(found))


def deviations(steps: int) -> list[str]:
    """Names of the steps of a traversal."""
    return [f"{d:+.2g}σ" if abs(d) > 1e-9 else "0" for d in np.linspace(-3, 3, steps)]
