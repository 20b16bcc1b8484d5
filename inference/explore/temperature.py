"""A kind of exploration: the same draws at one temperature after the other."""

from __future__ import annotations

import torch

from inference.drawing import Sharpened
from inference.explore.choice import asked_for, pictures, vectors
from inference.explore.result import Explorable, Exploration
from inference.plotting import labelled_grid
from inference.sampling import sample

TEMPERATURES = (0.2, 0.4, 0.6, 0.8, 1.0)
"""As in the figures of Ha & Eck 2018, arXiv:1704.03477."""


def temperature(
    run: Explorable, *, num: int = 10, label: int | None = None, seed: int = 0
) -> Exploration:
    """Draws of an autoregressive site, a row a temperature; a column has one latent."""
    given = asked_for(run, label)
    held = {name: v.expand(num, *v.shape[1:]) for name, v in (given or {}).items()}
    rows = [
        sample(run.program, num, given=held, seed=seed, sharpened=Sharpened(level, progress=False))[
            "x"
        ]
        for level in TEMPERATURES
    ]
    shown = torch.stack(rows)
    names = [f"τ = {level:g}" for level in TEMPERATURES]
    title = f"{run.program.name}: the same codes at growing temperature"
    figure = labelled_grid(pictures(shown), names, (), title)
    return Exploration(figure, None, {"images": num * len(rows)}, vectors(shown))
