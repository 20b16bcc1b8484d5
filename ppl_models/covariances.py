"""Covariances of K Gaussians: one full matrix each, one for all, diagonals, or single variances.

Each holds unconstrained parameters, so that gradients may do with them as they like, and can be
set to given covariances, so that a closed form may too. The Cholesky factor has rows of scale
``floor + exp(log_scales)``: with a positive floor under the determinant, no component can
shrink onto a point and drive the likelihood to infinity.

Shapes: K components, N data, D dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.errors import PplError

SMALLEST = 1e-8
"""What is left of ``log_scales`` at the floor, relative to it."""


class Covariance(nn.Module):
    """Base of the structures.

    Args:
        num_components: K.
        dim: D.
    """

    log_scales: nn.Parameter
    floor: Tensor
    """Smallest scales, (D,) or, for a spherical structure, (1,); in units of the data."""

    def __init__(self, num_components: int, dim: int) -> None:
        super().__init__()
        self.num_components = num_components
        self.dim = dim
        self.register_buffer("floor", torch.full((dim,), 1e-3))

    @property
    def scales(self) -> Tensor:
        """Diagonal of the Cholesky factor."""
        return self.floor + self.log_scales.exp()

    @torch.no_grad()
    def set_floor(self, scales: Tensor) -> None:
        """Take these floors, positive, one a dimension.

        Args:
            scales: (D,), or one number.
        """
        self.floor.copy_(scales)

    def _set_scales(self, scales: Tensor) -> None:
        floor = self.floor.double()
        self.log_scales.copy_(torch.maximum(scales - floor, SMALLEST * floor).log())

    def components(self, locs: Tensor, z: Tensor) -> dist.TorchDistribution:
        """p(x | z): batch shape of z, event shape (D,).

        Args:
            locs: (K, D).
            z: component indices.
        """
        raise NotImplementedError

    def log_prob(self, x: Tensor, locs: Tensor) -> Tensor:
        """Log densities of data (N, D) under every component, (N, K)."""
        white, log_det = self.whiten(x, locs)
        constant = 0.5 * self.dim * math.log(2 * math.pi)
        return -0.5 * white.square().sum(-1) - log_det - constant

    def whiten(self, x: Tensor, locs: Tensor) -> tuple[Tensor, Tensor]:
        """L⁻¹(x − loc), (N, K, D), and log |L|, (K,)."""
        raise NotImplementedError

    def matrices(self, dtype: torch.dtype | None = None) -> Tensor:
        """The covariances, in the shape that :meth:`set` takes; computed in this dtype."""
        raise NotImplementedError

    def set(self, covariances: Tensor) -> None:
        """Take these covariances.

        Raises:
            PplError: not of the right shape, or not positive definite.
        """
        raise NotImplementedError

    def _check_shape(self, covariances: Tensor, expected: tuple[int, ...]) -> None:
        if tuple(covariances.shape) != expected:
            raise PplError(
                f"{type(self).__name__} takes covariances of shape {expected}, got "
                f"{tuple(covariances.shape)}"
            )

    @property
    def num_free(self) -> int:
        """Free parameters."""
        return self.log_scales.numel()


class TriangularCovariance(Covariance):
    """By Cholesky factors L = diag(scales)(I + lower), with ``lower`` strictly triangular."""

    def __init__(self, num_components: int, dim: int, batch: tuple[int, ...]) -> None:
        super().__init__(num_components, dim)
        self.log_scales = nn.Parameter(torch.zeros(*batch, dim))
        self.lower = nn.Parameter(torch.zeros(*batch, dim, dim))  # the rest of it is unused

    @property
    def scale_tril(self) -> Tensor:
        """The Cholesky factors."""
        unit = self.lower.tril(-1) + torch.eye(self.dim).to(self.lower)
        return self.scales.unsqueeze(-1) * unit

    def _inverses(self) -> tuple[Tensor, Tensor]:
        eye = torch.eye(self.dim).to(self.lower)
        inverse = torch.linalg.solve_triangular(self.scale_tril, eye, upper=False)
        return inverse, self.scales.log().sum(-1)

    def matrices(self, dtype: torch.dtype | None = None) -> Tensor:
        """L Lᵀ."""
        factor = self.scale_tril.to(dtype)
        return factor @ factor.mT

    @torch.no_grad()
    def set(self, covariances: Tensor) -> None:
        """By Cholesky factorization, in float64."""
        self._check_shape(covariances, tuple(self.lower.shape))
        wide = covariances.double()
        factor, failed = torch.linalg.cholesky_ex(0.5 * (wide + wide.mT))
        if bool(failed.any()) or not bool(factor.isfinite().all()):
            raise PplError(_not_positive(wide, failed, self.floor))
        scales = factor.diagonal(dim1=-2, dim2=-1)
        self._set_scales(scales)
        self.lower.copy_((factor / scales.unsqueeze(-1)).tril(-1))

    @property
    def num_free(self) -> int:
        """D(D + 1)/2 a matrix."""
        return self.log_scales.numel() * (self.dim + 1) // 2


class FullCovariance(TriangularCovariance):
    """A matrix a component: covariances (K, D, D)."""

    def __init__(self, num_components: int, dim: int) -> None:
        super().__init__(num_components, dim, (num_components,))

    def components(self, locs: Tensor, z: Tensor) -> dist.TorchDistribution:
        """Multivariate normal."""
        return dist.MultivariateNormal(locs[z], scale_tril=self.scale_tril[z])

    def whiten(self, x: Tensor, locs: Tensor) -> tuple[Tensor, Tensor]:
        """One matrix product for all components."""
        inverse, log_det = self._inverses()  # (K, D, D)
        white = (x @ inverse.flatten(0, 1).mT).unflatten(-1, (self.num_components, self.dim))
        return white - (inverse @ locs.unsqueeze(-1)).squeeze(-1), log_det


class TiedCovariance(TriangularCovariance):
    """One matrix for all components: covariances (D, D)."""

    def __init__(self, num_components: int, dim: int) -> None:
        super().__init__(num_components, dim, ())

    def components(self, locs: Tensor, z: Tensor) -> dist.TorchDistribution:
        """Multivariate normal."""
        return dist.MultivariateNormal(locs[z], scale_tril=self.scale_tril)

    def whiten(self, x: Tensor, locs: Tensor) -> tuple[Tensor, Tensor]:
        """Data and locs in the same coordinates."""
        inverse, log_det = self._inverses()  # (D, D)
        return (x @ inverse.mT).unsqueeze(-2) - locs @ inverse.mT, log_det


class DiagonalCovariance(Covariance):
    """A variance an element and component: covariances (K, D)."""

    def __init__(self, num_components: int, dim: int) -> None:
        super().__init__(num_components, dim)
        self.log_scales = nn.Parameter(torch.zeros(num_components, dim))

    def components(self, locs: Tensor, z: Tensor) -> dist.TorchDistribution:
        """Independent normals."""
        scales = self.scales.expand(self.num_components, self.dim)
        return dist.Normal(locs[z], scales[z]).to_event(1)

    def whiten(self, x: Tensor, locs: Tensor) -> tuple[Tensor, Tensor]:
        """Element by element."""
        scales = self.scales.expand(self.num_components, self.dim)
        return (x.unsqueeze(-2) - locs) / scales, scales.log().sum(-1)

    def matrices(self, dtype: torch.dtype | None = None) -> Tensor:
        """The variances."""
        return self.scales.to(dtype).square()

    @torch.no_grad()
    def set(self, covariances: Tensor) -> None:
        """From variances."""
        self._check_shape(covariances, tuple(self.log_scales.shape))
        self._set_variances(covariances)

    def _set_variances(self, variances: Tensor) -> None:
        wide = variances.double()
        bad = ~(wide > 0) | ~wide.isfinite()
        if bool(bad.any()):
            raise PplError(_not_positive(wide, bad, self.floor))
        self._set_scales(wide.sqrt())


class SphericalCovariance(DiagonalCovariance):
    """One variance a component: covariances (K,)."""

    def __init__(self, num_components: int, dim: int) -> None:
        super().__init__(num_components, dim)
        self.log_scales = nn.Parameter(torch.zeros(num_components, 1))
        self.floor = torch.full((1,), 1e-3)

    @torch.no_grad()
    def set_floor(self, scales: Tensor) -> None:
        """One floor for all dimensions: the root mean square of those given."""
        self.floor.copy_(scales.square().mean().sqrt())

    def matrices(self, dtype: torch.dtype | None = None) -> Tensor:
        """The variances."""
        return super().matrices(dtype).squeeze(-1)

    @torch.no_grad()
    def set(self, covariances: Tensor) -> None:
        """From variances."""
        self._check_shape(covariances, (self.num_components,))
        self._set_variances(covariances.unsqueeze(-1))


def _not_positive(covariances: Tensor, failed: Tensor, floor: Tensor) -> str:
    index = tuple(failed.nonzero()[0].tolist()) if failed.dim() else ()
    which = f"of component {index[0]} " if index else ""
    return (
        f"the covariance {which}is not positive definite and finite; add a floor to its diagonal, "
        f"such as the square of its smallest scale, {float(floor.min()) ** 2:g}"
    )


COVARIANCES: dict[str, Callable[[int, int], Covariance]] = {
    "full": FullCovariance,
    "tied": TiedCovariance,
    "diagonal": DiagonalCovariance,
    "spherical": SphericalCovariance,
}
"""Structures by the name that models take."""
