"""A prior of image patches: a zero-mean Gaussian mixture over patches without their mean.

    k ~ Categorical(mixture_weights)        which kind of patch: an edge, a texture, flat
    z ~ Normal(0, Σ_k)                      its coordinates in a basis without the constant patch
    patch = mean + basis z

Each Σ_k is kept as its eigenvalues and eigenvectors, so that one decomposition serves every
noise level: Σ_k + s I has the same eigenvectors. Under noise of variance s the mixture gives

    responsibilities p(k | z), and the Wiener filter E[z_clean | z, k] = (Σ_k + s I)⁻¹ Σ_k z.

Shapes: N patches, P side of a patch, D = P² − 1 dimensions, K components.

References:
    Zoran, Weiss: From Learning Models of Natural Image Patches to Whole Image Restoration, 2011.
    Parameswaran et al.: Accelerating GMM-based patch priors for image restoration, 2017,
    arXiv:1710.08124 (choosing components by less than the whole spectrum, random grids).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ppl_models.errors import PplError
from ppl_models.patches import dc_free_basis
from ppl_models.prior_files import check_spectra, read_prior, write_prior
from ppl_models.quadratic_forms import pack_symmetric, pair_products

CHUNK = 4096
"""Patches whose products of coordinates are in memory together: about 33 MB."""

MAX_KEPT = 32
"""Matrices of this many noise levels are kept, those of the longest ago go first."""

SHIPPED = Path(__file__).parent / "priors" / "photographs.safetensors"


class LogJoint(NamedTuple):
    """log p(k, z) of every component as a linear function of products of coordinates."""

    pairs: Tensor
    """(K, F) for products of the first coordinates."""
    squares: Tensor
    """(K, D − d) for squares of the others, which are taken as independent; often none."""
    offset: Tensor
    """(K, 1)."""


class PatchPrior(nn.Module):
    """A zero-mean mixture over patches without their mean.

    Args:
        weights: mixture weights, (K,), positive; scaled to sum to 1.
        eigenvalues: of each covariance in the basis without the constant patch, (K, D).
        eigenvectors: as columns, (K, D, D), orthonormal.

    Raises:
        PplError: shapes that do not fit, D + 1 no square, weights or eigenvalues not positive.
    """

    weights: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor
    basis: Tensor

    def __init__(self, weights: Tensor, eigenvalues: Tensor, eigenvectors: Tensor) -> None:
        super().__init__()
        check_spectra(weights, eigenvalues, eigenvectors)
        self.register_buffer("weights", weights.double() / weights.double().sum())
        self.register_buffer("eigenvalues", eigenvalues.double())
        self.register_buffer("eigenvectors", eigenvectors.double())
        basis = dc_free_basis(self.patch_size, torch.float32)
        self.register_buffer("basis", basis, persistent=False)
        self._made: dict[Hashable, Any] = {}

    @classmethod
    def from_covariances(cls, weights: Tensor, covariances: Tensor) -> PatchPrior:
        """A prior from full covariances.

        Args:
            weights: (K,).
            covariances: (K, D, D) in the basis of :func:`~ppl_models.patches.dc_free_basis`, or
                (K, P², P²) of pixels in rows, of which the part without the mean is taken.

        Raises:
            PplError: not square, of no patch size, or not positive definite; the message says
                which and what to do.
        """
        size = covariances.shape[-1]
        if covariances.dim() != 3 or covariances.shape[-2] != size:
            raise PplError(f"covariances must be (K, D, D); got {tuple(covariances.shape)}")
        if not bool(covariances.isfinite().all()):
            raise PplError("the covariances hold NaN or infinity")
        covariances = covariances.double()
        if math.isqrt(size) ** 2 == size:
            basis = dc_free_basis(math.isqrt(size)).to(covariances.device)
            covariances = basis.T @ covariances @ basis
        eigenvalues, eigenvectors = torch.linalg.eigh((covariances + covariances.mT) / 2)
        return cls(weights, eigenvalues.flip(-1), eigenvectors.flip(-1))

    @classmethod
    def shipped(cls) -> PatchPrior:
        """The prior that comes with the package, learned from freely licensed photographs."""
        return cls.load(SHIPPED)

    @classmethod
    def load(cls, path: str | Path) -> PatchPrior:
        """Read a prior: ``.safetensors`` of :meth:`save`, or ``.mat`` of Zoran and Weiss.

        Raises:
            PplError: the file cannot be read or holds no patch prior.
        """
        return cls(*read_prior(Path(path)))

    def save(self, path: str | Path, dtype: torch.dtype = torch.float32) -> None:
        """Write the prior as safetensors.

        Args:
            path: the file.
            dtype: of the eigenvectors; float16 halves the file, and reading makes them
                orthonormal again.
        """
        write_prior(Path(path), self.weights, self.eigenvalues, self.eigenvectors, dtype)

    @property
    def num_components(self) -> int:
        """K."""
        return len(self.weights)

    @property
    def patch_size(self) -> int:
        """P."""
        return math.isqrt(self.eigenvalues.shape[-1] + 1)

    def extra_repr(self) -> str:
        """For ``print``."""
        return f"{self.num_components} components, {self.patch_size}×{self.patch_size} patches"

    def covariances(self) -> Tensor:
        """Σ_k in the basis without the constant patch, (K, D, D) in float64."""
        return self._spectral(self.eigenvalues)

    def coordinates(self, patches: Tensor) -> Tensor:
        """Patches (..., P²) without their mean, in the basis: (..., D)."""
        if patches.shape[-1] != len(self.basis):
            raise PplError(
                f"this prior is of {self.patch_size}×{self.patch_size} patches, "
                f"{len(self.basis)} pixels each; got {patches.shape[-1]}"
            )
        return patches @ self.basis.to(patches.dtype)

    def log_prob(self, patches: Tensor, noise_variance: float = 0.0) -> Tensor:
        """Log density of patches without their mean, under the mixture seen through noise.

        Args:
            patches: (..., P²) in [0, 1]; the mean is taken off here.
            noise_variance: s, of noise on each pixel; added to every eigenvalue.

        Returns:
            (...,) in nats, a density in the D dimensions without the mean. Its gradient goes
            through the exact mixture; memory is bounded however many patches there are.
        """
        z = self.coordinates(patches)
        parts = [
            checkpoint(self._evidence, part, noise_variance, use_reentrant=False)
            for part in z.reshape(-1, z.shape[-1]).split(CHUNK)
        ]
        return torch.cat(parts).reshape(z.shape[:-1])

    def responsibilities(self, patches: Tensor, noise_variance: float = 0.0) -> Tensor:
        """p(k | patch), (..., K) for patches (..., P²)."""
        z = self.coordinates(patches)
        parts = z.reshape(-1, z.shape[-1]).split(CHUNK)
        found = torch.cat([self.log_joint(part, noise_variance).softmax(0).T for part in parts])
        return found.reshape(*z.shape[:-1], -1)

    def log_joint(self, z: Tensor, noise_variance: float, num_pairs: int | None = None) -> Tensor:
        """Log p(k, z) for coordinates z (N, D): (K, N).

        Args:
            z: coordinates.
            noise_variance: s.
            num_pairs: d: only the first (coarsest) d coordinates enter with their covariances,
                the others with their variances; all enter in full when left out.
        """
        dim = z.shape[-1]
        if num_pairs is not None and num_pairs < 1:
            raise PplError(f"num_pairs must be at least 1, or None for all; got {num_pairs}")
        d = dim if num_pairs is None else min(num_pairs, dim)
        linear = self._kept(self._log_joint_of, float(noise_variance), d, z.dtype)
        joint = torch.addmm(linear.offset, linear.pairs, pair_products(z[:, :d]))
        return joint if d == dim else joint.addmm(linear.squares, z[:, d:].square().T)

    def wiener(
        self,
        patches: Tensor,
        noise_variance: float,
        *,
        soft: bool = False,
        num_pairs: int | None = None,
    ) -> Tensor:
        """The clean patches that noisy ones stand for.

        Args:
            patches: (..., P²).
            noise_variance: s, of the noise on each pixel.
            soft: the posterior mean over all components; by default that of the likeliest.
            num_pairs: see :meth:`log_joint`; fewer is faster, and errs in the component alone.

        Returns:
            (..., P²), with the mean of the noisy patch.
        """
        flat = patches.reshape(-1, patches.shape[-1])
        z = self.coordinates(flat)
        filters = self._kept(self._filters_of, float(noise_variance), z.dtype)
        mean = flat.mean(-1, keepdim=True)
        if soft:
            clean = self._filter_softly(z, filters, noise_variance, num_pairs)
        else:
            clean = self._filter_by_likeliest(z, filters, noise_variance, num_pairs)
        return torch.addmm(mean, clean, self.basis.T.to(z.dtype)).reshape(patches.shape)

    def _filter_by_likeliest(
        self, z: Tensor, filters: Tensor, noise_variance: float, num_pairs: int | None
    ) -> Tensor:
        parts = z.split(CHUNK)
        found = [self.log_joint(part, noise_variance, num_pairs).argmax(0) for part in parts]
        component, order = torch.cat(found).sort()
        counts = torch.bincount(component, minlength=self.num_components).tolist()
        groups = z[order].split(counts)
        filtered = [group @ f for group, f in zip(groups, filters, strict=True) if len(group)]
        return torch.empty_like(z).index_copy_(0, order, torch.cat(filtered))

    def _filter_softly(
        self, z: Tensor, filters: Tensor, noise_variance: float, num_pairs: int | None
    ) -> Tensor:
        dim = z.shape[-1]
        side_by_side = filters.transpose(0, 1).reshape(dim, -1)  # (D, K D)
        clean = []
        for part in z.split(CHUNK // 4):
            chance = self.log_joint(part, noise_variance, num_pairs).softmax(0).T  # (n, K)
            every = (part @ side_by_side).view(len(part), -1, dim)
            clean.append((chance.unsqueeze(1) @ every).squeeze(1))
        return torch.cat(clean)

    def _evidence(self, z: Tensor, noise_variance: float) -> Tensor:
        return self.log_joint(z, noise_variance).logsumexp(0)

    def _spectral(self, values: Tensor) -> Tensor:
        """Matrices with the covariances' eigenvectors and these eigenvalues (K, D)."""
        return (self.eigenvectors * values.unsqueeze(-2)) @ self.eigenvectors.mT

    def _kept(self, make: Callable[..., Any], *arguments: Hashable) -> Any:
        """What a method makes of the spectra, kept for the noise levels of late."""
        key = (make.__name__, self.eigenvalues.device, *arguments)
        if key not in self._made:
            while len(self._made) >= MAX_KEPT:
                del self._made[next(iter(self._made))]
            self._made[key] = make(*arguments)
        return self._made[key]

    def _filters_of(self, noise_variance: float, dtype: torch.dtype) -> Tensor:
        """(Σ_k + s I)⁻¹ Σ_k, (K, D, D)."""
        return self._spectral(self.eigenvalues / (self.eigenvalues + noise_variance)).to(dtype)

    def _log_joint_of(self, noise_variance: float, num_pairs: int, dtype: torch.dtype) -> LogJoint:
        """Inverses and determinants in float64, whatever dtype the products are multiplied in."""
        noisy = self.eigenvalues + noise_variance
        dim = noisy.shape[-1]
        if num_pairs == dim:
            precision, log_det = self._spectral(1 / noisy), noisy.log().sum(-1)
            variances = noisy[:, dim:]
        else:
            covariance = self._spectral(noisy)
            factor = torch.linalg.cholesky(covariance[:, :num_pairs, :num_pairs])
            precision = torch.cholesky_inverse(factor)
            variances = covariance.diagonal(dim1=-2, dim2=-1)[:, num_pairs:]
            log_det = 2 * factor.diagonal(dim1=-2, dim2=-1).log().sum(-1) + variances.log().sum(-1)
        offset = self.weights.log() - 0.5 * (log_det + dim * math.log(2 * math.pi))
        pairs = pack_symmetric(-0.5 * precision, off_diagonal=2.0)
        return LogJoint(
            pairs.to(dtype), (-0.5 / variances).to(dtype), offset.unsqueeze(-1).to(dtype)
        )
