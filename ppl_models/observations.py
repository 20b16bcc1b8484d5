"""How a clean image comes to be seen: noise, missing pixels, blur.

Each is called with the clean images (B, H, W) and gives the distribution of the observed ones,
batch (B,), event (H, W). Restoration takes data and prior in turns and needs the minimum of

    f(x) = −log p(observed | x) + ‖x − expected‖² / (2 variance),

a quadratic function, so one Newton step from anywhere ends there: ``combine`` gives the minimum,
``newton_step`` turns the gradient of f, wherever it comes from, into the step.

Shapes: B images, H W image.
"""

from __future__ import annotations

from collections.abc import Callable

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, pad

from ppl_models.errors import PplError

SCHEDULE = (1, 2, 8, 16, 32, 64)
"""Found on crops of BSDS500; the literature's 1, 4, 8, 16, 32 loses 0.1 dB (docs/epll.md)."""


class Noise(nn.Module):
    """observed ~ Normal(clean, noise_scale²), pixel by pixel.

    Args:
        noise_scale: σ in grey levels of [0, 1].
    """

    def __init__(self, noise_scale: float) -> None:
        super().__init__()
        self.noise_scale = check_noise_scale(noise_scale)

    def forward(self, clean: Tensor) -> dist.TorchDistribution:
        """p(observed | clean)."""
        return dist.Normal(clean, self.noise_scale).to_event(2)

    def checked(self, observed: Tensor) -> Tensor:
        """The observed images, if they can be restored.

        Raises:
            PplError: pixels that are seen are NaN or infinite.
        """
        bad = ~observed.isfinite()
        if bool(bad.any()):
            raise PplError(
                f"{int(bad.count_nonzero())} pixels of the observed images are NaN or infinite; "
                "mend them, or leave them out by the mask of Masked"
            )
        return observed

    def start(self, observed: Tensor) -> Tensor:
        """A first guess of the clean image."""
        return observed

    def combine(self, observed: Tensor, expected: Tensor, variance: float) -> Tensor:
        """The clean image between observation and expectation, weighed by precision."""
        step = self.newton_step(self.misfit(observed, expected) / self.noise_scale**2, variance)
        return expected - step

    def misfit(self, observed: Tensor, clean: Tensor) -> Tensor:
        """σ² times the gradient of −log p(observed | clean)."""
        return clean - observed

    def newton_step(self, gradient: Tensor, variance: float) -> Tensor:
        """A gradient of f (see above) times the inverse of f's second derivative.

        With noise alone that is one number, a learning rate of 1 / (1/σ² + 1/variance).
        """
        return gradient / (1 / self.noise_scale**2 + 1 / variance)

    def variances(self) -> list[float]:
        """Of the gap between image and expectation, falling: σ² / b for b of ``SCHEDULE``."""
        return [self.noise_scale**2 / b for b in SCHEDULE]


class Masked(Noise):
    """Noise, and only some pixels are seen; the others may hold anything, NaN too.

    Args:
        mask: (H, W), true where a pixel is seen.
        noise_scale: σ.
    """

    mask: Tensor

    def __init__(self, mask: Tensor, noise_scale: float) -> None:
        super().__init__(noise_scale)
        if not bool(mask.isfinite().all()):
            raise PplError("a mask is true or false at each pixel; this one has NaN or infinity")
        if mask.dim() != 2 or not bool(mask.any()):
            raise PplError(
                f"a mask must be (H, W) and show some pixels; got {tuple(mask.shape)} with "
                f"{int(mask.count_nonzero())} pixels that are seen"
            )
        self.register_buffer("mask", mask.bool())

    def forward(self, clean: Tensor) -> dist.TorchDistribution:
        """p(observed | clean); log density 0 where nothing is seen."""
        self._check(clean)
        return dist.Normal(clean, self.noise_scale).mask(self.mask).to_event(2)

    def checked(self, observed: Tensor) -> Tensor:
        """What is seen, if it is finite, and 0 elsewhere."""
        self._check(observed)
        return super().checked(torch.where(self.mask, observed, 0.0))

    def start(self, observed: Tensor) -> Tensor:
        """Holes filled from their rims inwards with means of what is known nearby."""
        self._check(observed)
        known = self.mask.to(observed.dtype).expand_as(observed)
        image = torch.where(self.mask, observed, 0.0)
        box = torch.ones(1, 1, 3, 3, dtype=image.dtype, device=image.device)
        while not bool(known.all()):
            sums = conv2d((image * known).unsqueeze(1), box, padding=1).squeeze(1)
            counts = conv2d(known.unsqueeze(1), box, padding=1).squeeze(1)
            reached = (known == 0) & (counts > 0)
            image = torch.where(reached, sums / counts.clamp(min=1), image)
            known = torch.where(reached, 1.0, known)
        return image

    def misfit(self, observed: Tensor, clean: Tensor) -> Tensor:
        """σ² times the gradient of −log p(observed | clean): 0 where nothing is seen."""
        return torch.where(self.mask, clean - observed, 0.0)

    def newton_step(self, gradient: Tensor, variance: float) -> Tensor:
        """A gradient of f times the inverse of f's second derivative, pixel by pixel."""
        return torch.where(self.mask, super().newton_step(gradient, variance), variance * gradient)

    def variances(self) -> list[float]:
        """From coarse to fine, however small σ is: holes are filled by the prior alone."""
        return falling_variances(0.1, max(min(self.noise_scale, 2 / 255), 1 / 255), 32)

    def _check(self, images: Tensor) -> None:
        if images.shape[-2:] != self.mask.shape:
            raise PplError(
                f"the mask is {_size(self.mask)} pixels, but the image {_size(images)}; give one "
                "of the image's height and width"
            )


class Blurred(Noise):
    """A known blur, then noise; beyond its borders the image goes on with its border pixels.

    Args:
        kernel: (h, w) of odd sides; scaled to sum to 1.
        noise_scale: σ.
    """

    kernel: Tensor

    def __init__(self, kernel: Tensor, noise_scale: float) -> None:
        super().__init__(noise_scale)
        odd = kernel.dim() == 2 and all(side % 2 for side in kernel.shape)
        if not odd or not bool(kernel.isfinite().all()) or not float(kernel.sum()) > 0:
            raise PplError(
                "a blur kernel must be (h, w) with odd sides, finite, and of positive sum; got "
                f"shape {tuple(kernel.shape)}, sum {float(kernel.sum()):.3g}"
            )
        self.register_buffer("kernel", kernel.float() / kernel.sum())

    def forward(self, clean: Tensor) -> dist.TorchDistribution:
        """p(observed | clean)."""
        return dist.Normal(self.blur(clean), self.noise_scale).to_event(2)

    def blur(self, clean: Tensor) -> Tensor:
        """The clean images (B, H, W) seen through the blur."""
        above, beside = (side // 2 for side in self.kernel.shape)
        if above >= clean.shape[-2] or beside >= clean.shape[-1]:
            raise PplError(
                f"the blur kernel is {_size(self.kernel)} pixels, too large for an image of "
                f"{_size(clean)}"
            )
        wide = pad(clean.unsqueeze(1), (beside, beside, above, above), mode="replicate")
        weight = self.kernel.to(clean.dtype).flip(0, 1)[None, None]
        return conv2d(wide, weight).squeeze(1)

    def misfit(self, observed: Tensor, clean: Tensor) -> Tensor:
        """σ² times the gradient of −log p(observed | clean)."""
        adjoint = torch.func.vjp(self.blur, clean)[1]
        return adjoint(self.blur(clean) - observed)[0]

    def newton_step(self, gradient: Tensor, variance: float) -> Tensor:
        """A gradient of f times the inverse of f's second derivative, by conjugate gradients.

        Blur has no inverse pixel by pixel.
        """
        trust = self.noise_scale**2 / variance
        adjoint = torch.func.vjp(self.blur, gradient)[1]

        def curvature(x: Tensor) -> Tensor:
            return adjoint(self.blur(x))[0] + trust * x

        target = self.noise_scale**2 * gradient
        return conjugate_gradients(curvature, target, start=torch.zeros_like(target))

    def variances(self) -> list[float]:
        """From coarse to fine: what the blur took away only the prior can restore."""
        return falling_variances(0.1, 2 * self.noise_scale, 10)


def falling_variances(first: float, last: float, count: int) -> list[float]:
    """Squares of ``count`` ≥ 2 scales that fall from first to last by one factor."""
    last = min(last, first)
    return [(first * (last / first) ** (i / (count - 1))) ** 2 for i in range(count)]


def conjugate_gradients(
    matrix: Callable[[Tensor], Tensor],
    target: Tensor,
    start: Tensor,
    max_iterations: int = 100,
    tolerance: float = 1e-5,
) -> Tensor:
    """Solve matrix(x) = target for a positive definite linear map.

    Args:
        matrix: the map.
        target: of any shape.
        start: the first guess.
        max_iterations: at most so many products.
        tolerance: of the residual, relative to the target.
    """
    x = start
    residual = target - matrix(x)
    direction, size = residual, residual.square().sum()
    enough = tolerance**2 * target.square().sum()
    for _ in range(max_iterations):
        if size <= enough:
            break
        image = matrix(direction)
        pace = size / (direction * image).sum()
        x = x + pace * direction
        residual = residual - pace * image
        before, size = size, residual.square().sum()
        direction = residual + size / before * direction
    return x


def check_noise_scale(noise_scale: float) -> float:
    """The noise scale, if it is one of images in [0, 1].

    Raises:
        PplError: it is not positive, or above 1.
    """
    if not 0 < noise_scale <= 1:
        raise PplError(
            "the noise scale σ must be above 0 and at most 1, in the unit of images in [0, 1] "
            f"(25 grey levels are 25 / 255); got {noise_scale}"
        )
    return float(noise_scale)


def _size(image: Tensor) -> str:
    return f"{image.shape[-2]}×{image.shape[-1]}"
