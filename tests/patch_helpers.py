"""Small patch priors and images that the tests of restoration share."""

from __future__ import annotations

import torch
from torch import Tensor

from ppl_models.patch_prior import PatchPrior


def random_prior(num_components: int = 5, patch_size: int = 4, seed: int = 0) -> PatchPrior:
    """Covariances of different sizes and directions, their spectra falling as photographs' do."""
    draw = torch.Generator().manual_seed(seed)
    dim = patch_size**2 - 1
    vectors = torch.linalg.qr(
        torch.randn(num_components, dim, dim, generator=draw, dtype=torch.float64)
    ).Q
    fall = torch.logspace(0, -3, dim, dtype=torch.float64)
    size = torch.logspace(-2.5, -1, num_components, dtype=torch.float64).unsqueeze(-1)
    weights = torch.rand(num_components, generator=draw, dtype=torch.float64) + 0.1
    return PatchPrior(weights, size * fall, vectors)


def smooth_images(count: int = 1, height: int = 19, width: int = 22, seed: int = 0) -> Tensor:
    """Images (B, H, W) in [0, 1] of a few waves each."""
    draw = torch.Generator().manual_seed(seed)
    rows, columns = torch.linspace(0, 1, height), torch.linspace(0, 1, width)
    waves = torch.zeros(count, height, width)
    for _ in range(3):
        a, b, phase = (6 * torch.rand(3, count, 1, 1, generator=draw)).unbind(0)
        waves += torch.sin(a * rows.unsqueeze(-1) + b * columns + phase)
    return 0.5 + waves / 6
