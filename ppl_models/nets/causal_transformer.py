"""A causal Transformer over the raster of a grid.

The input at a position is the value before it, with the position's row and column; attention sees
what is before and the position itself, so the logits there are of the values before it alone. A
sampler keeps every layer's keys and values.

Shapes: B batch, h w grid, n = h·w positions, V values, D features, A heads, F features of the
context.

References:
    Vaswani et al.: Attention is All You Need, 2017, arXiv:1706.03762.
    Xiong et al.: On Layer Normalization in the Transformer Architecture, 2020, arXiv:2002.04745
    (normalization before each part).
    Chen et al.: Generative Pretraining from Pixels, ICML 2020.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_models.errors import ProgramError


class CausalTransformer(nn.Module):
    """A causal Transformer over grids of integers of one size.

    Args:
        num_values: V, values of a position.
        grid: height and width.
        dim: D, features of a position; a multiple of ``num_heads``.
        num_layers: of attention and feed-forward network.
        num_heads: A, of attention.
        dropout: of what every part adds, while training.
        context_dim: F, features of what it is conditioned on; 0 if nothing.
    """

    def __init__(
        self,
        num_values: int,
        grid: tuple[int, int],
        dim: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        dropout: float = 0.0,
        context_dim: int = 0,
    ) -> None:
        super().__init__()
        if num_layers < 1 or num_heads < 1 or dim < 1 or dim % num_heads:
            raise ProgramError(
                "dim must be a positive multiple of num_heads, and num_layers at least 1; got "
                f"dim={dim}, num_heads={num_heads}, num_layers={num_layers}"
            )
        if not 0 <= dropout < 1:
            raise ProgramError(f"dropout must be in [0, 1), got {dropout}")
        self.num_values = num_values
        self.grid = grid
        self.start = nn.Parameter(0.02 * torch.randn(dim))
        self.embedding = nn.Embedding(num_values, dim)
        self.rows = nn.Parameter(0.02 * torch.randn(grid[0], 1, dim))
        self.columns = nn.Parameter(0.02 * torch.randn(grid[1], dim))
        self.context = nn.Linear(context_dim, dim) if context_dim else None
        blocks = [Block(dim, num_heads, dropout) for _ in range(num_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_values)
        nn.init.normal_(self.embedding.weight, std=0.02)
        for block in blocks:  # the stream's variance is that of its start, however deep
            for last in (block.out, block.second):
                nn.init.normal_(last.weight, std=0.02 / math.sqrt(2 * num_layers))
                nn.init.zeros_(last.bias)

    def forward(self, codes: Tensor, context: Tensor | None = None) -> Tensor:
        """Logits (B, h, w, V) of integers (B, h, w), given a context (B, F, h or 1, w or 1)."""
        before = self.embedding(codes.flatten(1)[:, :-1])  # (B, n − 1, D)
        first = self.start.expand(len(codes), 1, -1)
        stream = torch.cat([first, before], dim=1) + self.places(context)
        for block in self.blocks:
            stream = block(stream)
        return self.head(self.norm(stream)).unflatten(1, self.grid)

    def places(self, context: Tensor | None) -> Tensor:
        """What is known of every position beforehand, (n, D), or (B, n, D) with a context."""
        places = self.rows + self.columns  # (h, w, D)
        if self.context is not None and context is not None:
            places = places + self.context(context.movedim(1, -1))
        return places.flatten(-3, -2)

    def sampler(
        self, batch: int, grid: tuple[int, int], context: Tensor | None = None
    ) -> TransformerSampler:
        """Its outputs one after the other, in raster order."""
        if grid != self.grid:
            raise ProgramError(f"the network is made for grids of {self.grid}, not {grid}")
        return TransformerSampler(self, batch, context)


class Block(nn.Module):
    """Attention to what is before, then a network of each position.

    Args:
        dim: D.
        num_heads: A.
        dropout: of what each of them adds.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.dropout = dropout
        self.norm = nn.LayerNorm(dim)
        self.projection = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)
        self.second_norm = nn.LayerNorm(dim)
        self.first = nn.Linear(dim, 4 * dim)
        self.second = nn.Linear(4 * dim, dim)

    def forward(self, stream: Tensor) -> Tensor:
        """The stream (B, n, D) after the block."""
        heads = self.heads(stream)
        seen = F.scaled_dot_product_attention(*heads, is_causal=True)
        return self.add(stream, seen)

    def heads(self, stream: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values of (B, n, D), (B, A, n, D / A) each."""
        projected = self.projection(self.norm(stream)).unflatten(-1, (3, self.num_heads, -1))
        query, key, value = projected.movedim(2, 0).transpose(2, 3).unbind(0)
        return query, key, value

    def add(self, stream: Tensor, seen: Tensor) -> Tensor:
        """The stream with what attention (B, A, n, D / A) and then the network add to it."""
        stream = stream + self._drop(self.out(seen.transpose(1, 2).flatten(2)))
        hidden = F.gelu(self.first(self.second_norm(stream)))
        return stream + self._drop(self.second(hidden))

    def _drop(self, added: Tensor) -> Tensor:
        return F.dropout(added, self.dropout, self.training) if self.dropout else added


class TransformerSampler:
    """A Transformer's logits one after the other; keys and values of what was are kept.

    Args:
        network: in evaluation.
        batch: B.
        context: (B, F, h or 1, w or 1), or None.
    """

    def __init__(
        self, network: CausalTransformer, batch: int, context: Tensor | None = None
    ) -> None:
        self.network = network
        self.places = network.places(context)
        self.blocks = [block for block in network.blocks if isinstance(block, Block)]
        length, dim = self.places.shape[-2:]
        self.kept = [
            self.places.new_zeros(2, batch, heads, length, dim // heads)
            for heads in (block.num_heads for block in self.blocks)
        ]
        self.before = network.start.expand(batch, -1)
        self.position = 0

    def logits(self) -> Tensor:
        """Of the next position, (B, V)."""
        here = self.position
        stream = (self.before + self.places[..., here, :]).unsqueeze(1)  # (B, 1, D)
        for block, kept in zip(self.blocks, self.kept, strict=True):
            query, key, value = block.heads(stream)
            kept[0, :, :, here], kept[1, :, :, here] = key[:, :, 0], value[:, :, 0]
            keys, values = kept[:, :, :, : here + 1]
            stream = block.add(stream, F.scaled_dot_product_attention(query, keys, values))
        return self.network.head(self.network.norm(stream)).squeeze(1)

    def take(self, values: Tensor) -> None:
        """The integers (B,) at that position."""
        self.before = self.network.embedding(values)
        self.position += 1
