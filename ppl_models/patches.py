"""Patches of images: where they lie, cutting them out, laying them back, their basis.

Shapes: B images, H W image, R C rows and columns of the patches' grid, P side of a patch.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from ppl_models.errors import PplError


def grid_starts(
    length: int, size: int, stride: int = 1, generator: torch.Generator | None = None
) -> Tensor:
    """First pixels of the patches along one side of an image, (R,) integers.

    The first and the last patch always lie at the borders, so every pixel is covered.

    Args:
        length: pixels of the side.
        size: P, pixels of a patch's side.
        stride: pixels between patches, at most P.
        generator: shifts the patches between the borders at random, keeping the distance; where
            they begin at the border when left out.

    Raises:
        PplError: the side is shorter than a patch, or the stride leaves gaps.
    """
    if length < size:
        raise PplError(
            f"the image is {length} pixels along one side, but a patch has {size}; give a larger "
            "image, or a prior of smaller patches"
        )
    if not 1 <= stride <= size:
        raise PplError(
            f"stride must be from 1 to the patch size {size}, or pixels are left out; got {stride}"
        )
    last = length - size
    shift = 0
    if generator is not None and stride > 1:
        shift = min(last, int(torch.randint(stride, (), generator=generator)))
    starts = torch.arange(shift, last + 1, stride)
    return torch.unique(torch.cat([torch.tensor([0, last]), starts]))


def dc_free_basis(size: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """An orthonormal basis of the patches without mean, (P², P² − 1): cosines, coarse first.

    Patches without their mean have no variance along the constant patch, so densities live in
    the other P² − 1 dimensions. In this basis (the discrete cosine transform) natural patches
    are nearly uncorrelated, which keeps quadratic forms accurate in float32.
    """
    k = torch.arange(size, dtype=torch.float64)
    waves = torch.cos(math.pi * (k + 0.5) * k.unsqueeze(-1) / size)  # (frequency, pixel)
    waves = waves / waves.norm(dim=-1, keepdim=True)
    basis = torch.einsum("ay,bx->abyx", waves, waves).reshape(size * size, size * size)
    frequency = (k.unsqueeze(-1) ** 2 + k**2).flatten()
    order = torch.argsort(frequency, stable=True)[1:]  # the first is the constant patch
    return basis[order].T.to(dtype)


def extract_patches(images: Tensor, rows: Tensor, columns: Tensor, size: int) -> Tensor:
    """Cut patches out of images; differentiable any number of times.

    Args:
        images: (B, H, W).
        rows: first rows of the patches, (R,).
        columns: first columns, (C,).
        size: P.

    Returns:
        (B, R, C, P²).
    """
    return _Extract.apply(images, rows, columns, size)


def lay_patches(patches: Tensor, rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> Tensor:
    """Add patches up where they lie, the adjoint of :func:`extract_patches`.

    Args:
        patches: (B, R, C, P²).
        rows: first rows of the patches, (R,).
        columns: first columns, (C,).
        shape: H, W.

    Returns:
        (B, H, W).
    """
    return _Lay.apply(patches, rows, columns, shape)


def coverage(rows: Tensor, columns: Tensor, size: int, shape: tuple[int, int]) -> Tensor:
    """In how many patches each pixel is, (H, W) integers as float32."""
    counts = []
    for starts, length in ((rows, shape[0]), (columns, shape[1])):
        pixels = (starts.unsqueeze(-1) + torch.arange(size, device=starts.device)).flatten()
        counts.append(torch.bincount(pixels, minlength=length).float())
    return counts[0].unsqueeze(-1) * counts[1]


def _cut(images: Tensor, rows: Tensor, columns: Tensor, size: int) -> Tensor:
    windows = images.unfold(1, size, 1).unfold(2, size, 1)
    return windows[:, rows.unsqueeze(-1), columns].flatten(-2)


def _add_up(patches: Tensor, rows: Tensor, columns: Tensor, shape: tuple[int, int]) -> Tensor:
    """One side at a time: 2 P additions of whole slices rather than P²."""
    b, r, c, area = patches.shape
    size = math.isqrt(area)
    cells = patches.reshape(b, r, c, size, size)
    bands = patches.new_zeros(b, r, size, shape[1])
    for x in range(size):
        bands.index_add_(-1, columns + x, cells[..., x].transpose(-1, -2))
    sheet = patches.new_zeros(b, *shape)
    for y in range(size):
        sheet.index_add_(-2, rows + y, bands[:, :, y])
    return sheet


class _Extract(torch.autograd.Function):
    """Autograd would take the windows' view apart pixel by pixel; the adjoint is known."""

    @staticmethod
    def forward(ctx: Any, images: Tensor, rows: Tensor, columns: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(rows, columns)
        ctx.shape = tuple(images.shape[-2:])
        return _cut(images, rows, columns, size)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _Lay.apply(grad, *ctx.saved_tensors, ctx.shape), None, None, None


class _Lay(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, patches: Tensor, rows: Tensor, columns: Tensor, shape: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(rows, columns)
        ctx.size = math.isqrt(patches.shape[-1])
        return _add_up(patches, rows, columns, shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        return _Extract.apply(grad, *ctx.saved_tensors, ctx.size), None, None, None
