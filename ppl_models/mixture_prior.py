"""The conjugate prior of a Gaussian mixture: Dirichlet and Normal-inverse-Wishart.

    weights ~ Dirichlet(concentration, ..., concentration)
    Σ_k     ~ InverseWishart(df, diag(scale))          for every component, or once if tied
    loc_k   ~ Normal(mean, Σ_k / mean_strength)

For diagonal and spherical covariances the inverse Wishart is that of one dimension, over every
variance. Densities are over weights, locs and covariances themselves, so that the mode is the
textbooks' and EM has it in closed form.

Shapes: K components, D dimensions.

References:
    Fraley, Raftery: Bayesian Regularization for Normal Mixture Estimation and Model-Based
    Clustering, Journal of Classification 24, 2007.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_models.errors import PplError

Numbers = float | tuple[float, ...]


@dataclass(frozen=True)
class ConjugatePrior:
    """Dirichlet on the weights, Normal-inverse-Wishart on each component.

    Args:
        concentration: of the Dirichlet; 1 is flat, and below it the mode may not exist.
        scale: diagonal of the inverse Wishart's matrix, one number or one a dimension; about
            (df + D + 2) times the variance that a component without data gets.
        df: its degrees of freedom; D + 2 when left out.
        mean: of the locs, one number or one a dimension.
        mean_strength: how many data the prior mean is worth; 0 leaves the locs free.
    """

    concentration: float = 1.0
    scale: Numbers = 1.0
    df: float | None = None
    mean: Numbers = 0.0
    mean_strength: float = 0.0

    def __post_init__(self) -> None:
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        if not self.concentration >= 1:
            raise PplError(
                f"concentration must be at least 1 for a mode to exist, got {self.concentration}"
            )
        if not all(s > 0 for s in scales):
            raise PplError(f"scale must be positive, got {self.scale}")
        if not self.mean_strength >= 0:
            raise PplError(f"mean_strength must not be negative, got {self.mean_strength}")

    def check(self, covariance: str, dim: int) -> None:
        """Refuse degrees of freedom, or lengths, that do not fit.

        Raises:
            PplError: saying what would.
        """
        least = self._wishart_dim(covariance, dim) - 1
        if not self.degrees(dim) > least:
            raise PplError(f"df must be above {least} for {dim} dimensions, got {self.df}")
        for name, value in (("scale", self.scale), ("mean", self.mean)):
            if isinstance(value, tuple) and len(value) != dim:
                raise PplError(f"{name} has {len(value)} entries for {dim} dimensions")
        if covariance == "spherical" and isinstance(self.scale, tuple):
            raise PplError("a spherical covariance takes one number for scale")

    def degrees(self, dim: int) -> float:
        """Degrees of freedom."""
        return dim + 2.0 if self.df is None else self.df

    def scale_vector(self, like: Tensor, dim: int) -> Tensor:
        """Diagonal of the inverse Wishart's matrix, (D,)."""
        return torch.as_tensor(self.scale).to(like).expand(dim)

    def mean_vector(self, like: Tensor, dim: int) -> Tensor:
        """Prior mean of the locs, (D,)."""
        return torch.as_tensor(self.mean).to(like).expand(dim)

    @staticmethod
    def _wishart_dim(covariance: str, dim: int) -> int:
        return dim if covariance in ("full", "tied") else 1

    def log_prob(
        self,
        log_weights: Tensor,
        locs: Tensor | None,
        covariances: Tensor,
        covariance: str,
        dim: int,
    ) -> Tensor:
        """Log density of a mixture's parameters, a scalar; nats.

        Args:
            log_weights: (K,).
            locs: (K, D), or None where they are fixed at zero.
            covariances: full (K, D, D), tied (D, D), diagonal (K, D), spherical (K, 1).
            covariance: the structure's name.
            dim: D.
        """
        num, alpha = len(log_weights), self.concentration
        total = (
            math.lgamma(num * alpha) - num * math.lgamma(alpha) + ((alpha - 1) * log_weights).sum()
        )
        scale = self.scale_vector(log_weights, dim)
        degrees = self.degrees(dim)
        if covariance in ("full", "tied"):
            total = total + _log_inverse_wishart(covariances, degrees, scale).sum()
        else:
            total = total + _log_inverse_gamma(covariances, degrees / 2, scale / 2).sum()
        if locs is not None and self.mean_strength > 0:
            total = total + self._log_locs(locs, covariances, covariance).sum()
        return total

    def _log_locs(self, locs: Tensor, covariances: Tensor, covariance: str) -> Tensor:
        """Log Normal(loc_k; mean, Σ_k / mean_strength), (K,)."""
        away = locs - self.mean_vector(locs, locs.shape[-1])
        if covariance in ("full", "tied"):
            factor = torch.linalg.cholesky(covariances)
            white = torch.linalg.solve_triangular(factor, away.unsqueeze(-1), upper=False)
            white, log_scales = white.squeeze(-1), factor.diagonal(dim1=-2, dim2=-1).log()
        else:
            scales = covariances.sqrt().expand_as(locs)
            white, log_scales = away / scales, scales.log()
        strength = self.mean_strength
        constant = 0.5 * locs.shape[-1] * math.log(strength / (2 * math.pi))
        return constant - 0.5 * strength * white.square().sum(-1) - log_scales.sum(-1)


def _log_inverse_wishart(covariances: Tensor, degrees: float, scale: Tensor) -> Tensor:
    """Log InverseWishart(Σ; degrees, diag(scale)) of (..., D, D)."""
    dim = covariances.shape[-1]
    factor = torch.linalg.cholesky(covariances)
    log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    trace = (torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1) * scale).sum(-1)
    half = torch.tensor(degrees / 2, dtype=torch.float64)
    constant = (
        0.5 * degrees * float(scale.double().log().sum())
        - 0.5 * degrees * dim * math.log(2)
        - float(torch.mvlgamma(half, dim))
    )
    return constant - 0.5 * (degrees + dim + 1) * log_det - 0.5 * trace


def _log_inverse_gamma(variances: Tensor, shape: float, scale: Tensor) -> Tensor:
    """Log InverseGamma(σ²; shape, scale), element by element."""
    rate = scale if variances.shape[-1] == len(scale) else scale[:1]
    constant = shape * rate.log() - math.lgamma(shape)
    return constant - (shape + 1) * variances.log() - rate / variances
