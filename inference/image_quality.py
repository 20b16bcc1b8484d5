"""How close an image is to another, and how noisy it is.

Shapes: C H W image, pixels in [0, 1].

References:
    Wang et al.: Image Quality Assessment: From Error Visibility to Structural Similarity, 2004.
    Donoho, Johnstone: Ideal Spatial Adaptation by Wavelet Shrinkage, 1994 (the median of the
    finest wavelet coefficients as an estimate of the noise).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import conv2d

from ppl_models.errors import PplError

WINDOW = 11
"""Side of SSIM's Gaussian window, of scale 1.5."""

WAVELET = (-0.12940952, -0.22414387, 0.8365163, -0.48296291)
"""Daubechies' wavelet of four taps; blind to what changes linearly."""


def psnr(image: Tensor, reference: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of images (..., H, W) in [0, 1]; infinite if equal."""
    _check_same(image, reference)
    error = float((image.double() - reference.double()).square().mean())
    return -10 * math.log10(error) if error > 0 else math.inf


def ssim(image: Tensor, reference: Tensor) -> float:
    """Mean structural similarity of images (C, H, W) in [0, 1], over windows inside the image.

    Raises:
        PplError: other sizes, or smaller than the window of 11 pixels.
    """
    _check_same(image, reference)
    if min(image.shape[-2:]) < WINDOW:
        raise PplError(f"SSIM needs {WINDOW}×{WINDOW} pixels; got {tuple(image.shape[-2:])}")
    x, y = image.double(), reference.double()
    offset = torch.arange(WINDOW, dtype=torch.float64, device=x.device) - WINDOW // 2
    bell = torch.exp(-0.5 * (offset / 1.5) ** 2)
    bell = bell / bell.sum()

    def local_mean(z: Tensor) -> Tensor:
        return conv2d(conv2d(z[:, None], bell[None, None, None]), bell[None, None, :, None])

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x = local_mean(x * x) - mean_x**2
    var_y = local_mean(y * y) - mean_y**2
    covariance = local_mean(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    top = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
    bottom = (mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2)
    return float((top / bottom).mean())


def estimate_noise(image: Tensor) -> float:
    """The scale σ of white noise in an image (C, H, W): robust, for most of it is smooth.

    The median size of the finest diagonal wavelet coefficients (Daubechies, four taps), over the
    median size of a standard normal. Edges and textures are the fewer coefficients; an image of
    nothing but fine texture is taken for noise, and noise that was smoothed (JPEG, resizing) is
    underestimated.

    Raises:
        PplError: the image is smaller than the wavelet.
    """
    if min(image.shape[-2:]) < len(WAVELET):
        raise PplError(f"the image is too small to estimate its noise: {tuple(image.shape)}")
    taps = torch.tensor(WAVELET, dtype=torch.float64, device=image.device)
    detail = conv2d(image.double()[:, None], torch.outer(taps, taps)[None, None], stride=2)
    return float(detail.abs().flatten(1).median(-1).values.mean()) / 0.6744897501960817


def _check_same(image: Tensor, reference: Tensor) -> None:
    if image.shape != reference.shape:
        raise PplError(
            f"the reference is {tuple(reference.shape)} (channels, height, width), but the image "
            f"{tuple(image.shape)}; give one of the same size and colours"
        )
