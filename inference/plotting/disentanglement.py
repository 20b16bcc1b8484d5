"""A picture of what each latent component does, and of which factors it tells.

Shapes: D components, T steps, M factors, C H W image.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from inference.plotting.grids import draw_grid, grid_size

Array = NDArray[np.floating]


def traversals_with_information(
    images: Array,
    information: Array,
    rows: Sequence[str],
    columns: Sequence[str],
    factors: Sequence[str],
    title: str = "",
) -> Figure:
    """One traversal a row, and beside it how much of each factor the component tells.

    Args:
        images: (D, T, C, H, W) in [0, 1].
        information: of component i with factor j, over the factor's entropy, (D, M) in [0, 1].
        rows: names of the components.
        columns: names of the steps.
        factors: names.
        title: above the traversals.
    """
    width, height = grid_size(images, rows, columns, title)
    beside = 0.5 * len(factors) + 0.5
    figure = Figure(figsize=(width + beside, height), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[width, beside])
    draw_grid(left, images, rows, columns, title)
    right.imshow(information, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for (i, j), share in np.ndenumerate(information):
        colour = "white" if share > 0.5 else "black"
        right.text(j, i, f"{share:.2f}", ha="center", va="center", fontsize=7, color=colour)
    right.set_xticks(range(len(factors)), factors, fontsize=8)
    right.set_yticks([])
    right.tick_params(length=0, labeltop=True, labelbottom=False)
    right.set(frame_on=False)
    right.set_xlabel("I(component; factor) / H(factor)", fontsize=8)
    return figure
