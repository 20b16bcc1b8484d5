"""The M-step: the parameters that statistics ask for, in closed form.

With a conjugate prior these are the mode of Dirichlet and Normal-inverse-Wishart, else maximum
likelihood with ``floor`` added to the variances.

Shapes: K components, D dimensions.

References:
    Fraley, Raftery: Bayesian Regularization for Normal Mixture Estimation and Model-Based
    Clustering, Journal of Classification 24, 2007 (the modes).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inference.em.statistics import Mixture, Statistics, add_floor


def maximize(stats: Statistics, old: Mixture, floor: Tensor, prior: Any = None) -> Mixture:
    """The mixture that the statistics ask for.

    Args:
        stats: of all data.
        old: the mixture that they were taken under; a component without data keeps its
            parameters.
        floor: (D,) or (1,), added to the variances where there is no prior.
        prior: a :class:`~ppl_models.mixture_prior.ConjugatePrior`, or None.
    """
    alpha = 1.0 if prior is None else prior.concentration
    num, dim = old.locs.shape
    weights = (stats.counts + (alpha - 1)) / (stats.num_data + num * (alpha - 1))
    some = stats.counts.clamp_min(torch.finfo(torch.float64).tiny).unsqueeze(-1)
    shift = stats.first / some
    means = stats.origin + shift  # of the data
    scatter = _minus(stats.second, stats.counts, shift, old)
    locs = torch.zeros_like(means) if old.zero_mean else means
    if prior is None:
        covariances = _likeliest(scatter, stats, old)
        locs, covariances = _keep_empty(stats.counts, locs, covariances, old)
        covariances = add_floor(covariances, old.kind, floor)
        return Mixture(weights, locs, _positive(covariances, old.kind, floor), *_same(old))
    strength = 0.0 if old.zero_mean else prior.mean_strength
    if strength > 0:
        center = prior.mean_vector(means, dim)
        total = some + strength
        locs = (strength * center + some * means) / total
        pull = (strength * some / total).squeeze(-1)
        scatter = scatter + _spread_of(pull, means - center, old.kind)
    covariances = _mode(scatter, stats, old, prior, strength > 0)
    return Mixture(weights, locs, _positive(covariances, old.kind, floor), *_same(old))


def _positive(covariances: Tensor, kind: str, floor: Tensor) -> Tensor:
    """The same, lifted to the floor in every direction where rounding took one below zero.

    Sums of float32 products are good to 1e-7 of the data's variance, and a floor may be lower.
    """
    if kind not in ("full", "tied"):
        return torch.maximum(covariances, floor)
    if not bool(covariances.isfinite().all()):
        return covariances  # is refused where it is set, with a reason
    failed = torch.linalg.cholesky_ex(covariances).info > 0
    if not bool(failed.any()):
        return covariances
    unit = floor.sqrt().expand(covariances.shape[-1])
    square = unit.unsqueeze(-1) * unit
    values, axes = torch.linalg.eigh(covariances[failed] / square)
    lifted = covariances.clone()
    lifted[failed] = square * ((axes * values.clamp_min(1.0).unsqueeze(-2)) @ axes.mT)
    return lifted


def _same(old: Mixture) -> tuple[str, bool]:
    return old.kind, old.zero_mean


def _spread_of(weights: Tensor, away: Tensor, kind: str) -> Tensor:
    """Σ over data of weight · away awayᵀ, in the structure's shape."""
    weighed = away * weights.unsqueeze(-1)
    if kind == "full":
        return weighed.unsqueeze(-1) * away.unsqueeze(-2)
    return weighed.mT @ away if kind == "tied" else weighed * away


def _minus(second: Tensor, counts: Tensor, shift: Tensor, old: Mixture) -> Tensor:
    """Second moments about the means (about zero where locs are fixed there)."""
    return second if old.zero_mean else second - _spread_of(counts, shift, old.kind)


def _per_component(counts: Tensor, like: Tensor) -> Tensor:
    return counts.reshape(-1, *[1] * (like.dim() - 1))


def _likeliest(scatter: Tensor, stats: Statistics, old: Mixture) -> Tensor:
    if old.kind == "tied":
        return scatter / stats.num_data
    some = stats.counts.clamp_min(torch.finfo(torch.float64).tiny)
    covariances = scatter / _per_component(some, scatter)
    return covariances.mean(-1) if old.kind == "spherical" else covariances


def _keep_empty(
    counts: Tensor, locs: Tensor, covariances: Tensor, old: Mixture
) -> tuple[Tensor, Tensor]:
    """A component that no datum comes from stays where it was."""
    empty = counts < 1e-10
    locs = torch.where(empty.unsqueeze(-1), old.locs, locs)
    if old.kind != "tied":
        covariances = torch.where(_per_component(empty, covariances), old.covariances, covariances)
    return locs, covariances


def _mode(scatter: Tensor, stats: Statistics, old: Mixture, prior: Any, with_locs: bool) -> Tensor:
    """Mode of the inverse Wishart given the data."""
    num, dim = old.locs.shape
    scale = prior.scale_vector(scatter, dim)
    degrees = prior.degrees(dim)
    if old.kind == "tied":
        total = degrees + dim + 1 + stats.num_data + (num if with_locs else 0)
        return (scatter + torch.diag(scale)) / total
    if old.kind == "full":
        total = degrees + dim + 1 + stats.counts + with_locs
        return (scatter + torch.diag(scale)) / _per_component(total, scatter)
    if old.kind == "diagonal":
        total = degrees + 2 + stats.counts + with_locs
        return (scatter + scale) / total.unsqueeze(-1)
    total = degrees + 2 + dim * (stats.counts + with_locs)
    return (scatter.sum(-1) + scale[0]) / total
