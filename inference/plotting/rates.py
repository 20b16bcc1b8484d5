"""The rate of every latent site: over training, and at the end."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

PREFIX = "valid_rate_"
LEAST = 1e-3
"""Nats; what is less, or negative by the draws, is drawn here on the logarithmic axis."""
MOST_NAMES = 24
"""Sites whose names have room below their bars."""


def rate_sites(history: Sequence[Mapping[str, Any]]) -> list[str]:
    """The latent sites whose rates the metrics hold, in the order of the model.

    Args:
        history: rows of ``metrics.csv``.
    """
    columns = dict.fromkeys(key for row in history for key in row if key.startswith(PREFIX))
    return [key.removeprefix(PREFIX) for key in columns]


def site_rates(
    history: Sequence[Mapping[str, Any]], epoch: int, collapsed_rate: float = 0.1
) -> Figure:
    """The rate of each latent site at every epoch (lines), and at one of them (bars).

    A line has the colour of its site's bar. Sites that have collapsed have red names.

    Args:
        history: rows of ``metrics.csv`` with columns ``valid_rate_SITE``; nats per datum.
        epoch: of the bars, from 1.
        collapsed_rate: nats, below which a site counts as collapsed.
    """
    sites = rate_sites(history)
    rates = np.array(
        [[row.get(f"{PREFIX}{site}", np.nan) for site in sites] for row in history], dtype=float
    )
    colours = mpl.colormaps["viridis"](np.linspace(0.0, 0.9, len(sites)))
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    marker = "o" if len(epochs) == 1 else None
    for column, colour in zip(rates.T, colours, strict=True):
        left.plot(epochs, np.maximum(column, LEAST), color=colour, marker=marker)
    left.axhline(collapsed_rate, color="C3", linestyle="--", linewidth=1)
    left.annotate(
        f"collapsed: below {collapsed_rate:g}",
        (0.02, collapsed_rate),
        xycoords=("axes fraction", "data"),
        xytext=(0, -10),
        textcoords="offset points",
        fontsize=7,
        color="C3",
    )
    left.set(xlabel="epoch", ylabel="rate KL(q ‖ p), nats per datum", yscale="log")
    left.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.set_title("Rate of each latent site in validation", fontsize=10)
    _bars(right, sites, rates[epochs.index(epoch)], colours, collapsed_rate)
    right.set_title(f"after epoch {epoch}, {np.nansum(rates[epochs.index(epoch)]):.2f} in all")
    right.title.set_fontsize(10)
    return figure


def _bars(axes: Axes, sites: Sequence[str], rates: Any, colours: Any, limit: float) -> None:
    """A bar a site, with its name, thinned out where there is no room, and its rate."""
    places = range(len(sites))
    axes.bar(places, rates, color=colours)
    every = -(-len(sites) // MOST_NAMES)
    shown = [i for i in places if i % every == 0 or rates[i] < limit]
    axes.set_xticks(shown, [sites[i] for i in shown], rotation=90 if len(sites) > 8 else 0)
    for label, i in zip(axes.get_xticklabels(), shown, strict=True):
        label.set_fontsize(8)
        label.set_color("C3" if rates[i] < limit else "0.2")
    if len(sites) <= MOST_NAMES // 2:
        for place, rate in zip(places, rates, strict=True):
            axes.annotate(
                f"{rate:.3g}", (place, max(rate, 0)), ha="center", va="bottom", fontsize=7
            )
    axes.set_ylabel("nats per datum")
