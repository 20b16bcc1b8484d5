"""A mixture's parameters, and the sums over data that they are estimated from.

Shapes: K components, D dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Mixture:
    """A mixture's parameters in float64."""

    weights: Tensor
    """(K,)."""
    locs: Tensor
    """(K, D)."""
    covariances: Tensor
    """Full (K, D, D), tied (D, D), diagonal (K, D), spherical (K,)."""
    kind: str
    """Structure of the covariances."""
    zero_mean: bool

    @property
    def matrices(self) -> Tensor:
        """Covariances of full and tied structure, (K, D, D) or (1, D, D)."""
        return self.covariances if self.kind == "full" else self.covariances.unsqueeze(0)

    @property
    def variances(self) -> Tensor:
        """Of every dimension, (K, D)."""
        if self.kind in ("full", "tied"):
            return self.matrices.diagonal(dim1=-2, dim2=-1).expand_as(self.locs)
        if self.kind == "spherical":
            return self.covariances.unsqueeze(-1).expand_as(self.locs)
        return self.covariances

    def whole(self) -> tuple[Tensor, Tensor]:
        """Mean (D,) and covariance (D, D) of the mixture itself."""
        mean = self.weights @ self.locs
        away = self.locs - mean
        between = (away * self.weights.unsqueeze(-1)).mT @ away
        if self.kind == "tied":
            return mean, between + self.covariances
        if self.kind == "full":
            return mean, between + torch.einsum("k,kij->ij", self.weights, self.covariances)
        return mean, between + torch.diag(self.weights @ self.variances)


@dataclass(frozen=True)
class Statistics:
    """Sums over data, in float64, about an origin for each component."""

    origin: Tensor
    """(K, D)."""
    counts: Tensor
    """Σ_n r_nk, (K,)."""
    first: Tensor
    """Σ_n r_nk (x_n − origin_k), (K, D)."""
    second: Tensor
    """Σ_n r_nk of (x_n − origin_k)(x_n − origin_k)ᵀ: (K, D, D); its diagonal (K, D) for diagonal
    and spherical covariances; summed over k, (D, D), for a tied one."""
    log_likelihood: float
    """Σ_n log p(x_n); nats."""
    num_data: float

    def mean(self) -> Statistics:
        """The same per datum."""
        size = self.num_data
        return replace(
            self,
            counts=self.counts / size,
            first=self.first / size,
            second=self.second / size,
            log_likelihood=self.log_likelihood / size,
            num_data=1.0,
        )

    def about(self, origin: Tensor, kind: str) -> Statistics:
        """The same about another origin (K, D), for this structure of the covariances."""
        shift = self.origin - origin
        if not bool(shift.any()):
            return self
        # Σ r (a + s)(a + s)ᵀ = Σ r a aᵀ + (first + counts s / 2) sᵀ + its transpose
        half = self.first + 0.5 * self.counts.unsqueeze(-1) * shift
        if kind == "full":
            cross = half.unsqueeze(-1) * shift.unsqueeze(-2)
        else:
            cross = half.mT @ shift if kind == "tied" else half * shift
        both = cross + cross.mT if kind in ("full", "tied") else 2 * cross
        first = self.first + self.counts.unsqueeze(-1) * shift
        return replace(self, origin=origin, first=first, second=self.second + both)

    def towards(self, other: Statistics, share: float) -> Statistics:
        """(1 − share) of these and share of others about the same origin."""
        return Statistics(
            self.origin,
            self.counts.lerp(other.counts, share),
            self.first.lerp(other.first, share),
            self.second.lerp(other.second, share),
            (1 - share) * self.log_likelihood + share * other.log_likelihood,
            (1 - share) * self.num_data + share * other.num_data,
        )


def statistics_of(mixture: Mixture, floor: Tensor) -> Statistics:
    """Per datum, those of which the M-step makes this mixture; its log-likelihood is unknown.

    Args:
        mixture: its parameters.
        floor: what the M-step adds to the variances, (D,) or (1,).
    """
    kind, weights = mixture.kind, mixture.weights
    bare = add_floor(mixture.covariances, kind, -floor)
    if kind == "full":
        second = weights[:, None, None] * bare
    elif kind == "tied":
        second = bare
    else:
        variances = bare if kind == "diagonal" else bare.unsqueeze(-1)
        second = weights.unsqueeze(-1) * variances.expand_as(mixture.locs)
    first = torch.zeros_like(mixture.locs)
    return Statistics(mixture.locs, weights, first, second, 0.0, 1.0)


def add_floor(covariances: Tensor, kind: str, floor: Tensor) -> Tensor:
    """Covariances with ``floor`` added to every variance.

    Args:
        covariances: of this structure.
        kind: its name.
        floor: (D,), or (1,) the same for all.
    """
    if kind in ("full", "tied"):
        return covariances + torch.diag(floor.to(covariances).expand(covariances.shape[-1]))
    return covariances + floor.to(covariances)
