"""Fully connected networks."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ppl_models.errors import UnknownNameError

ACTIVATIONS: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "silu": nn.SiLU,
    "elu": nn.ELU,
}
"""What stands between layers, by the name that models take."""


def make_activation(name: str) -> nn.Module:
    """The activation of this name.

    Raises:
        UnknownNameError: none has that name.
    """
    if name not in ACTIVATIONS:
        raise UnknownNameError("activation", name, ACTIVATIONS)
    return ACTIVATIONS[name]()


def mlp(
    in_dim: int, hidden_dims: Sequence[int], out_dim: int, activation: str = "relu"
) -> nn.Sequential:
    """A multilayer perceptron with an activation between its layers and none after the last.

    Args:
        in_dim: size of the input's last axis.
        hidden_dims: width of each hidden layer; empty gives one affine map.
        out_dim: size of the output's last axis.
        activation: one of ``ACTIVATIONS``.

    Returns:
        A module that maps ``(..., in_dim)`` to ``(..., out_dim)``.
    """
    layers: list[nn.Module] = []
    for width in hidden_dims:
        layers += [nn.Linear(in_dim, width), make_activation(activation)]
        in_dim = width
    return nn.Sequential(*layers, nn.Linear(in_dim, out_dim))
