"""Small causal networks and grids for the tests of autoregressive models."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from ppl_models.nets import CausalTransformer, GatedPixelCNN

NETS = ("pixelcnn", "transformer")


def causal_net(
    name: str,
    num_values: int = 3,
    grid: tuple[int, int] = (5, 6),
    context_dim: int = 0,
    seed: int = 0,
) -> nn.Module:
    """A small network in float64, whose weights are large enough to make a difference."""
    torch.manual_seed(seed)
    if name == "pixelcnn":
        net: nn.Module = GatedPixelCNN(num_values, 6, 4, 3, context_dim)
    else:
        net = CausalTransformer(num_values, grid, 12, 2, 3, context_dim=context_dim)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1.5).add_(0.1 * torch.randn_like(parameter))
    return net.double().eval().requires_grad_(False)


def all_grids(num_values: int, *shape: int) -> Tensor:
    """Every grid of integers of this shape, (V^n, *shape)."""
    cells = torch.Size(shape).numel()
    states = list(itertools.product(range(num_values), repeat=cells))
    return torch.tensor(states).reshape(-1, *shape)
