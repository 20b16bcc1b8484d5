"""Whole images by their patches: the expected patch log likelihood (EPLL) as a prior.

Generative story, for each image plane in the plate ``data`` (a grey image is one plane, a colour
image three, or its luminance alone):

    clean ∝ exp(EPLL(clean))            site ``clean``, (H, W), flat, and factor ``epll``
    noisy ~ observation(clean)          site ``noisy``, (H, W): noise, holes, blur

    EPLL(x) = (1/n) Σ_i log p(P_i x)    over all patches P_i x, n of them over each pixel

with p a Gaussian mixture over patches without their mean
(:class:`~ppl_models.patch_prior.PatchPrior`). The patches overlap and are not independent, so
exp(EPLL) is **no normalized density**: it scores images, nobody knows its integral, and nothing
is drawn from it. That is why ``clean`` is an improper flat site with a factor beside it, and why
inference is the mode (:func:`inference.map_estimate`, :func:`inference.split_half_quadratic`).

``smoothing`` is the variance s of the noise through which the mixture sees the patches: each
Σ_k becomes Σ_k + s I. Annealed from the noise's variance down, it makes five gradient steps do
the work; at 0 the objective is the plain posterior.

Shapes: B planes, H W image, P side of a patch.

References:
    Zoran, Weiss: From Learning Models of Natural Image Patches to Whole Image Restoration, 2011.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor
from torch.distributions import constraints
from torch.utils.checkpoint import checkpoint

from ppl_models.errors import PplError
from ppl_models.observations import Noise
from ppl_models.patch_prior import PatchPrior
from ppl_models.patches import coverage, extract_patches, grid_starts, lay_patches

BAND = 32768
"""Patches that are in memory together, whatever the size of the image."""


class EPLL(PyroModule):
    """Image restoration with a prior of patches.

    Args:
        prior: of patches.
        observation: how the clean image is seen; noise, holes or blur, of
            :mod:`ppl_models.observations`.
        stride: pixels between patches.
        even_borders: near the borders pixels are in fewer patches, and the prior's gradient there
            is scaled up to that of the others, so that a gradient step treats all pixels alike.
            False leaves the gradient that of the density.
    """

    def __init__(
        self, prior: PatchPrior, observation: Noise, stride: int = 1, even_borders: bool = True
    ) -> None:
        super().__init__()
        if not 1 <= stride <= prior.patch_size:
            raise PplError(f"stride must be from 1 to {prior.patch_size}, got {stride}")
        self.prior = prior
        self.observation = observation
        self.stride = stride
        self.even_borders = even_borders
        self.smoothing = 0.0

    @classmethod
    def denoiser(cls, prior: PatchPrior | None = None) -> Callable[[float], EPLL]:
        """From a noise scale σ in [0, 1] to the program for white noise of that scale.

        Args:
            prior: of patches; the shipped one when left out.
        """
        chosen = PatchPrior.shipped() if prior is None else prior
        return lambda noise_scale: cls(chosen, Noise(noise_scale))

    def expected_patch_log_likelihood(self, clean: Tensor) -> Tensor:
        """EPLL of images (B, H, W): (B,), nats, unnormalized."""
        size, (rows, columns) = self.prior.patch_size, self.grid(clean, self.stride)
        overlap = (size / self.stride) ** 2
        if self.even_borders:
            share = overlap / coverage(rows, columns, size, _sides(clean)).to(clean.dtype)
            clean = _with_gradient_scaled(clean, share)
        total = clean.new_zeros(len(clean))
        for top, bottom, local in self._bands(clean, rows, columns, BAND // 4):
            strip = clean[:, top:bottom]
            total = total + checkpoint(self._of_band, strip, local, columns, use_reentrant=False)
        return total / overlap

    def _of_band(self, strip: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
        """Σ_i log p(P_i x) of a few rows of patches, (B,)."""
        patches = extract_patches(strip, rows, columns, self.prior.patch_size)
        z = self.prior.coordinates(patches)
        joint = self.prior.log_joint(z.flatten(0, -2), self.smoothing)  # (K, B R C)
        return joint.logsumexp(0).reshape(len(strip), -1).sum(-1)

    def _bands(
        self, images: Tensor, rows: Tensor, columns: Tensor, most: int
    ) -> Iterator[tuple[int, int, Tensor]]:
        """Rows of patches, at most so many patches at once: first and last pixels, and starts."""
        for band in rows.split(max(1, most // (len(images) * len(columns)))):
            top = int(band[0])
            yield top, int(band[-1]) + self.prior.patch_size, band - top

    @pyro_method
    def model(self, noisy: Tensor) -> Tensor:
        """p(clean, noisy), up to a constant, for planes (B, H, W) in [0, 1]."""
        noisy = self.checked(noisy)
        flat = dist.ImproperUniform(constraints.real, (), noisy.shape[1:])
        with pyro.plate("data", len(noisy), dim=-1):
            clean = pyro.sample("clean", flat)
            pyro.factor("epll", self.expected_patch_log_likelihood(clean))
            return pyro.sample("noisy", self.observation(clean), obs=noisy)

    def checked(self, observed: Tensor) -> Tensor:
        """Planes (B, H, W) that can be restored; what the observation does not see is put to 0.

        Raises:
            PplError: another shape, smaller than a patch or not the observation's; or NaN.
        """
        if observed.dim() != 3 or not observed.is_floating_point():
            raise PplError(
                f"planes must be floats (B, H, W); got {observed.dtype} {tuple(observed.shape)}"
            )
        self.grid(observed, self.stride)
        return self.observation.checked(observed)

    def grid(
        self, images: Tensor, stride: int, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor]:
        """First rows and columns of the patches of images (B, H, W); see ``grid_starts``."""
        size = self.prior.patch_size
        rows, columns = (grid_starts(n, size, stride, generator) for n in _sides(images))
        return rows.to(images.device), columns.to(images.device)

    @torch.no_grad()
    def expect(
        self,
        images: Tensor,
        variance: float,
        *,
        stride: int | None = None,
        generator: torch.Generator | None = None,
        soft: bool = False,
        num_pairs: int | None = None,
        callback: Callable[[float], None] | None = None,
    ) -> Tensor:
        """What the prior expects behind images with noise of this variance.

        Every patch is filtered by its posterior, and pixels are means over the patches they are
        in. Bands of rows are worked through one by one, so memory grows with the image alone.

        Args:
            images: (B, H, W).
            variance: of the noise in them.
            stride: pixels between patches; the program's when left out.
            generator: shifts the grid of patches at random.
            soft: see :meth:`PatchPrior.wiener`.
            num_pairs: see :meth:`PatchPrior.log_joint`.
            callback: called with the share of the work done by each band.

        Returns:
            (B, H, W).
        """
        size = self.prior.patch_size
        rows, columns = self.grid(images, self.stride if stride is None else stride, generator)
        total = torch.zeros_like(images)
        for top, bottom, local in self._bands(images, rows, columns, BAND):
            patches = extract_patches(images[:, top:bottom], local, columns, size)
            clean = self.prior.wiener(patches, variance, soft=soft, num_pairs=num_pairs)
            shape = (bottom - top, images.shape[-1])
            total[:, top:bottom] += lay_patches(clean, local, columns, shape)
            if callback is not None:
                callback(len(local) / len(rows))
        return total / coverage(rows, columns, size, _sides(images)).to(total.dtype)


def _sides(images: Tensor) -> tuple[int, int]:
    return images.shape[-2], images.shape[-1]


def _with_gradient_scaled(x: Tensor, scale: Tensor) -> Tensor:
    """The same values, whose gradient arrives times ``scale``."""
    return x.detach() + scale * (x - x.detach())
