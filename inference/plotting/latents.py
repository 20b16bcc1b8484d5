"""Pictures of a latent space."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

Array = NDArray[np.floating]


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
