"""The reliability diagram: how often a prediction is right against how sure it is."""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.floating]


def reliability_diagram(
    edges: Array, counts: NDArray[np.int64], confidence: Array, accuracy: Array, title: str = ""
) -> Figure:
    """Accuracy of each bin, with where it lies in 95 of 100 cases; below, how full the bins are.

    Args:
        edges: of the bins, (bins + 1,).
        counts: predictions in each, (bins,).
        confidence: its mean in each, NaN in an empty one, (bins,).
        accuracy: share that is right in each, (bins,).
        title: above.
    """
    figure = Figure(figsize=(4.4, 5), layout="constrained")
    upper, lower = figure.subplots(2, 1, height_ratios=[3.2, 1], sharex=True)
    full = counts > 0
    right = np.round(accuracy[full] * counts[full])
    low = stats.beta.ppf(0.025, right + 0.5, counts[full] - right + 0.5)  # Jeffreys' interval
    high = stats.beta.ppf(0.975, right + 0.5, counts[full] - right + 0.5)
    upper.plot([0, 1], [0, 1], color="0.5", linestyle="--", linewidth=1, label="calibrated")
    upper.vlines(confidence[full], low, high, color="C0", linewidth=1.5)
    upper.plot(confidence[full], accuracy[full], "o-", color="C0", markersize=5, label="found")
    upper.set(ylabel="share that is right", xlim=(0, 1), ylim=(-0.02, 1.02))
    upper.legend(fontsize=8, loc="upper left")
    upper.set_title(title, fontsize=10)
    widths = np.diff(edges)
    lower.bar(edges[:-1], counts, widths, align="edge", color="C0", alpha=0.5, edgecolor="white")
    lower.set(xlabel="confidence in the likeliest class", ylabel="predictions")
    return figure
