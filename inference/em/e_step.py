"""The E-step: log-likelihood and sufficient statistics of a mixture, in one pass over batches.

With quadratic features φ(y) = (y_i y_j for i ≤ j, y_i) of a datum y, the log densities of all
components are one matrix product with φ, and all their moments are another, of the
responsibilities with φ. The features are taken in coordinates in which the mixture as a whole is
white and centred, so that little is lost to cancellation; where still too much would be (tight
components far from each other, in float32), or where D is large, the differences from each
component are taken instead. Sums over chunks are in float64.

Shapes: n rows of a chunk, K components, D dimensions, F features.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from inference.em.statistics import Mixture, Statistics
from ppl_models.errors import PplError
from ppl_models.quadratic_forms import fill_pair_products, pack_symmetric, unpack_symmetric

MAX_FEATURE_DIM = 128
"""Above so many dimensions, D²/2 features of a datum no longer pay."""
MAX_ERROR = 1.0
"""Nats that a datum's log density may lose to cancellation, by a bound, before differences are
taken. On 8×8 image patches in float32 with a bound of 0.15 the worst of 1,000 lost 0.003, and the
mean of all was right to 1e-5."""
CHUNK = 2**22
"""Numbers of a chunk's largest temporary, so that it stays in the caches."""


class EStep:
    """Bayes' rule over chunks of data; how log densities and sums are taken is a subclass's.

    Args:
        mixture: its parameters.
        dtype: of the products.
    """

    rows_per_chunk: int

    def __init__(self, mixture: Mixture, dtype: torch.dtype) -> None:
        self.mixture = mixture
        self.dtype = dtype
        self.constant = mixture.weights.log() - 0.5 * mixture.locs.shape[1] * math.log(2 * math.pi)
        self.log_likelihood = mixture.locs.new_zeros(())
        self.num_data = 0

    def log_joint(self, x: Tensor) -> Tensor:
        """Log p(x, z) of a chunk (n, D), (K, n)."""
        raise NotImplementedError

    def collect(self, x: Tensor, resp: Tensor) -> None:
        """Add the moments of a chunk (n, D) with responsibilities (K, n)."""
        raise NotImplementedError

    def finish(self) -> Statistics:
        """The statistics of all that was added."""
        raise NotImplementedError

    def add(self, x: Tensor) -> None:
        """Take in a chunk (n, D)."""
        logits = self.log_joint(x)
        log_prob = logits.logsumexp(0)
        self.collect(x, logits.sub_(log_prob).exp_())
        self.log_likelihood += log_prob.sum(dtype=torch.float64)
        self.num_data += len(x)


class FeatureStep(EStep):
    """Full covariances, by quadratic features.

    Args:
        mixture: its parameters.
        dtype: of the products.
    """

    def __init__(self, mixture: Mixture, dtype: torch.dtype) -> None:
        super().__init__(mixture, dtype)
        dim = mixture.locs.shape[1]
        mean, total = mixture.whole()
        values, axes = torch.linalg.eigh(total)
        scales = values.clamp_min(values[-1] * 1e-12).sqrt()
        self.mean = mean.to(dtype)
        mean = self.mean.double()  # as it was rounded
        self.back = scales.unsqueeze(-1) * axes.mT  # x − mean = y @ back
        self.white = (axes / scales).to(dtype)  # y = (x − mean) @ white
        locs = (mixture.locs - mean) @ (axes / scales)
        inverse = inverse_factors(mixture.covariances)
        factor = inverse @ self.back.mT  # of the precisions: P = factorᵀ factor
        precisions = factor.mT @ factor
        linear = (precisions @ locs.unsqueeze(-1)).squeeze(-1)
        log_det = inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1)
        constant = self.constant + log_det - 0.5 * (linear * locs).sum(-1)
        self.constant = constant.unsqueeze(-1).to(dtype)  # (K, 1)
        parts = [-0.5 * pack_symmetric(precisions, 2.0)] + [linear] * (not mixture.zero_mean)
        self.coefficients = torch.cat(parts, dim=1).to(dtype)  # (K, F)
        self.rows_per_chunk = max(64, CHUNK // self.coefficients.shape[1])
        self.num_pairs = dim * (dim + 1) // 2
        self.error = torch.finfo(dtype).eps * self._amplification(precisions, locs)
        self._buffer = torch.empty(0)
        self.sums = torch.zeros_like(self.coefficients, dtype=torch.float64)
        self.counts = torch.zeros_like(mixture.weights)

    def _amplification(self, precisions: Tensor, locs: Tensor) -> float:
        """How much larger the terms of a log density are than their sum, at worst."""
        white = self.white.double()
        variances = ((self.mixture.covariances @ white) * white).sum(-2)
        size = (variances + locs.square()).sqrt().unsqueeze(-1)  # (K, D, 1)
        return float((size.mT @ precisions.abs() @ size).max())

    def features(self, x: Tensor) -> Tensor:
        """φ of rows (n, D), (F, n)."""
        y = ((x - self.mean) @ self.white).mT.contiguous()  # (D, n)
        shape = (self.coefficients.shape[1], y.shape[1])
        if self._buffer.shape != shape:
            self._buffer = y.new_empty(shape)
        pairs = fill_pair_products(y, self._buffer)
        if not self.mixture.zero_mean:
            self._buffer[pairs:] = y
        return self._buffer

    def log_joint(self, x: Tensor) -> Tensor:
        """One product with the features, which stay in the buffer."""
        return torch.addmm(self.constant, self.coefficients, self.features(x))

    def collect(self, x: Tensor, resp: Tensor) -> None:
        """Another product with the same features."""
        self.sums += resp @ self._buffer.mT
        self.counts += resp.sum(1, dtype=torch.float64)

    def finish(self) -> Statistics:
        """The statistics, back in the coordinates of the data."""
        num, dim = self.mixture.locs.shape
        second = unpack_symmetric(self.sums[:, : self.num_pairs], dim)
        first = self.sums.new_zeros(num, dim)
        if not self.mixture.zero_mean:
            first = self.sums[:, self.num_pairs :]
        return Statistics(
            self.mean.double().expand(num, dim),
            self.counts,
            first @ self.back,
            self.back.mT @ second @ self.back,
            float(self.log_likelihood),
            self.num_data,
        )


class DifferenceStep(EStep):
    """Any structure, by the differences from each component.

    Args:
        mixture: its parameters.
        dtype: of the products.
    """

    def __init__(self, mixture: Mixture, dtype: torch.dtype) -> None:
        super().__init__(mixture, dtype)
        num, dim = mixture.locs.shape
        self.locs = mixture.locs.to(dtype)
        self.square = mixture.kind in ("full", "tied")
        if self.square:
            inverse = inverse_factors(mixture.matrices)
            log_det = inverse.diagonal(dim1=-2, dim2=-1).log().sum(-1)
            self.inverse = inverse.mT.contiguous().to(dtype)  # L⁻ᵀ, (K or 1, D, D)
        else:
            inverse = mixture.variances.rsqrt()  # (K, D)
            log_det = inverse.log().sum(-1)
            self.inverse = inverse.to(dtype)
        self.constant = (self.constant + log_det).to(dtype)
        self.rows_per_chunk = max(64, CHUNK // max(8 * num, dim))
        self.counts = mixture.locs.new_zeros(num)
        self.first = torch.zeros_like(mixture.locs)
        squares = (num if mixture.kind == "full" else 1, dim, dim)
        self.second = self.first.new_zeros(squares if self.square else (num, dim))

    def _white(self, x: Tensor, k: int) -> Tensor:
        """L⁻¹(x − loc) of one component, (n, D)."""
        away = x - self.locs[k]
        if self.square:
            return away @ self.inverse[k if self.mixture.kind == "full" else 0]
        return away * self.inverse[k]

    def log_joint(self, x: Tensor) -> Tensor:
        """Component by component."""
        distance = x.new_empty(len(self.locs), len(x))
        for k in range(len(self.locs)):
            torch.sum(self._white(x, k).square_(), dim=-1, out=distance[k])
        return self.constant.unsqueeze(-1) - 0.5 * distance

    def collect(self, x: Tensor, resp: Tensor) -> None:
        """Component by component."""
        for k in range(len(self.locs)):
            away = x - self.locs[k]
            weighed = away * resp[k].unsqueeze(-1)
            self.first[k] += weighed.sum(0)
            if self.square:
                self.second[k if self.mixture.kind == "full" else 0] += weighed.mT @ away
            else:
                self.second[k] += weighed.mul_(away).sum(0)
        self.counts += resp.sum(1, dtype=torch.float64)

    def finish(self) -> Statistics:
        """The statistics, about the locs."""
        return Statistics(
            self.locs.double(),
            self.counts,
            self.first,
            self.second[0] if self.mixture.kind == "tied" else self.second,
            float(self.log_likelihood),
            self.num_data,
        )


def inverse_factors(covariances: Tensor) -> Tensor:
    """L⁻¹ of the Cholesky factors of (K, D, D).

    Raises:
        PplError: a covariance is not positive definite; naming the components.
    """
    factor, failed = torch.linalg.cholesky_ex(covariances)
    if bool(failed.any()):
        raise PplError(
            f"the covariances of components {failed.nonzero().flatten().tolist()[:10]} are not "
            "positive definite: give a larger floor (min_scale), a structure with fewer numbers "
            "(diagonal), fewer components or more data; patches want to be dequantized"
        )
    eye = torch.eye(factor.shape[-1]).to(factor)
    return torch.linalg.solve_triangular(factor, eye, upper=False)


def choose_step(mixture: Mixture, dtype: torch.dtype) -> EStep:
    """The faster E-step that is exact enough.

    Args:
        mixture: its parameters.
        dtype: of the data.
    """
    if mixture.kind == "full" and mixture.locs.shape[1] <= MAX_FEATURE_DIM:
        by_features = FeatureStep(mixture, dtype)
        if by_features.error < MAX_ERROR:
            return by_features
    return DifferenceStep(mixture, dtype)


def one_pass(mixture: Mixture, batches: Iterable[Tensor], dtype: torch.dtype) -> Statistics:
    """The E-step over all data.

    Args:
        mixture: its parameters.
        batches: of rows (n, D).
        dtype: of the data.
    """
    step = choose_step(mixture, dtype)
    for batch in batches:
        for chunk in batch.split(step.rows_per_chunk):
            step.add(chunk)
    return step.finish()
