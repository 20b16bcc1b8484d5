"""Whether a compiled graph gives what the eager function gives, but for rounding."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.fx import GraphModule

from inference.graphs import NotCompiledError

HALF = 3e-2
"""Tolerance of numbers in 16 bits."""
HALF_GRADIENTS = 0.1
"""Of gradients in 16 bits, by their norm: a fused kernel rounds once where eager operations round
each, and through a dozen layers single numbers were seen to differ by 12 % of the largest."""


def tolerance_of(graph: GraphModule) -> float:
    """How far, relative to its size, a number may be from the eager one's."""
    values = [node.meta.get("val") for node in graph.graph.nodes]
    dtypes = {value.dtype for value in values if isinstance(value, Tensor)}
    if dtypes & {torch.bfloat16, torch.float16}:
        return HALF
    if torch.float32 not in dtypes:
        return 1e-9
    targets = {node.target for node in graph.graph.nodes}
    # A convolution's gradient sums over all places, in whatever order its kernel likes.
    return 1e-3 if torch.ops.aten.convolution_backward.default in targets else 1e-4


def check_alike(
    name: str,
    ours: Tensor,
    theirs: Tensor,
    tolerance: float,
    size: float,
    order: float = math.inf,
) -> None:
    """Compare what a compiled graph and the eager function give.

    Args:
        name: of the tensor.
        ours: the graph's.
        theirs: the eager function's, with the same random numbers.
        tolerance: relative.
        size: below which all numbers are as good as zero.
        order: of the norm that is compared: the largest number, or 2.

    Raises:
        NotCompiledError: they differ by more than rounding.
    """
    same = (ours == theirs) | (ours.isnan() & theirs.isnan())
    if same.all():
        return
    gap = math.inf
    if theirs.is_floating_point():
        gap = float(torch.linalg.vector_norm((ours - theirs)[~same], order))
    finite = theirs[theirs.isfinite()]
    least = size if order == math.inf else size * math.sqrt(theirs.numel())
    size = max(least, float(torch.linalg.vector_norm(finite, order)) if finite.numel() else 0.0)
    if not gap <= tolerance * size:
        raise NotCompiledError(
            f"compiled and eager differ at {name} by {gap:.3g} (of {size:.3g}). The usual reason: "
            "the program depends on something that is no tensor (a global, a counter), or draws "
            "in another order"
        )
