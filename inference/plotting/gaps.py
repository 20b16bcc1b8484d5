"""The amortization gap and the approximation gap of every datum.

Shapes: B data.
"""

from __future__ import annotations

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

Array = NDArray[np.floating]
LOOKS = (("approximation: the family", "C0"), ("amortization: the encoder", "C1"))


def gap_figure(amortization: Array, approximation: Array) -> Figure:
    """Both gaps, stacked, the data sorted by their sum; and how each is spread.

    Args:
        amortization: L[q*] − L[q], (B,); nats.
        approximation: log p(x) − L[q*], (B,); nats.
    """
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[2.2, 1])
    order = np.argsort(amortization + approximation)
    gaps = (approximation[order], amortization[order])
    base = np.zeros(len(order))
    for gap, (label, colour) in zip(gaps, LOOKS, strict=True):
        shown = np.maximum(gap, 0)  # less than nothing is noise
        left.bar(range(len(order)), shown, 1.0, bottom=base, color=colour, label=label)
        base = base + shown
    left.set(xlabel="data, sorted", ylabel="nats", xlim=(-0.5, len(order) - 0.5))
    left.set_title("log p(x) − ELBO of every datum", fontsize=10)
    left.legend(fontsize=8, loc="upper left")
    boxes = right.boxplot(gaps, widths=0.6, patch_artist=True, showmeans=True)
    for box, (_, colour) in zip(boxes["boxes"], LOOKS, strict=True):
        box.set(facecolor=colour, alpha=0.6)
    names = ("approximation", "amortization")
    ticks = [f"{name}\n{gap.mean():.3f}" for name, gap in zip(names, gaps, strict=True)]
    right.set_xticks([1, 2], ticks, fontsize=8)
    right.axhline(0, color="0.5", linewidth=0.8)
    right.set_title("spread, mean below", fontsize=10)
    return figure
