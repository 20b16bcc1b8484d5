"""Ranks of simulation-based calibration: histograms, and distribution functions with their bands.

Shapes: N ranks, each from 0 to L.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from itertools import islice

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy import stats

from inference.diagnostics.uniformity import below_points, binned, ecdf_band, num_bins

Ranks = NDArray[np.int64]
MOST_PANELS = 12
COLUMNS = 4


def _panels(ranks: Mapping[str, Ranks], title: str) -> tuple[Figure, Iterator[tuple[str, Axes]]]:
    """A panel for each of the first quantities."""
    names = [*islice(ranks, MOST_PANELS)]
    width = min(COLUMNS, len(names))
    height = math.ceil(len(names) / width)
    size = (max(2.6 * width, 4.8), 2.1 * height + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    places = figure.subplots(height, width, squeeze=False, sharex=True).flat
    for axes in places[len(names) :]:
        axes.set_visible(False)
    rest = f" (the {len(names)} least uniform of {len(ranks)})" if len(ranks) > len(names) else ""
    figure.suptitle(title + rest, fontsize=10)
    return figure, zip(names, places, strict=False)


def rank_histograms(ranks: Mapping[str, Ranks], num_draws: int, alpha: float = 0.01) -> Figure:
    """How often each rank came, in bins, over what uniform ranks give in each bin.

    Args:
        ranks: by quantity, (N,); the first twelve are drawn.
        num_draws: L.
        alpha: chance that a uniform rank's bin leaves the grey band, bin by bin.
    """
    figure, panels = _panels(ranks, "Ranks of what made the data among the guide's draws")
    for name, axes in panels:
        found = ranks[name]
        bins = num_bins(len(found), num_draws)
        low, high = stats.binom.interval(1 - alpha, len(found), 1 / bins)
        edges = np.linspace(0, 1, bins + 1)
        axes.axhspan(low, high, color="0.85", linewidth=0)
        axes.axhline(len(found) / bins, color="0.5", linewidth=0.8)
        counts = binned(found, num_draws, bins)
        outside = (counts < low) | (counts > high)
        colours = np.where(outside, "C3", "C0")
        axes.bar(edges[:-1], counts, 1 / bins, align="edge", color=colours, alpha=0.8)
        axes.set(title=name, xlim=(0, 1), ylim=(0, None))
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=7)
    figure.supxlabel("share of the guide's draws below", fontsize=8)
    figure.supylabel("simulations", fontsize=8)
    return figure


def ecdf_differences(ranks: Mapping[str, Ranks], num_draws: int, alpha: float = 0.01) -> Figure:
    """The ranks' distribution function less the uniform one, with a simultaneous band.

    Args:
        ranks: by quantity, (N,); the first twelve are drawn.
        num_draws: L.
        alpha: chance that uniform ranks of one quantity leave its band anywhere.
    """
    figure, panels = _panels(ranks, f"Ranks: distribution less uniform, {1 - alpha:.0%} band")
    for name, axes in panels:
        found = ranks[name]
        band = ecdf_band(len(found), num_draws, alpha)
        share = below_points(found, num_draws) / len(found)
        outside = bool(((share < band.low) | (share > band.high)).any())
        points = np.array([0.0, *band.points, 1.0])
        low, high = np.pad(band.low - band.points, 1), np.pad(band.high - band.points, 1)
        axes.fill_between(points, low, high, color="0.85", linewidth=0)
        axes.plot(points, np.pad(share - band.points, 1), color="C3" if outside else "C0")
        axes.axhline(0, color="0.5", linewidth=0.8)
        axes.set(title=name, xlim=(0, 1))
        axes.title.set_fontsize(9)
        axes.tick_params(labelsize=7)
    figure.supxlabel("share of the guide's draws below", fontsize=8)
    figure.supylabel("difference", fontsize=8)
    return figure
