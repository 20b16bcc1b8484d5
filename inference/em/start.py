"""Where EM, and gradient descent on a mixture, start.

Shapes: N data, K components, D dimensions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from inference.em.maximize import add_floor
from inference.em.program import MixtureProgram
from inference.em.rows import Rows
from inference.em.statistics import Mixture
from ppl_models.errors import PplError, UnknownNameError
from ppl_models.program import Program

SAMPLE = 20_000
"""Data that a start looks at."""
STARTS = ("auto", "kmeans++", "neighbourhoods", "current")


def start_mixture(program: Any, rows: Rows, how: str = "auto", seed: int = 0) -> None:
    """Set a mixture's parameters from a sample of the data.

    Args:
        program: a Gaussian mixture; is changed.
        rows: the data.
        how: ``kmeans++`` (clusters of scikit-learn's k-means, features scaled by their spread),
            ``neighbourhoods`` (of random data), ``current`` (as it is); ``auto``: k-means++, but
            neighbourhoods where locs are fixed at zero.
        seed: of sample and start.

    Raises:
        PplError: fewer data, or fewer distinct ones, than components; or no spread at all.
    """
    if how not in STARTS:
        raise UnknownNameError("start", how, STARTS)
    if how == "current":
        return
    sample = rows.sample(SAMPLE, seed).double()
    check_enough(sample, program.num_components)
    spread = sample.std(0, correction=0)
    unit = torch.where(spread > 0, spread, 1.0)
    if how == "auto":
        how = "neighbourhoods" if program.zero_mean else "kmeans++"
    if how == "kmeans++":
        members = _clusters(sample / unit, program.num_components, seed)
    else:
        members = _neighbourhoods(sample / unit, program.num_components, seed)
    found = _moments(sample, members, program)
    weights, locs, covariances = found.weights, found.locs, found.covariances
    program.set_moments(weights, locs, covariances, unit=unit)


def start_untouched(program: Program, data: Any, seed: int) -> bool:
    """Give a mixture that nobody has set or trained a start from its data.

    Args:
        program: any program; is changed if it is such a mixture.
        data: its training split, on its device.
        seed: of the start.

    Returns:
        Whether it was one.
    """
    mixture = program.owner
    if not isinstance(mixture, MixtureProgram) or bool(mixture.started):
        return False
    start_mixture(mixture, Rows(data, mixture.dim, mixture.started.device), seed=seed)
    return True


def check_enough(sample: Tensor, num_components: int) -> None:
    """Refuse data from which so many components cannot be told.

    Raises:
        PplError: saying what there is and what to do.
    """
    direction = torch.randn(
        sample.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64
    )
    distinct = len((sample @ direction.to(sample.device)).unique())
    if distinct == 1 and len(sample) > 1:
        raise PplError(
            f"all {len(sample)} data are the same point; there is no density to be learned"
        )
    if len(sample) < max(2, num_components):
        raise PplError(
            f"{num_components} component(s) from {len(sample)} data: at least "
            f"{max(2, num_components)} are needed; give fewer components or more data"
        )
    if distinct < num_components:
        raise PplError(
            f"{num_components} components from {distinct} distinct data points (of {len(sample)}, "
            f"the rest duplicates); give num_components={distinct} at most"
        )


def _clusters(sample: Tensor, num: int, seed: int) -> list[Tensor]:
    from sklearn.cluster import KMeans

    found = KMeans(num, init="k-means++", n_init=1, max_iter=50, random_state=seed)
    labels = torch.as_tensor(found.fit(sample.cpu().numpy()).labels_)
    return [(labels == k).nonzero().flatten().to(sample.device) for k in range(num)]


def _neighbourhoods(sample: Tensor, num: int, seed: int) -> list[Tensor]:
    size, dim = sample.shape
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randperm(size, generator=generator)[:num].to(sample.device)
    near = min(size, max(2 * dim, size // num))
    return [
        torch.cdist(sample[c].unsqueeze(0), sample)[0].topk(near, largest=False)[1] for c in centers
    ]


def _moments(sample: Tensor, members: list[Tensor], program: Any) -> Mixture:
    """Moments of the members, those of few data drawn towards what all have in common."""
    kind, dim = program.covariance, sample.shape[1]
    counts = torch.tensor([float(len(m)) for m in members]).to(sample)
    locs = torch.stack([sample[m].mean(0) for m in members])
    if program.zero_mean:
        locs = torch.zeros_like(locs)
    scatters = [_scatter(sample[m] - loc, kind) for m, loc in zip(members, locs, strict=True)]
    scatter = torch.stack(scatters)
    pooled = scatter.sum(0) / counts.sum()
    own = dim + 1.0
    if kind == "tied":
        covariances = pooled
    else:
        total = (counts + own).reshape(-1, *[1] * (scatter.dim() - 1))
        covariances = (scatter + own * pooled) / total
        covariances = covariances.mean(-1) if kind == "spherical" else covariances
    floor = program.min_scale**2
    return Mixture(
        counts / counts.sum(), locs, add_floor(covariances, kind, floor), kind, program.zero_mean
    )


def _scatter(away: Tensor, kind: str) -> Tensor:
    return away.mT @ away if kind in ("full", "tied") else away.square().sum(0)
