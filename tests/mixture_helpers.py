"""What the tests of Gaussian mixtures share. Shapes: N data, K components, D dimensions."""

from __future__ import annotations

import warnings

import numpy as np
import pyro.distributions as dist
import torch
from sklearn.mixture import GaussianMixture as Peer
from torch import Tensor

from inference.em import Rows, start_mixture
from ppl_models.gmm import GaussianMixture

STRUCTURES = ("full", "tied", "diagonal", "spherical")
PEERS_NAME = {"full": "full", "tied": "tied", "diagonal": "diag", "spherical": "spherical"}


def blobs(size: int = 300, dim: int = 2, *, seed: int = 0, apart: float = 4.0) -> Tensor:
    """Three clouds of different shapes, float64."""
    g = torch.Generator().manual_seed(seed)
    parts = []
    for k, count in enumerate((size // 2, size // 3, size - size // 2 - size // 3)):
        factor = 0.5 * torch.randn(dim, dim, generator=g, dtype=torch.float64)
        noise = torch.randn(count, dim, generator=g, dtype=torch.float64)
        center = apart * torch.randn(dim, generator=g, dtype=torch.float64)
        parts.append(center + noise @ factor + 0.3 * (k + 1) * noise)
    return torch.cat(parts)[torch.randperm(size, generator=g)]


def random_mixture(covariance: str, num: int = 3, x_shape=(2,), **options) -> GaussianMixture:
    """A mixture with parameters that are nobody's choice, float64."""
    torch.manual_seed(1)
    mixture = GaussianMixture(x_shape, num, covariance, **options).double()
    with torch.no_grad():
        for parameter in mixture.parameters():
            parameter.copy_(0.5 * torch.randn_like(parameter))
    return mixture


def started(x: Tensor, num: int, covariance: str, **options) -> GaussianMixture:
    """A mixture that starts from the data, by k-means++."""
    mixture = GaussianMixture(tuple(x.shape[1:]), num, covariance, **options).to(x.dtype)
    start_mixture(mixture, Rows(x, mixture.dim, x.device))
    return mixture


def dense(mixture: GaussianMixture) -> tuple[Tensor, Tensor, Tensor]:
    """Weights (K,), locs (K, D), covariances (K, D, D) of any structure."""
    weights, locs, covariances = mixture.moments()
    num, dim = locs.shape
    if mixture.covariance == "tied":
        covariances = covariances.expand(num, dim, dim)
    elif mixture.covariance == "diagonal":
        covariances = torch.diag_embed(covariances)
    elif mixture.covariance == "spherical":
        covariances = covariances[:, None, None] * torch.eye(dim).to(locs)
    return weights, locs, covariances


def closed_form(mixture: GaussianMixture, x: Tensor) -> Tensor:
    """log p(x) by torch's own mixture, (N,)."""
    weights, locs, covariances = dense(mixture)
    parts = dist.MultivariateNormal(locs, covariances)
    return dist.MixtureSameFamily(dist.Categorical(weights), parts).log_prob(x)


def peer(mixture: GaussianMixture, x: np.ndarray, iterations: int) -> Peer:
    """scikit-learn's mixture, fitted from the parameters of ours, whose floor is one number."""
    (floor,) = mixture.floor.double().unique().tolist()
    return _peer(mixture, *(m.numpy() for m in mixture.moments()), x, iterations, floor**2)


def peer_log_likelihood(mixture: GaussianMixture, x: np.ndarray, iterations: int) -> float:
    """What scikit-learn's reaches from the parameters of ours, nats a datum of x.

    It has one ``reg_covar`` for all dimensions: it is given the data in units of our floors, in
    which they are one number too.
    """
    unit = 1e3 * mixture.floor.double().numpy()
    weights, locs, covariances = (m.numpy() for m in mixture.moments())
    square = unit[:, None] * unit if mixture.covariance in ("full", "tied") else unit**2
    found = _peer(mixture, weights, locs / unit, covariances / square, x / unit, iterations, 1e-6)
    return found.score(x / unit) - float(np.log(np.broadcast_to(unit, x.shape[1])).sum())


def _peer(mixture, weights, locs, covariances, x, iterations, reg_covar) -> Peer:
    square = mixture.covariance in ("full", "tied")
    precisions = np.linalg.inv(covariances) if square else 1 / covariances
    found = Peer(
        len(weights),
        covariance_type=PEERS_NAME[mixture.covariance],
        tol=0.0,
        max_iter=iterations,
        reg_covar=reg_covar,
        weights_init=weights / weights.sum(),
        means_init=locs,
        precisions_init=precisions,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it has not converged
        return found.fit(x)
