"""Denoising of images, grey and colour, with the noise level given or estimated.

Shapes: C H W image, C one or three.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from inference.image_quality import estimate_noise
from inference.splitting import Report, anneal, split_half_quadratic
from ppl_models.errors import PplError, UnknownNameError

METHODS = ("splitting", "gradient")
COLOURS = ("luminance", "channels")

STRIDE, NUM_PAIRS = 3, 28
"""The fast setting; what it costs in PSNR stands in docs/epll.md."""

LEAST_NOISE = 1e-6
"""Less is rounding: the noise estimated in an image of one colour is not quite 0."""

OPPONENT = (
    (1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(3)),
    (1 / math.sqrt(2), 0.0, -1 / math.sqrt(2)),
    (1 / math.sqrt(6), -2 / math.sqrt(6), 1 / math.sqrt(6)),
)
"""Luminance and two colour differences of R, G, B: orthonormal, so white noise stays white."""


def denoise(
    make_program: Callable[[float], Any],
    image: Tensor,
    sigma: float | None = None,
    *,
    method: str = "splitting",
    colour: str = "luminance",
    stride: int = STRIDE,
    num_pairs: int | None = NUM_PAIRS,
    seed: int | None = 0,
    callback: Report | None = None,
) -> Tensor:
    """Take white noise off an image.

    Args:
        make_program: from a noise scale to a restoration program, such as
            ``ppl_models.epll.EPLL.denoiser()``.
        image: (C, H, W) in [0, 1], C one or three, on any device.
        sigma: noise scale in the image's unit, [0, 1]: 25 grey levels are 25 / 255. (The command
            ``ppl denoise`` takes grey levels.) Estimated when left out.
        method: ``splitting`` (half-quadratic, fast) or ``gradient`` (annealed gradient steps on
            the program's log joint, exact mixture, slower).
        colour: ``luminance`` (of three channels, luminance and two colour differences are
            denoised, each with less noise than a channel has) or ``channels`` (R, G, B each).
        stride: pixels between patches; 1 takes every patch.
        num_pairs: for splitting, how many coordinates of a patch choose its component with their
            covariances, at least 1; None takes all.
        seed: for splitting, shifts the grid of patches at random at each step, which makes up for
            most of what a stride leaves out; None leaves it where it is.
        callback: told of the progress.

    Returns:
        (C, H, W), clipped to [0, 1].

    Raises:
        PplError: the image is not (C, H, W), smaller than a patch, not finite or not in [0, 1];
            σ is not in (0, 1]; or an option has no such value.
    """
    check_image(image)
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    if colour not in COLOURS:
        raise UnknownNameError("way with colour", colour, COLOURS)
    noise_scale = noise_level(image, sigma)
    rotation = _rotation(image) if colour == "luminance" else None
    planes = image if rotation is None else torch.einsum("pc,chw->phw", rotation, image)
    # The first row is the mean of the channels, so that planes are of the prior's contrast.
    program = make_program(noise_scale * (1 if rotation is None else math.sqrt(1 / 3)))
    if method == "gradient":
        program.stride = stride
        clean = anneal(program.to(image.device), planes, callback=callback)
    else:
        clean = split_half_quadratic(
            program.to(image.device),
            planes,
            stride=stride,
            num_pairs=num_pairs,
            seed=seed,
            callback=callback,
        )
    if rotation is not None:
        clean = torch.einsum("pc,phw->chw", rotation * 3, clean)
    return clean.clamp(0, 1)


def noise_level(image: Tensor, sigma: float | None = None) -> float:
    """The noise scale of an image (C, H, W) in [0, 1]: what is given, if it can be, or estimated.

    Raises:
        PplError: what is given is not in (0, 1]; or nothing is given and no noise is found.
    """
    if sigma is None:
        found = estimate_noise(image)
        if found < LEAST_NOISE:
            raise PplError(
                f"no noise is found in this image (estimated σ: {found:.1g}); if there is some, "
                "give its scale: sigma"
            )
        return found
    return _checked_sigma(float(sigma))


def _checked_sigma(sigma: float) -> float:
    if not 0 < sigma <= 1:
        unit = f"; 25 grey levels of 255 are {25 / 255:.3f}" if sigma > 1 else ""
        raise PplError(
            f"the noise scale σ must be above 0 and at most 1, in the image's unit; got {sigma:g}"
            f"{unit}"
        )
    return sigma


def add_noise(image: Tensor, sigma: float, seed: int = 0) -> Tensor:
    """White noise of scale ``sigma``, in [0, 1], on an image (C, H, W); not clipped or rounded."""
    sigma = _checked_sigma(sigma)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(image.shape, generator=generator).to(image)
    return image + sigma * noise


def check_image(image: Tensor) -> None:
    """Refuse what is no image.

    Raises:
        PplError: not (C, H, W) with one or three channels, not finite, or not in [0, 1].
    """
    if image.dim() != 3 or image.shape[0] not in (1, 3) or not image.is_floating_point():
        raise PplError(
            "an image must be floats (C, H, W) with one or three channels; got "
            f"{image.dtype} {tuple(image.shape)}"
        )
    if not bool(image.isfinite().all()):
        count = int((~image.isfinite()).sum())
        raise PplError(f"{count} pixels of the image are NaN or infinite; mend them first")
    low, high = float(image.min()), float(image.max())
    if low < -2 or high > 3:  # noise goes beyond [0, 1], grey levels up to 255 go far beyond
        raise PplError(f"pixels must be about [0, 1]; got [{low:.3g}, {high:.3g}]: divide first")


def _rotation(image: Tensor) -> Tensor | None:
    if len(image) == 1:
        return None
    return torch.tensor(OPPONENT, dtype=image.dtype, device=image.device) / math.sqrt(3)
