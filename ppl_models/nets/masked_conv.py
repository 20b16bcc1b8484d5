"""The gated PixelCNN: logits of every position of a grid, each from the positions before it.

Two stacks see the grid in raster order. The vertical one is shifted down by a row, so its features
at (i, j) are of the rows above i, to both sides; the horizontal one is shifted right by a column,
so its features are of row i before j, and at every layer it is given the vertical ones. Together
they see all that comes before (i, j) within the receptive field, without a blind spot. After the
shifts all kernels end at the position itself, so that no weight is masked out in vain: the
convolutions are as large as what they see.

A sampler keeps, for every layer, the rows and columns that its next output needs, and computes one
row of the vertical stack when a row begins and one pixel of the horizontal one at every position.

Shapes: B batch, h w grid, V values, C channels of a layer, F features of the context.

References:
    van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu: Conditional Image Generation
    with PixelCNN Decoders, 2016, arXiv:1606.05328.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_models.errors import ProgramError


class GatedPixelCNN(nn.Module):
    """A gated PixelCNN over grids of integers.

    Args:
        num_values: V, values of a position.
        channels: C, features of each stack.
        num_layers: of each stack.
        kernel_size: odd; of all layers but the first, which sees what lies within 7.
        context_dim: F, features of what it is conditioned on; 0 if nothing.
        head_channels: width of the layer before the logits; 2 C when left out.
    """

    def __init__(
        self,
        num_values: int,
        channels: int = 32,
        num_layers: int = 7,
        kernel_size: int = 3,
        context_dim: int = 0,
        head_channels: int | None = None,
    ) -> None:
        super().__init__()
        if kernel_size < 3 or kernel_size % 2 == 0:
            raise ProgramError(f"kernel_size must be odd and at least 3, got {kernel_size}")
        if num_layers < 1 or channels < 1:
            raise ProgramError(
                f"num_layers and channels must be at least 1, got {num_layers} and {channels}"
            )
        self.num_values = num_values
        width = min(num_values, channels)
        self.embedding = nn.Embedding(num_values, width)
        widths = [width, *[channels] * num_layers]
        kernels = [7, *[kernel_size] * (num_layers - 1)]
        self.layers = nn.ModuleList(
            GatedLayer(a, b, kernel, context_dim)
            for (a, b), kernel in zip(pairwise(widths), kernels, strict=True)
        )
        hidden = head_channels or 2 * channels
        self.hidden = nn.Conv2d(channels, hidden, 1)
        self.head = nn.Conv2d(hidden, num_values, 1)

    def forward(self, codes: Tensor, context: Tensor | None = None) -> Tensor:
        """Logits (B, h, w, V) of integers (B, h, w), given a context (B, F, h or 1, w or 1)."""
        features = self.embedding(codes).permute(0, 3, 1, 2)  # (B, C, h, w)
        vertical = F.pad(features, (0, 0, 1, -1))
        horizontal = F.pad(features, (1, -1, 0, 0))
        skips = torch.zeros((), device=features.device)
        for layer in self.layers:
            vertical, horizontal, skip = layer(vertical, horizontal, context)
            skips = skips + skip
        outputs = self.head(F.relu(self.hidden(F.relu(skips))))
        return outputs.permute(0, 2, 3, 1)

    def sampler(
        self, batch: int, grid: tuple[int, int], context: Tensor | None = None
    ) -> PixelCNNSampler:
        """Its outputs one after the other, in raster order."""
        return PixelCNNSampler(self, batch, grid, context)


class GatedLayer(nn.Module):
    """A layer of both stacks.

    The horizontal one is given the vertical one's features after their gate, which halves the
    cost of the link that the paper takes from those before it; both have residual connections.

    Args:
        in_channels: of both inputs.
        channels: C.
        kernel_size: odd.
        context_dim: F, or 0.
    """

    def __init__(self, in_channels: int, channels: int, kernel_size: int, context_dim: int) -> None:
        super().__init__()
        self.reach = kernel_size // 2
        self.residual = in_channels == channels
        self.vertical = nn.Conv2d(in_channels, 2 * channels, (self.reach + 1, kernel_size))
        self.horizontal = nn.Conv2d(in_channels, 2 * channels, (1, self.reach + 1))
        self.link = nn.Conv2d(channels, 2 * channels, 1, bias=False)
        self.out = nn.Conv2d(channels, 2 * channels, 1)
        self.context = nn.Conv2d(context_dim, 4 * channels, 1) if context_dim else None

    def forward(
        self, vertical: Tensor, horizontal: Tensor, context: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Both stacks after the layer and what it adds to the skip connection, (B, C, h, w)."""
        reach = self.reach
        above = self.vertical(F.pad(vertical, (reach, reach, reach, 0)))
        before = self.horizontal(F.pad(horizontal, (reach, 0, 0, 0)))
        if self.context is not None:
            for_above, for_before = self.context(context).chunk(2, dim=1)
            above, before = above + for_above, before + for_before
        rows = gate(above, dim=1)
        pixels = gate(before + self.link(rows), dim=1)
        change, skip = self.out(pixels).chunk(2, dim=1)
        if self.residual:
            rows, change = rows + vertical, change + horizontal
        return rows, change, skip


def gate(features: Tensor, dim: int) -> Tensor:
    """tanh(a) σ(2b) of both halves a and b: one tanh, for σ(2b) = (1 + tanh b) / 2."""
    a, b = torch.tanh(features).chunk(2, dim=dim)
    return 0.5 * a * (1 + b)


class PixelCNNSampler:
    """A PixelCNN's logits one after the other; only what a new position needs is computed.

    Args:
        network: in evaluation.
        batch: B.
        grid: height and width.
        context: (B, F, h or 1, w or 1), or None.
    """

    def __init__(
        self,
        network: GatedPixelCNN,
        batch: int,
        grid: tuple[int, int],
        context: Tensor | None = None,
    ) -> None:
        self.network = network
        self.width = grid[1]
        like = network.embedding.weight
        self.layers = [
            _LayerCache(layer, batch, grid, like, context)
            for layer in network.layers
            if isinstance(layer, GatedLayer)
        ]
        self.head = [(conv.weight.flatten(1), conv.bias) for conv in (network.hidden, network.head)]
        self.row, self.column = 0, 0
        self.above = like.new_zeros(batch, like.shape[1], 1, self.width)
        """Embeddings of the row above, (B, C, 1, w)."""
        self.before = like.new_zeros(batch, like.shape[1])
        """The embedding of the position before in this row, (B, C)."""
        self.taken: list[Tensor] = []
        """Embeddings of this row so far."""

    def logits(self) -> Tensor:
        """Of the next position, (B, V)."""
        if self.column == 0:
            row = self.above
            for layer in self.layers:
                row = layer.begin_row(row, self.row)
        pixel, skips = self.before, []
        for layer in self.layers:
            pixel, skip = layer.pixel(pixel, self.column)
            skips.append(skip)
        outputs = torch.stack(skips).sum(0)
        for weight, bias in self.head:
            outputs = F.linear(F.relu(outputs), weight, bias)
        return outputs

    def take(self, values: Tensor) -> None:
        """The integers (B,) at that position."""
        self.before = self.network.embedding(values)
        self.taken.append(self.before)
        self.column += 1
        if self.column == self.width:
            self.above = torch.stack(self.taken, dim=-1).unsqueeze(2)
            self.before, self.taken = torch.zeros_like(self.before), []
            self.row, self.column = self.row + 1, 0


class _LayerCache:
    """What a layer keeps: the rows above, and what it has seen of this row."""

    def __init__(
        self,
        layer: GatedLayer,
        batch: int,
        grid: tuple[int, int],
        like: Tensor,
        context: Tensor | None,
    ) -> None:
        self.layer = layer
        reach, inputs = layer.reach, layer.vertical.in_channels
        self.rows = like.new_zeros(batch, inputs, reach, grid[1])
        self.weight = layer.horizontal.weight.squeeze(2).transpose(1, 2).flatten(1)  # column first
        self.out = (layer.out.weight.flatten(1), layer.out.bias)
        self.context: tuple[Tensor, ...] | None = None
        if layer.context is not None:
            self.context = layer.context(context).expand(-1, -1, *grid).chunk(2, dim=1)

    def begin_row(self, row: Tensor, index: int) -> Tensor:
        """The vertical stack's next row (B, C, 1, w), of its input's."""
        layer, reach = self.layer, self.layer.reach
        seen = torch.cat([self.rows, row], dim=2)
        above = layer.vertical(F.pad(seen, (reach, reach)))
        if self.context is not None:
            above = above + self.context[0][:, :, index : index + 1]
        rows = gate(above, dim=1)
        given = F.conv2d(rows, layer.link.weight, layer.horizontal.bias)
        if self.context is not None:
            given = given + self.context[1][:, :, index : index + 1]
        self.given = given.squeeze(2).permute(2, 0, 1).contiguous()  # (w, B, 2C)
        self.rows = seen[:, :, 1:]
        self.columns = row.new_zeros(len(row), reach * row.shape[1])
        return rows + row if layer.residual else rows

    def pixel(self, before: Tensor, column: int) -> tuple[Tensor, Tensor]:
        """The horizontal stack at the next position and its skip, (B, C), of its input there."""
        seen = torch.cat([self.columns, before], dim=1)
        pixels = gate(torch.addmm(self.given[column], seen, self.weight.T), dim=1)
        change, skip = F.linear(pixels, *self.out).chunk(2, dim=1)
        self.columns = seen[:, before.shape[1] :]
        return (change + before if self.layer.residual else change), skip
