"""Intervals of latents by a guide, beside those of the exact posterior."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

Array = NDArray[np.floating]
MOST_ROWS = 24


def posterior_intervals(names: Sequence[str], nuts: Array, guide: Array) -> Figure:
    """50 % (thick) and 90 % intervals with the median, a row a latent dimension.

    Args:
        names: D; the first 24 are drawn.
        nuts: quantiles at 5, 25, 50, 75, 95 %, (5, D).
        guide: the same of the guide, (5, D).
    """
    shown = min(len(names), MOST_ROWS)
    figure = Figure(figsize=(6, 0.26 * shown + 1.3), layout="constrained")
    axes = figure.add_subplot()
    rows = np.arange(shown)
    looks = ((nuts, "NUTS", "0.35", -0.16), (guide, "guide", "C0", 0.16))
    for quantiles, label, colour, offset in looks:
        q = quantiles[:, :shown]
        axes.hlines(rows + offset, q[0], q[4], color=colour, linewidth=1)
        axes.hlines(rows + offset, q[1], q[3], color=colour, linewidth=3.5, label=label)
        axes.plot(q[2], rows + offset, "o", color=colour, markersize=4, markeredgecolor="white")
    axes.set_yticks(rows, names[:shown], fontsize=8)
    axes.set(ylim=(shown - 0.5, -0.5), xlabel="latent: 50 % and 90 % intervals")
    rest = f", the {shown} furthest apart of {len(names)}" if len(names) > shown else ""
    axes.set_title(f"Posterior by the guide and by NUTS{rest}", fontsize=10)
    axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return figure
