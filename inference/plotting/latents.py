"""Pictures of a latent space."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

Array = NDArray[np.floating]
SHARES = (0.5, 0.8, 0.95)
"""Of the prior's probability, within its contours."""
KERNELS = 5000
"""Draws of the prior that its contours are made of."""


def principal_plane(codes: Array) -> tuple[Array, float]:
    """Codes on their two leading principal axes.

    Args:
        codes: (N, D).

    Returns:
        (N, 2), and the share of the variance that the plane shows. Codes of one or two
        dimensions come back as they are (one is given a zero second axis).
    """
    if codes.shape[1] <= 2:
        return np.pad(codes, ((0, 0), (0, 2 - codes.shape[1]))), 1.0
    centred = codes - codes.mean(0)
    _, singular, axes = np.linalg.svd(centred, full_matrices=False)
    total = float((singular**2).sum())
    share = float((singular[:2] ** 2).sum()) / total if total > 0 else 1.0
    plane = centred @ axes[:2].T
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1]))), share


def latent_scatter(codes: Array, labels: NDArray[np.integer] | None, site: str = "z") -> Figure:
    """Posterior means in the plane, coloured by label.

    Args:
        codes: (N, D).
        labels: (N,) class numbers, or None.
        site: name of the latent site.
    """
    plane, share = principal_plane(codes)
    figure = Figure(figsize=(5.6, 5), layout="constrained")
    axes = figure.add_subplot()
    if labels is None:
        axes.scatter(plane[:, 0], plane[:, 1], s=6, alpha=0.7, linewidths=0)
    else:
        for label in np.unique(labels):
            chosen = plane[labels == label]
            look: dict[str, Any] = {
                "s": 8,
                "alpha": 0.8,
                "linewidths": 0,
                "color": f"C{label % 10}",
            }
            axes.scatter(chosen[:, 0], chosen[:, 1], label=str(label), **look)
        axes.legend(
            title="label", fontsize=7, markerscale=2, loc="center left", bbox_to_anchor=(1.0, 0.5)
        )
    what = "first two principal axes" if codes.shape[1] > 2 else "both axes"
    axes.set_title(f"E[{site} | x], {what} ({share:.0%} of the variance)", fontsize=10)
    axes.set_aspect("equal")
    return figure


def posterior_against_prior(
    codes: Mapping[str, Array], prior: Array, labels: NDArray[np.integer] | None = None
) -> Figure:
    """Where the codes of data lie, and where the prior would have them; a column a program.

    Above, the two components with the most variance, over contours that hold 50, 80 and 95 % of
    the prior; random z come from within them, and what no code is near was never trained on. Below,
    mean and two standard deviations of every component.

    Args:
        codes: draws of the aggregated posterior (N, D) by program: one draw of q(z | x) a datum,
            or the codes of an autoencoder.
        prior: draws (M, D).
        labels: class numbers (N,), for colours.
    """
    figure = Figure(figsize=(4.6 * len(codes) + 0.4, 6.4), layout="constrained")
    places = figure.subplots(2, len(codes), squeeze=False, height_ratios=[3, 1.3])
    for column, (name, z) in enumerate(codes.items()):
        _codes_over_prior(places[0, column], z, prior, labels, name)
        _moments(places[1, column], z, prior)
    return figure


def _codes_over_prior(
    axes: Axes, codes: Array, prior: Array, labels: NDArray[np.integer] | None, name: str
) -> None:
    from scipy.stats import gaussian_kde

    dims = np.sort(np.argsort(-codes.var(0), kind="stable")[:2])
    shown, under = (np.pad(z[:, dims], ((0, 0), (0, 2 - len(dims)))) for z in (codes, prior))
    colours = "C0" if labels is None else [f"C{label % 10}" for label in labels]
    axes.scatter(shown[:, 0], shown[:, 1], s=4, c=colours, alpha=0.5, linewidths=0)
    if len(dims) == 2:
        density = gaussian_kde(under[:KERNELS].T)
        levels = np.quantile(density(under[:KERNELS].T), [1 - share for share in SHARES])
        low, high = np.concatenate([shown, under]).min(0), np.concatenate([shown, under]).max(0)
        across, up = np.meshgrid(*(np.linspace(a, b, 100) for a, b in zip(low, high, strict=True)))
        heights = density(np.stack([across.ravel(), up.ravel()])).reshape(across.shape)
        axes.contour(across, up, heights, levels=np.sort(levels), colors="black", linewidths=0.8)
        axes.set_ylabel(f"z[{dims[1]}]")
    axes.set_xlabel(f"z[{dims[0]}]")
    axes.set_aspect("equal", adjustable="datalim")
    axes.set_title(f"{name}: codes, and contours of the prior", fontsize=10)


def _moments(axes: Axes, codes: Array, prior: Array) -> None:
    """Mean and two standard deviations of every component, of codes and of the prior."""
    places = np.arange(codes.shape[1])
    for z, colour, shift, label in ((prior, "black", -0.15, "prior"), (codes, "C0", 0.15, "codes")):
        look: dict[str, Any] = {"fmt": "o", "markersize": 3, "color": colour, "elinewidth": 1.2}
        axes.errorbar(places + shift, z.mean(0), 2 * z.std(0), label=label, **look)
    axes.set(xlabel="component", ylabel="mean ± 2 sd", xlim=(-0.6, len(places) - 0.4))
    low, high = axes.get_ylim()
    axes.set_ylim(low, high + 0.3 * (high - low))  # room for the legend
    axes.legend(fontsize=7, ncols=2, loc="upper right")
