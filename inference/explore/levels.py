"""The kind of exploration that shows what each level of a hierarchy decides.

Shapes: B images.
"""

from __future__ import annotations

import torch

from inference import latents
from inference.explore.choice import pick, pictures, some_places
from inference.explore.result import Explorable, Exploration
from inference.plotting import labelled_grid


def resample(
    run: Explorable,
    *,
    split: str = "test",
    images: list[int] | None = None,
    num: int = 10,
    levels: list[int] | None = None,
    seed: int = 0,
) -> Exploration:
    """Images whose upper latents are kept, and drawn anew from a level down; a row a level."""
    part = run.data.split(split)
    places = some_places(part, num) if images is None else images
    batch = pick(part, places)
    names = latents.levels_of(run.program, batch)
    wanted = list(range(len(names) + 1, 0, -1)) if levels is None else levels
    found = latents.resample(run.program, batch, wanted, seed=seed)
    rows = ["image", *(_row(names, level) for level in wanted)]
    shown = [batch["x"].unsqueeze(0), found]
    figure = labelled_grid(
        pictures(torch.cat(shown)),
        rows,
        [str(place) for place in places],
        f"{run.program.name}: drawn anew from a level down, kept above",
    )
    return Exploration(figure, numbers={"images": len(places), "levels": len(names)})


def _row(names: list[str], level: int) -> str:
    return "all kept" if level > len(names) else f"from {names[level - 1]}"
