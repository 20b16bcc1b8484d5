"""Pictures of what posterior diagnostics found.

Shapes: N data, S draws, D latent dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

LEAST_HEIGHT = 0.1
"""Nats at the top of the axis of rates, so that a collapsed site's look as small as they are."""


def pareto_figure(pareto_k: np.ndarray, threshold: float) -> Figure:
    """Pareto k of every datum, in order, and their histogram.

    Args:
        pareto_k: (N,), finite.
        threshold: above it weights are not to be trusted.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(2, 1))
    ordered = np.sort(pareto_k)
    above = ordered > threshold
    places = np.arange(len(ordered))
    for part, colour, label in (
        (~above, "C0", "trusted"),
        (above, "C3", f"{int(above.sum())} of {len(ordered)} above {threshold:.2f}"),
    ):
        left.plot(places[part], ordered[part], ".", color=colour, markersize=4, label=label)
    left.set(xlabel="data, in the order of k", ylabel="Pareto k")
    left.set_title("Tail of each datum's importance weights", fontsize=10)
    left.legend(fontsize=8, frameon=False, loc="lower right")  # k ascends: free of points
    right.hist(pareto_k, bins=30, orientation="horizontal", color="0.6")
    right.set(xlabel="data")
    for axes in (left, right):
        axes.axhline(threshold, color="C3", linestyle="--", linewidth=1)
    return figure


def evidence_figure(gap: np.ndarray, ess: np.ndarray) -> Figure:
    """What the ELBO of each datum falls short of the bound of many draws, and the ESS.

    Args:
        gap: (N,) nats.
        ess: (N,), shares of the draws.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.hist(gap, bins=30, color="C0")
    left.axvline(float(gap.mean()), color="C3", linestyle="--", label=f"mean {gap.mean():.3g}")
    left.set(xlabel="IWAE bound − ELBO, nats", ylabel="data")
    left.set_title("What the ELBO falls short by", fontsize=10)
    left.legend(fontsize=8, frameon=False)
    right.hist(ess, bins=np.linspace(0, 1, 31), color="C2")
    right.set(xlabel="effective share of the draws", ylabel="data")
    right.set_title("Draws that count in the bound", fontsize=10)
    return figure


def predictive_figure(
    replicated: Mapping[str, np.ndarray],
    observed: Mapping[str, float],
    p_values: Mapping[str, float],
) -> Figure:
    """Each statistic of replicated data sets, and of the observed one.

    Args:
        replicated: by statistic, (S,).
        observed: by statistic.
        p_values: by statistic.
    """
    columns = 2 if len(replicated) == 4 else min(3, len(replicated))
    rows = -(-len(replicated) // columns)
    figure = Figure(figsize=(3.2 * columns, 2.5 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (name, values) in zip(grid, replicated.items(), strict=False):
        axes.hist(values, bins=30, color="0.7", label="replicated")
        axes.axvline(observed[name], color="C3", label="observed")
        axes.set_title(f"{name}: p = {p_values[name]:.3g}", fontsize=9)
        axes.tick_params(labelsize=7)
        axes.ticklabel_format(useOffset=False)
        axes.xaxis.set_major_locator(MaxNLocator(4))
    for axes in grid[len(replicated) :]:
        axes.set_axis_off()
    grid[0].legend(fontsize=7, frameon=False)
    grid[0].set_ylabel("replicated data sets", fontsize=8)
    return figure


def loo_figure(elpd: np.ndarray, pareto_k: np.ndarray, threshold: float) -> Figure:
    """Log density of each datum given all others, and the k of the weights it rests on.

    Args:
        elpd: (N,) nats.
        pareto_k: (N,).
        threshold: of k.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(np.sort(elpd), ".", markersize=4)
    left.set(xlabel="data, in order", ylabel="log p(x | all others), nats")
    left.set_title(f"Leave-one-out: {elpd.sum():.2f} in all", fontsize=10)
    right.plot(pareto_k, ".", markersize=4)
    right.axhline(threshold, color="C3", linestyle="--", linewidth=1)
    right.set(xlabel="data", ylabel="Pareto k")
    right.set_title("Trust in each", fontsize=10)
    return figure


def dimension_figure(kl: Mapping[str, np.ndarray], dead: Mapping[str, np.ndarray]) -> Figure:
    """KL of every latent dimension, largest first, a panel a site.

    Args:
        kl: by site, (D,) nats per datum.
        dead: by site, (D,): whether the dimension is out of use.
    """
    columns = min(3, len(kl))
    rows = -(-len(kl) // columns)
    figure = Figure(figsize=(3.6 * columns + 1, 2.8 * rows), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    for axes, (site, values) in zip(grid, kl.items(), strict=False):
        order = np.argsort(-values)
        colours = np.where(dead[site][order], "C3", "C0")
        axes.bar(np.arange(1, len(values) + 1), values[order], color=list(colours), width=0.9)
        axes.set_title(
            f"{site}: {int((~dead[site]).sum())} of {len(values)} in use, {values.sum():.2f} nats",
            fontsize=9,
        )
        axes.set_xlabel("dimension, largest first; dead ones in red", fontsize=8)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylabel("KL(q ‖ p), nats per datum", fontsize=8)
        axes.set_ylim(0, max(LEAST_HEIGHT, 1.05 * float(values.max())))
    for axes in grid[len(kl) :]:
        axes.set_axis_off()
    return figure
