"""The pictures of a run whose program is a Gaussian mixture.

Shapes: N data, K components, D the elements of a datum; C H W image.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from inference.devices import isolated_rng
from inference.em.program import is_mixture, read
from inference.plotting import (
    component_means,
    image_grid,
    mixture_contours_2d,
    mixture_density_1d,
)
from ppl_models.program import Batch, Program

CAPTIONS: Mapping[str, str] = {
    "mixture": "The density that was learned and its components, with test data. In two "
    "dimensions each datum has the colours of its responsibilities, an ellipse is two standard "
    "deviations; data of more dimensions are seen on their two leading principal axes, on which "
    "the mixture is again one.",
    "draws": "Draws from the mixture, each from its component's whole distribution.",
    "components": "Means of the components and their weights.",
}


@torch.no_grad()
def mixture_figures(program: Program, batch: Batch) -> dict[str, Figure]:
    """What can be drawn of a Gaussian mixture; nothing, of another program.

    Args:
        program: on its device.
        batch: data with the field ``x``.

    Returns:
        Figures by name: ``mixture``; for images also ``draws`` and ``components``.
    """
    owner: Any = program.owner
    if not is_mixture(owner) or "x" not in batch:
        return {}
    x = batch["x"].to(owner.started.device)
    found = {"mixture": _density(owner, x, program.name)}
    shape = tuple(x.shape[1:])
    if len(shape) != 3 or shape[0] not in (1, 3):
        return found
    with isolated_rng(0):
        found["draws"] = image_grid(_array(owner.sample(64)), f"{program.name}: draws")
    if not owner.zero_mean:
        mixture = read(owner)
        means = _array(mixture.locs).reshape(-1, *shape)
        title = f"{program.name}: means of the components, and their weights"
        found["components"] = component_means(means, _array(mixture.weights), title)
    return found


def _density(owner: Any, x: Tensor, name: str) -> Figure:
    mixture = read(owner)
    weights, locs = _array(mixture.weights), _array(mixture.locs)
    data = _array(x.reshape(len(x), -1))
    if owner.dim == 1:
        scales = _array(mixture.variances[:, 0].sqrt())
        title = f"{name}: density and its components"
        return mixture_density_1d(data[:, 0], weights, locs[:, 0], scales, title)
    if mixture.kind in ("full", "tied"):
        covariances = _array(mixture.matrices.expand(len(locs), -1, -1))
    else:
        covariances = _array(torch.diag_embed(mixture.variances))
    resp = _array(owner.responsibilities(x))
    labels, title = ("x₁", "x₂"), f"{name}: density, components, responsibilities"
    if owner.dim > 2:
        axes, share = _leading_axes(data)
        center = data.mean(0)
        data, locs = (data - center) @ axes, (locs - center) @ axes
        covariances = axes.T @ covariances @ axes
        labels = ("first principal axis", "second principal axis")
        title += f" ({share:.0%} of the variance)"
    return mixture_contours_2d(data, resp, weights, locs, covariances, title, labels)


def _leading_axes(data: np.ndarray) -> tuple[np.ndarray, float]:
    """The two leading principal axes (D, 2), and their share of the variance."""
    _, singular, axes = np.linalg.svd(data - data.mean(0), full_matrices=False)
    if len(axes) < 2:
        axes = np.eye(data.shape[1])[:2]
    total = float((singular**2).sum())
    return axes[:2].T, float((singular[:2] ** 2).sum()) / total if total > 0 else 1.0


def _array(value: Tensor) -> np.ndarray:
    return value.detach().double().cpu().numpy()
