"""Quadratic forms of many matrices at many points, as one matrix product.

zᵀ A z is linear in the products z_i z_j, so K forms at N points are a (K, F) by (F, N) product,
where F = D (D + 1) / 2 counts the pairs i ≤ j.

Shapes: N points, D dimensions, K matrices, F pairs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def pair_products(z: Tensor) -> Tensor:
    """Products z_i z_j, i ≤ j, of each point: (N, D) to (F, N); differentiable."""
    return _PairProducts.apply(z)


def fill_pair_products(columns: Tensor, out: Tensor) -> int:
    """Write the products z_i z_j, i ≤ j, of points (D, N) into the first rows of ``out``.

    Row by row into memory made once: a gather of both factors takes three times as long.

    Returns:
        How many rows were written: F.
    """
    dim, start = len(columns), 0
    for i in range(dim):
        torch.mul(columns[i], columns[i:], out=out[start : start + dim - i])
        start += dim - i
    return start


def pack_symmetric(matrices: Tensor, off_diagonal: float = 1.0) -> Tensor:
    """Upper triangles in the order of :func:`pair_products`, (..., D, D) to (..., F).

    Args:
        matrices: symmetric.
        off_diagonal: factor of the other entries than the diagonal's; 2 makes the product with
            :func:`pair_products` the quadratic form.
    """
    dim = matrices.shape[-1]
    row, column = torch.triu_indices(dim, dim, device=matrices.device)
    packed = matrices[..., row, column]
    return torch.where(row == column, packed, packed * off_diagonal)


def unpack_symmetric(packed: Tensor, dim: int) -> Tensor:
    """Symmetric matrices from their upper triangles, (..., F) to (..., D, D)."""
    row, column = torch.triu_indices(dim, dim, device=packed.device)
    matrices = packed.new_zeros(*packed.shape[:-1], dim, dim)
    matrices[..., row, column] = packed
    matrices[..., column, row] = packed
    return matrices


class _PairProducts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor) -> Tensor:
        ctx.save_for_backward(z)
        columns = z.T.contiguous()
        dim, count = columns.shape
        products = z.new_empty(dim * (dim + 1) // 2, count)
        fill_pair_products(columns, products)
        return products

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (z,) = ctx.saved_tensors
        columns = z.T.contiguous()
        dim = len(columns)
        result = torch.zeros_like(columns)
        start = 0
        for i in range(dim):
            part = grad[start : start + dim - i]
            result[i] += (part * columns[i:]).sum(0)
            result[i:].addcmul_(part, columns[i])
            start += dim - i
        return result.T
