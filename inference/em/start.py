"""Where EM, and gradient descent on a mixture, start.

Shapes: N data, K components, D dimensions.
"""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from inference.em.program import floor_of, is_mixture
from inference.em.rows import Rows
from inference.em.statistics import Mixture, add_floor
from ppl_models.errors import PplError, UnknownNameError
from ppl_models.program import Program

SAMPLE = 20_000
"""Data that a start looks at."""
STARTS = ("auto", "kmeans++", "neighbourhoods", "current")


def start_mixture(program: Any, rows: Rows, how: str = "auto", seed: int = 0) -> None:
    """Set a mixture's parameters from a sample of the data.

    The mixture's unit becomes the spread of the data within the clusters that were found, dimension
    by dimension (of an image: over all its elements): the data's own scale, in whatever units they
    are and however far apart the clusters.

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
    sample = _sample(rows, program.num_components, seed)
    spread = scales_of(sample, rows.dtype)
    scaled = sample / spread
    if how == "auto":
        how = "neighbourhoods" if program.zero_mean else "kmeans++"
    find = _clusters if how == "kmeans++" else neighbourhoods
    members = find(scaled, program.num_components, seed)
    found, within = moments_of(sample, members, program.covariance, program.zero_mean)
    unit = torch.where(within > _finest(sample, rows.dtype), within, spread)
    if len(program.x_shape) > 1:  # the elements of an image are all in one unit
        unit = unit.square().mean().sqrt().expand_as(unit)
    program.set_unit(unit)
    covariances = add_floor(found.covariances, found.kind, floor_of(program))
    program.set_moments(found.weights, found.locs, covariances)


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
    if not is_mixture(mixture) or bool(mixture.started):
        return False
    start_mixture(mixture, Rows(data, mixture.dim, mixture.started.device), seed=seed)
    return True


def _sample(rows: Rows, num_components: int, seed: int) -> Tensor:
    """Data to start from, in float64: at random, with rare ones if duplicates leave too few.

    Raises:
        PplError: so many components cannot be told from these data.
    """
    sample = rows.sample(SAMPLE, seed).double()
    needed = max(2, num_components)
    distinct = len(sample[: 10 * needed].unique(dim=0))
    if distinct < needed:
        rare = rows.distinct(needed).double()
        distinct = len(rare)
        sample = torch.cat([sample, rare]) if rows.size > SAMPLE else sample
    check_enough(rows.size, distinct, num_components)
    return sample


def check_enough(size: int, distinct: int, num_components: int) -> None:
    """Refuse data from which so many components cannot be told.

    Args:
        size: how many data there are.
        distinct: how many of them differ; not counted further than is needed.
        num_components: K.

    Raises:
        PplError: saying what there is and what to do.
    """
    needed = max(2, num_components)
    if distinct == 1 and size > 1:
        raise PplError(f"all {size} data are the same point; there is no density to be learned")
    if size < needed:
        raise PplError(
            f"{num_components} component(s) from {size} data: at least {needed} are needed; give "
            "fewer components or more data"
        )
    if distinct < num_components:
        raise PplError(
            f"{num_components} components from {distinct} distinct data points (of {size}, "
            f"the rest duplicates); give num_components={distinct} at most"
        )


def scales_of(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Standard deviations of data (N, D), (D,); of what does not vary, the others' mean.

    Args:
        x: the data, in float64.
        dtype: that they came in, whose rounding is no variation.

    Raises:
        PplError: their variances over- or underflow.
    """
    spread = x.std(0, correction=0)
    known = spread > _finest(x, dtype)
    known = known if bool(known.any()) else spread > 0
    if not bool(known.any()) or not bool(spread.isfinite().all()):
        raise PplError(
            f"the squares of data from {float(x.min()):g} to {float(x.max()):g} leave what float64 "
            "can hold; give the data in another unit"
        )
    return torch.where(known, spread, spread[known].square().mean().sqrt())


def _finest(x: Tensor, dtype: torch.dtype) -> Tensor:
    """What rounding alone can make of a spread, (D,)."""
    return 4 * torch.finfo(dtype).eps * x.abs().amax(0)


def _clusters(sample: Tensor, num: int, seed: int) -> list[Tensor]:
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    found = KMeans(num, init="k-means++", n_init=1, max_iter=50, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # that there are many duplicates
        labels = torch.as_tensor(found.fit(sample.cpu().numpy()).labels_).long()
    sizes = labels.bincount(minlength=num)
    for k in (sizes == 0).nonzero().flatten().tolist():
        labels[int((labels == sizes.argmax()).nonzero()[0])] = k
        sizes = labels.bincount(minlength=num)
    return [(labels == k).nonzero().flatten().to(sample.device) for k in range(num)]


def neighbourhoods(sample: Tensor, num: int, seed: int) -> list[Tensor]:
    """For each component the indices of the data next to a random datum.

    Args:
        sample: data (N, D), in a metric in which nearness means something.
        num: K.
        seed: of the choice.
    """
    size, dim = sample.shape
    generator = torch.Generator().manual_seed(seed)
    centers = torch.randperm(size, generator=generator)[:num].to(sample.device)
    near = min(size, max(4 * dim, size // num))
    return [
        torch.cdist(sample[c].unsqueeze(0), sample)[0].topk(near, largest=False)[1] for c in centers
    ]


def moments_of(
    sample: Tensor, members: list[Tensor], kind: str, zero_mean: bool
) -> tuple[Mixture, Tensor]:
    """Moments of the members, those of few data drawn towards what all have in common.

    Args:
        sample: data (N, D).
        members: of each component, indices.
        kind: structure of the covariances.
        zero_mean: locs are zero.

    Returns:
        The mixture without a floor, and the spread within components, (D,).
    """
    dim = sample.shape[1]
    counts = torch.tensor([float(len(m)) for m in members]).to(sample)
    locs = torch.stack([sample[m].mean(0) for m in members])
    if zero_mean:
        locs = torch.zeros_like(locs)
    scatters = [_scatter(sample[m] - loc, kind) for m, loc in zip(members, locs, strict=True)]
    scatter = torch.stack(scatters)
    pooled = scatter.sum(0) / counts.sum()
    within = (pooled.diagonal() if kind in ("full", "tied") else pooled).sqrt()
    own = dim + 1.0
    if kind == "tied":
        covariances = pooled
    else:
        total = (counts + own).reshape(-1, *[1] * (scatter.dim() - 1))
        covariances = (scatter + own * pooled) / total
        covariances = covariances.mean(-1) if kind == "spherical" else covariances
    return Mixture(counts / counts.sum(), locs, covariances, kind, zero_mean), within


def _scatter(away: Tensor, kind: str) -> Tensor:
    return away.mT @ away if kind in ("full", "tied") else away.square().sum(0)
