"""What a patch prior learns from: sufficient statistics of zero-mean Gaussian mixtures.

The statistics of a component are how much of the data is its own and the mean products of their
coordinates. Both directions are one matrix product: log densities are linear in the products, and
the statistics are sums of products weighed by responsibilities.

Shapes: N patches, D dimensions, K components, F = D (D + 1) / 2 products.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_models.errors import PplError
from ppl_models.patch_prior import PatchPrior
from ppl_models.patches import dc_free_basis
from ppl_models.quadratic_forms import pack_symmetric, pair_products, unpack_symmetric

CHUNK = 8192
"""Patches whose products are in memory together."""

Statistics = dict[str, Tensor]
"""``counts`` (K,), mean responsibilities; ``moments`` (K, F), mean responsibilities × products."""


@dataclass
class ZeroMeanMixture:
    """Weights (K,) and covariances (K, D, D) in float64."""

    weights: Tensor
    covariances: Tensor

    def prior(self) -> PatchPrior:
        """The mixture as a prior of patches."""
        return PatchPrior.from_covariances(self.weights, self.covariances)


class PatchLearner:
    """Expectation and maximization for a mixture over patches without their mean.

    Args:
        num_components: K.
        patch_size: P.
        floor: added to every variance.
        seed: of the start.
    """

    def __init__(
        self, num_components: int, patch_size: int = 8, floor: float = 1e-7, seed: int = 0
    ) -> None:
        if num_components < 1:
            raise PplError(f"num_components must be at least 1, got {num_components}")
        self.num_components = num_components
        self.floor = floor
        self.basis = dc_free_basis(patch_size, torch.float32)
        self.generator = torch.Generator().manual_seed(seed)

    def start(self, patches: Tensor) -> Statistics:
        """Statistics of the neighbours of random patches: no component begins without data.

        Args:
            patches: (N, P²).

        Raises:
            PplError: fewer patches than components.
        """
        data = patches @ self.basis
        if len(data) < max(self.num_components, 2):
            raise PplError(
                f"{self.num_components} components need at least as many patches; got {len(data)}"
            )
        chosen = torch.randperm(len(data), generator=self.generator)[: self.num_components]
        count = min(len(data), max(4 * data.shape[-1], len(data) // self.num_components))
        overall = (data.T @ data / len(data)).double()
        covariances = []
        for centre in data[chosen]:
            near = (data - centre).square().sum(-1).topk(count, largest=False).indices
            some = data[near].double()
            covariances.append(some.T @ some / count + 0.01 * overall)
        counts = torch.full((self.num_components,), 1 / self.num_components, dtype=torch.float64)
        moments = counts.unsqueeze(-1) * pack_symmetric(torch.stack(covariances))
        return {"counts": counts, "moments": moments}

    def maximize(self, statistics: Statistics) -> ZeroMeanMixture:
        """The mixture of these statistics."""
        counts, dim = statistics["counts"], self.basis.shape[-1]
        covariances = unpack_symmetric(statistics["moments"] / counts.unsqueeze(-1), dim)
        covariances += self.floor * torch.eye(dim, dtype=covariances.dtype)
        return ZeroMeanMixture(counts / counts.sum(), covariances)

    def expect(self, mixture: ZeroMeanMixture, patches: Tensor) -> tuple[float, Statistics]:
        """Mean log density (nats a patch) and statistics (float64) of patches (N, P²)."""
        linear, offset = _log_joint(mixture, patches.dtype)
        total = torch.zeros((), dtype=torch.float64)
        counts = torch.zeros_like(mixture.weights)
        moments = torch.zeros(linear.shape, dtype=torch.float64)
        for part in patches.split(CHUNK):
            products = pair_products(part @ self.basis)
            joint = torch.addmm(offset, linear, products)  # (K, n)
            evidence = joint.logsumexp(0)
            responsibilities = joint.sub_(evidence).exp_()
            total += evidence.sum(dtype=torch.float64)
            counts += responsibilities.sum(1, dtype=torch.float64)
            moments += responsibilities @ products.T
        n = len(patches)
        return float(total) / n, {"counts": counts / n, "moments": moments / n}

    def repair(self, statistics: Statistics, num_data: float) -> int:
        """Split the heaviest component into the place of each that has hardly any data.

        Args:
            statistics: changed in place.
            num_data: how many patches they stand for.

        Returns:
            How many components were made anew.
        """
        counts, moments = statistics["counts"], statistics["moments"]
        lost = (counts < self.basis.shape[-1] / num_data).nonzero().flatten().tolist()
        for k in lost:
            heavy = int(counts.argmax())
            for values in (counts, moments):
                values[heavy] /= 2
                values[k] = values[heavy]
            moments[k] *= 0.7
            moments[heavy] *= 1.3
        return len(lost)


def _log_joint(mixture: ZeroMeanMixture, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Log p(k, z) as a linear function of products: (K, F) and (K, 1)."""
    factor, failed = torch.linalg.cholesky_ex(mixture.covariances)
    if bool(failed.any()):
        raise PplError(
            f"the covariances of components {failed.nonzero().flatten().tolist()[:10]} are not "
            "positive definite; dequantize the patches, or learn fewer components from more"
        )
    dim = factor.shape[-1]
    half_log_det = factor.diagonal(dim1=-2, dim2=-1).log().sum(-1)
    offset = mixture.weights.log() - half_log_det - 0.5 * dim * math.log(2 * math.pi)
    linear = pack_symmetric(-0.5 * torch.cholesky_inverse(factor), off_diagonal=2.0)
    return linear.to(dtype), offset.unsqueeze(-1).to(dtype)
