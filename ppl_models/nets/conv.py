"""Convolutional encoders and decoders for images of any size.

Every stage halves height and width, rounding down, and its mirror image in the decoder doubles
them again to exactly what they were: 28 → 14 → 7 → 14 → 28, and 13 → 6 → 3 → 6 → 13. Kernels are
4×4 with stride 2, a multiple of it, so that no pixel is covered more often than its neighbour
(no chequerboard).

Shapes: C H W image, D latent, h w the grid after the last halving.

References:
    Odena, Dumoulin, Olah: Deconvolution and Checkerboard Artifacts, Distill, 2016.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from ppl_models.errors import ProgramError, whole_number
from ppl_models.nets.mlp import make_activation, mlp

Size = tuple[int, int]


def halvings(size: Sequence[int], times: int) -> list[Size]:
    """Height and width before, between and after so many stages.

    Raises:
        ProgramError: nothing would be left of the image.
    """
    height, width = size
    if min(height, width) >> times < 1:
        raise ProgramError(
            f"an image of {height}×{width} cannot be halved {times} times; give at most "
            f"{min(height, width).bit_length() - 1} channels"
        )
    return [(height >> n, width >> n) for n in range(times + 1)]


def halvings_to(size: Sequence[int], grid: Sequence[int]) -> int:
    """How many stages lead from an image's height and width to those of a grid.

    Raises:
        ProgramError: none do; with the grids that fit.
    """
    most = min(size).bit_length() - 1
    fitting = halvings(size, most)[1:]
    if tuple(grid) not in fitting:
        shown = ", ".join(f"{h}×{w}" for h, w in fitting) or "none"
        raise ProgramError(
            f"a grid of {'×'.join(map(str, grid))} does not fit images of {size[0]}×{size[1]}, "
            f"which are halved some times (rounding down); grids that do: {shown}"
        )
    return 1 + fitting.index((grid[0], grid[1]))


def check_image(x_shape: Sequence[int]) -> tuple[int, int, int]:
    """C, H and W of an image's shape.

    Raises:
        PplError: it is no image's.
    """
    if len(x_shape) != 3:
        raise ProgramError(
            f"convolutions need images (C, H, W), got data of shape {tuple(x_shape)}; use an MLP "
            "(the model `vae`)"
        )
    channels, height, width = (whole_number("x_shape", size) for size in x_shape)
    return channels, height, width


def check_channels(channels: Sequence[int]) -> None:
    """Refuse a network without stages.

    Raises:
        ProgramError: there are no channels, or not all are positive.
    """
    if not channels or min(channels) < 1:
        raise ProgramError(
            f"channels must name one width or more, each at least 1, got {list(channels)}"
        )


def downsampling(
    in_channels: int, channels: Sequence[int], activation: str = "relu"
) -> nn.Sequential:
    """Stages that halve an image (B, C, H, W), each to the next number of channels."""
    check_channels(channels)
    layers: list[nn.Module] = []
    for width in channels:
        layers += [nn.Conv2d(in_channels, width, 4, stride=2, padding=1)]
        layers += [make_activation(activation)]
        in_channels = width
    return nn.Sequential(*layers)


class ResidualBlock(nn.Module):
    """A grid plus a 3×3 and a 1×1 convolution of it.

    Args:
        channels: of the grid.
        hidden_channels: between the two.
        activation: a name of ``ACTIVATIONS``.

    References:
        van den Oord, Vinyals, Kavukcuoglu 2017, arXiv:1711.00937, section 4.1.
    """

    def __init__(self, channels: int, hidden_channels: int, activation: str = "relu") -> None:
        super().__init__()
        self.change = nn.Sequential(
            make_activation(activation),
            nn.Conv2d(channels, hidden_channels, 3, padding=1),
            make_activation(activation),
            nn.Conv2d(hidden_channels, channels, 1),
        )

    def forward(self, grid: Tensor) -> Tensor:
        """Of (B, channels, h, w)."""
        return grid + self.change(grid)


def residual_blocks(channels: int, number: int, activation: str) -> list[nn.Module]:
    """So many blocks, half as wide within."""
    hidden = max(1, channels // 2)
    return [ResidualBlock(channels, hidden, activation) for _ in range(number)]


class Upsampling(nn.Module):
    """The mirror image of :func:`downsampling`, with no activation after the last stage.

    Args:
        channels: of the input, and after every stage but the last.
        out_channels: after the last.
        activation: a name of ``ACTIVATIONS``.
    """

    def __init__(
        self, channels: Sequence[int], out_channels: int, activation: str = "relu"
    ) -> None:
        super().__init__()
        widths = [*channels, out_channels]
        self.stages = nn.ModuleList(
            nn.ConvTranspose2d(a, b, 4, stride=2, padding=1) for a, b in pairwise(widths)
        )
        self.activation = make_activation(activation)

    def forward(self, grid: Tensor, sizes: Sequence[Size]) -> Tensor:
        """The image of a grid (B, C, h, w), by way of these sizes, one a stage."""
        for stage, size in zip(self.stages, sizes, strict=True):
            grid = stage(self.activation(grid), output_size=list(size))
        return grid


class ConvEncoder(nn.Module):
    """Images as vectors to vectors: (..., C·H·W) to (..., out_dim).

    Args:
        x_shape: (C, H, W).
        channels: after every halving.
        out_dim: size of the output.
        activation: a name of ``ACTIVATIONS``.
        hidden_dims: widths of fully connected layers after the last halving.
    """

    def __init__(
        self,
        x_shape: Sequence[int],
        channels: Sequence[int],
        out_dim: int,
        activation: str = "relu",
        hidden_dims: Sequence[int] = (),
    ) -> None:
        super().__init__()
        self.x_shape = check_image(x_shape)
        grid = halvings(self.x_shape[1:], len(channels))[-1]
        self.stages = downsampling(self.x_shape[0], channels, activation)
        self.head = mlp(channels[-1] * math.prod(grid), hidden_dims, out_dim, activation)

    def forward(self, x: Tensor) -> Tensor:
        """Of (..., C·H·W)."""
        grid = self.stages(x.reshape(-1, *self.x_shape))
        return self.head(grid.flatten(1)).reshape(*x.shape[:-1], -1)


class ConvDecoder(nn.Module):
    """Vectors to images as vectors: (..., in_dim) to (..., num_outputs·C·H·W).

    Args:
        in_dim: size of the input.
        channels: before every doubling.
        x_shape: (C, H, W).
        num_outputs: maps of the image's shape.
        activation: a name of ``ACTIVATIONS``.
        hidden_dims: widths of fully connected layers before the first doubling.
    """

    def __init__(
        self,
        in_dim: int,
        channels: Sequence[int],
        x_shape: Sequence[int],
        num_outputs: int,
        activation: str = "relu",
        hidden_dims: Sequence[int] = (),
    ) -> None:
        super().__init__()
        image_channels, *size = check_image(x_shape)
        *self.sizes, grid = halvings(size, len(channels))
        self.grid_shape = (channels[0], *grid)
        self.head = mlp(in_dim, hidden_dims, math.prod(self.grid_shape), activation)
        self.stages = Upsampling(channels, num_outputs * image_channels, activation)

    def forward(self, z: Tensor) -> Tensor:
        """Of (..., in_dim)."""
        grid = self.head(z).reshape(-1, *self.grid_shape)
        return self.stages(grid, self.sizes[::-1]).reshape(*z.shape[:-1], -1)


class GridEncoder(nn.Module):
    """Images (..., C, H, W) of any size to grids (..., out_channels, h, w).

    Args:
        in_channels: C.
        channels: after every halving.
        out_channels: of the grid.
        activation: a name of ``ACTIVATIONS``.
        num_blocks: residual blocks after the last halving.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        out_channels: int,
        activation: str = "relu",
        num_blocks: int = 0,
    ) -> None:
        super().__init__()
        self.stages = downsampling(in_channels, channels, activation)
        if num_blocks:
            self.stages.extend(residual_blocks(channels[-1], num_blocks, activation))
            self.stages.append(make_activation(activation))
        self.head = nn.Conv2d(channels[-1], out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Of (..., C, H, W)."""
        grid = self.head(self.stages(x.reshape(-1, *x.shape[-3:])))
        return grid.reshape(*x.shape[:-3], *grid.shape[1:])


class GridDecoder(nn.Module):
    """Grids (..., in_channels, h, w) to maps (..., num_outputs, C, H, W) of any size.

    Args:
        in_channels: of the grid.
        channels: before every doubling.
        out_channels: C.
        num_outputs: maps of the image's shape.
        activation: a name of ``ACTIVATIONS``.
        num_blocks: residual blocks before the first doubling.
    """

    def __init__(
        self,
        in_channels: int,
        channels: Sequence[int],
        out_channels: int,
        num_outputs: int,
        activation: str = "relu",
        num_blocks: int = 0,
    ) -> None:
        super().__init__()
        self.maps = (num_outputs, out_channels)
        first = nn.Conv2d(in_channels, channels[0], 3, padding=1)
        blocks = residual_blocks(channels[0], num_blocks, activation)
        self.head = nn.Sequential(first, *blocks) if blocks else first
        self.stages = Upsampling(channels, num_outputs * out_channels, activation)

    def forward(self, z: Tensor, size: Size) -> Tensor:
        """Of (..., in_channels, h, w), which must be the grid of an image of this size."""
        *sizes, _ = halvings(size, len(self.stages.stages))
        image = self.stages(self.head(z.reshape(-1, *z.shape[-3:])), sizes[::-1])
        return image.reshape(*z.shape[:-3], *self.maps, *size)
