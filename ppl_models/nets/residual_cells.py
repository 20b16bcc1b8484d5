"""Residual cells with swish and squeeze-and-excitation, of which deep top-down models are built.

A cell is x + change(x). The change starts small, so that many cells in a row begin as the identity
and gradients pass through all of them. Weights are normalized (``weight_norm.py``), not batches.

Shapes: B data, C channels, h w grid.

References:
    Vahdat, Kautz: NVAE, 2020, arXiv:2007.03898, figure 3, for the depthwise cell.
    Hu, Shen, Sun: Squeeze-and-Excitation Networks, 2018, arXiv:1709.01507.
    Ramachandran, Zoph, Le: Searching for Activation Functions, 2017, arXiv:1710.05941.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

from ppl_models.errors import UnknownNameError
from ppl_models.nets.weight_norm import WeightNormConv2d, WeightNormLinear

AFTER_SWISH = 1.7
"""Gain of a layer that follows a swish: of unit normal inputs it leaves a mean square of 0.36."""
START_OF_CHANGE = 0.3
"""Gain of a cell's last layer."""


class SqueezeExcitation(nn.Module):
    """Channels weighed by gates in (0, 2) that are a function of all channels' means.

    Args:
        channels: C.
        reduction: C / reduction numbers, at least 4, are between means and gates.
    """

    def __init__(self, channels: int, reduction: int = 8) -> None:
        super().__init__()
        hidden = max(4, channels // reduction)
        self.gates = nn.Sequential(
            nn.Linear(channels, hidden), nn.ReLU(), nn.Linear(hidden, channels), nn.Sigmoid()
        )

    def forward(self, grid: Tensor) -> Tensor:
        """Of (B, C, h, w)."""
        return grid * (2 * self.gates(grid.mean((-2, -1))))[:, :, None, None]


class ResidualCell(nn.Module):
    """A grid plus a small change of it.

    Args:
        change: of a grid (B, C, h, w).
    """

    def __init__(self, *change: nn.Module) -> None:
        super().__init__()
        self.change = nn.Sequential(*change)

    def forward(self, grid: Tensor) -> Tensor:
        """Of (B, C, h, w)."""
        return grid + self.change(grid)


def plain_cell(channels: int) -> ResidualCell:
    """Two 3×3 convolutions: the faster cell on a CPU."""
    return ResidualCell(
        nn.SiLU(),
        WeightNormConv2d(channels, channels, gain=AFTER_SWISH),
        nn.SiLU(),
        WeightNormConv2d(channels, channels, gain=START_OF_CHANGE),
        SqueezeExcitation(channels),
    )


def depthwise_cell(channels: int, expansion: int = 6) -> ResidualCell:
    """NVAE's generative cell: 1×1 to more channels, 5×5 in each of them apart, 1×1 back."""
    wide = expansion * channels
    return ResidualCell(
        WeightNormConv2d(channels, wide, 1),
        nn.SiLU(),
        WeightNormConv2d(wide, wide, 5, groups=wide, gain=AFTER_SWISH),
        nn.SiLU(),
        WeightNormConv2d(wide, channels, 1, gain=START_OF_CHANGE),
        SqueezeExcitation(channels),
    )


def dense_cell(features: int) -> ResidualCell:
    """The cell of vectors (B, features): two affine maps."""
    return ResidualCell(
        nn.SiLU(),
        WeightNormLinear(features, features, gain=AFTER_SWISH),
        nn.SiLU(),
        WeightNormLinear(features, features, gain=START_OF_CHANGE),
    )


CELLS: dict[str, Callable[[int], ResidualCell]] = {
    "plain": plain_cell,
    "depthwise": depthwise_cell,
}
"""Cells of grids by the name that models take."""


def make_cells(name: str, channels: int, number: int) -> nn.Sequential:
    """So many cells in a row.

    Raises:
        UnknownNameError: no cell has that name.
    """
    if name not in CELLS:
        raise UnknownNameError("cell", name, CELLS)
    return nn.Sequential(*(CELLS[name](channels) for _ in range(number)))
