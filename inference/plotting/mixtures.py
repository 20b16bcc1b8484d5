"""Pictures of Gaussian mixtures.

Shapes: N data, K components, G points of a grid; C H W image.
"""

from __future__ import annotations

import math
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse
from numpy.typing import NDArray

from inference.plotting.images import tile

Array = NDArray[np.floating]
LABELLED = 12
"""More components than this are not listed in a legend."""


def component_colours(num: int) -> Array:
    """A colour a component, (K, 3)."""
    if num <= 10:
        return np.array(matplotlib.colormaps["tab10"].colors[:num])  # type: ignore[attr-defined]
    return matplotlib.colormaps["hsv"](np.arange(num) / num)[:, :3]


def normal_density(points: Array, loc: Array, covariance: Array) -> Array:
    """Density of a normal at points (G, D), (G,)."""
    away = np.linalg.solve(np.linalg.cholesky(covariance), (points - loc).T)
    scale = np.sqrt(np.linalg.det(2 * math.pi * covariance))
    return np.exp(-0.5 * (away**2).sum(0)) / scale


def mixture_density_1d(
    x: Array, weights: Array, locs: Array, scales: Array, title: str = ""
) -> Figure:
    """A density in one dimension with its components, over a histogram of data.

    Args:
        x: data (N,).
        weights: (K,).
        locs: (K,).
        scales: standard deviations (K,).
        title: above it.
    """
    low = min(x.min(), (locs - 3 * scales).min())
    high = max(x.max(), (locs + 3 * scales).max())
    narrow = np.concatenate(
        [loc + scale * np.linspace(-4, 4, 81) for loc, scale in zip(locs, scales, strict=True)]
    )
    grid = np.unique(np.clip(np.concatenate([np.linspace(low, high, 600), narrow]), low, high))
    parts = [
        weight * normal_density(grid[:, None], np.array([loc]), np.array([[scale**2]]))
        for weight, loc, scale in zip(weights, locs, scales, strict=True)
    ]
    figure = Figure(figsize=(6.4, 3.6), layout="constrained")
    axes = figure.add_subplot()
    bins = min(80, max(10, round(math.sqrt(len(x)))))
    axes.hist(x, bins=bins, density=True, color="0.88", label="data")
    for k, (part, colour) in enumerate(zip(parts, component_colours(len(parts)), strict=True)):
        axes.fill_between(grid, part, color=colour, alpha=0.35, linewidth=0)
        label = f"{weights[k]:.2f} · N({locs[k]:.2g}, {scales[k]:.2g}²)"
        axes.plot(grid, part, color=colour, linewidth=1, label=label)
    axes.plot(grid, sum(parts), color="black", linewidth=1.6, label="p(x)")
    if len(parts) <= LABELLED:
        axes.legend(fontsize=8, frameon=False)
    axes.set(xlabel="x", ylabel="density", xlim=(low, high), ylim=(0, None))
    axes.set_title(title, fontsize=10)
    return figure


def mixture_contours_2d(
    x: Array,
    responsibilities: Array,
    weights: Array,
    locs: Array,
    covariances: Array,
    title: str = "",
    labels: tuple[str, str] = ("x₁", "x₂"),
) -> Figure:
    """Data in the plane, each coloured by its responsibilities; contours of the density.

    Args:
        x: data (N, 2).
        responsibilities: (N, K); a datum between components has a colour between theirs.
        weights: (K,).
        locs: (K, 2).
        covariances: (K, 2, 2).
        title: above it.
        labels: of the axes.
    """
    colours = component_colours(len(weights))
    figure = Figure(figsize=(6, 5.2), layout="constrained")
    axes = figure.add_subplot()
    look: dict[str, Any] = {"s": 9 if len(x) < 3000 else 3, "alpha": 0.8, "linewidths": 0}
    axes.scatter(x[:, 0], x[:, 1], c=np.clip(responsibilities @ colours, 0, 1), **look)
    low, high = x.min(0), x.max(0)
    margin = 0.06 * (high - low) + 1e-9
    low, high = low - margin, high + margin
    sides = [np.linspace(a, b, 240) for a, b in zip(low, high, strict=True)]
    across, up = np.meshgrid(*sides)
    points = np.stack([across.ravel(), up.ravel()], -1)
    density = sum(
        weight * normal_density(points, loc, covariance)
        for weight, loc, covariance in zip(weights, locs, covariances, strict=True)
    )
    log_density = np.log(np.maximum(density, 1e-300)).reshape(across.shape)
    top = log_density.max()
    axes.contour(
        across,
        up,
        log_density,
        levels=np.linspace(top - 8, top - 0.3, 9),
        colors="0.35",
        linewidths=0.6,
        negative_linestyles="solid",
    )
    for k, colour in enumerate(colours):
        _ellipse(axes, locs[k], covariances[k], colour)
        if len(weights) <= LABELLED:
            axes.annotate(
                f"{weights[k]:.2f}",
                locs[k],
                fontsize=8,
                ha="center",
                va="center",
                bbox={"boxstyle": "round,pad=0.2", "fc": "white", "ec": colour, "lw": 1.2},
                annotation_clip=True,
            )
    axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), xlabel=labels[0], ylabel=labels[1])
    axes.set_title(title, fontsize=10)
    return figure


def _ellipse(axes: Any, loc: Array, covariance: Array, colour: Array) -> None:
    """Where a component has two standard deviations."""
    values, vectors = np.linalg.eigh(covariance)
    width, height = 4 * np.sqrt(np.maximum(values, 0))
    angle = math.degrees(math.atan2(vectors[1, 0], vectors[0, 0]))
    axes.add_patch(
        Ellipse(tuple(loc), width, height, angle=angle, fill=False, edgecolor=colour, linewidth=1.8)
    )


def component_means(means: Array, weights: Array, title: str = "") -> Figure:
    """The means of components as images, the heaviest first.

    Args:
        means: (K, C, H, W) in [0, 1].
        weights: (K,).
        title: above it.
    """
    order = np.argsort(-weights)
    columns = min(10, len(means)) if len(means) <= 60 else 20
    rows = math.ceil(len(means) / columns)
    figure = Figure(figsize=(0.9 * columns, 1.12 * rows + 0.4), layout="constrained")
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for axes, k in zip(grid.flat, order, strict=False):
        axes.imshow(
            tile(means[k : k + 1], 1, pad=0), cmap="gray", vmin=0, vmax=1, interpolation="nearest"
        )
        axes.set_title(f"{weights[k]:.3f}", fontsize=7, pad=2)
    figure.suptitle(title, fontsize=10)
    return figure
