"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn


def mlp(in_dim: int, hidden_dims: Sequence[int], out_dim: int) -> nn.Sequential:
    """A multilayer perceptron with ReLU between its layers and none after the last.

    Args:
        in_dim: size of the input's last axis.
        hidden_dims: width of each hidden layer; empty gives one affine map.
        out_dim: size of the output's last axis.

    Returns:
        A module that maps ``(..., in_dim)`` to ``(..., out_dim)``.
    """
    layers: list[nn.Module] = []
    for width in hidden_dims:
        layers += [nn.Linear(in_dim, width), nn.ReLU()]
        in_dim = width
    return nn.Sequential(*layers, nn.Linear(in_dim, out_dim))
