"""Hierarchical VAEs of images: groups of latents on grids of several sizes, after NVAE.

Generative story, for each datum in the plate ``data``, from the smallest grid to the largest, each
twice the size of the last (28×28: 7×7, then 14×14):

    z_l ~ Normal(loc_l(h_{l−1}), scale_l(h_{l−1}))
                                        sites ``z_1`` ... ``z_L``, (D, h, w): a few groups a scale
    h_l = cells(h_{l−1} + spread(z_l))  doubled in size after the last group of a scale
    x ~ likelihood(decoder(h_L))        site ``x``, (C, H, W)

from a learned h_0. The guide reads x upwards, deterministically, from the largest grid to the
smallest, and then goes down with the model: at every group it moves the model's own p(z_l | z_<l)
by a function of h_{l−1} and of what it has read at that scale (``grouped.py``).

Cells are residual, with swish and squeeze-and-excitation (``nets/residual_cells.py``); weights are
normalized, not batches, so that nothing need be readjusted before one samples.

Shapes: B data, D latent channels, F hidden channels, C H W image, h w grid.

References:
    Vahdat, Kautz: NVAE: A Deep Hierarchical Variational Autoencoder, 2020, arXiv:2007.03898.
    Child: Very Deep VAEs Generalize Autoregressive Models, 2021, arXiv:2011.10650.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ppl_models.errors import ProgramError, whole_number, whole_numbers
from ppl_models.grouped import QUIET, Group, GroupedVAE, Start
from ppl_models.likelihoods import make_likelihood
from ppl_models.nets.conv import Size, check_image
from ppl_models.nets.residual_cells import AFTER_SWISH, make_cells
from ppl_models.nets.weight_norm import WeightNormConv2d
from ppl_models.shared_pass import Compute, computed, recomputed


def on_grids(network: nn.Module, grids: Tensor) -> Tensor:
    """A network of (B, F, h, w), of grids (..., F, h, w)."""
    out: Tensor = network(grids.reshape(-1, *grids.shape[-3:]))
    return out.reshape(*grids.shape[:-3], *out.shape[1:])


class Head(nn.Module):
    """Grids to loc and log-scale.

    Args:
        in_channels: of all grids together.
        hidden_channels: between a 1×1 and a 3×3 convolution.
        latent_channels: D.
    """

    def __init__(self, in_channels: int, hidden_channels: int, latent_channels: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.SiLU(),
            WeightNormConv2d(in_channels, hidden_channels, 1, gain=AFTER_SWISH),
            nn.SiLU(),
            WeightNormConv2d(hidden_channels, 2 * latent_channels, gain=QUIET),
        )

    def forward(self, *grids: Tensor) -> Tensor:
        """(..., 2D, h, w) of grids (..., F, h, w) whose batches broadcast."""
        batch = torch.broadcast_shapes(*(grid.shape[:-3] for grid in grids))
        both = torch.cat([grid.expand(*batch, *grid.shape[-3:]) for grid in grids], dim=-3)
        return on_grids(self.net, both)


class Doubling(nn.Module):
    """A grid of twice the size, with another number of channels.

    Args:
        in_channels: before.
        out_channels: after.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.mix = WeightNormConv2d(in_channels, out_channels, 1)

    def forward(self, grid: Tensor) -> Tensor:
        """(B, out_channels, 2h, 2w) of (B, in_channels, h, w)."""
        return F.interpolate(self.mix(grid), scale_factor=2, mode="nearest")


class Step(nn.Module):
    """h_l of h_{l−1} and z_l.

    Args:
        latent_channels: D.
        hidden_channels: F.
        cells: after z_l is added, and what changes the size.
    """

    def __init__(self, latent_channels: int, hidden_channels: int, *cells: nn.Module) -> None:
        super().__init__()
        self.spread = WeightNormConv2d(latent_channels, hidden_channels, 1)
        self.cells = nn.Sequential(*cells)

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        """(..., F, h, w) of the state, (F, h, w) or (..., F, h, w), and z (..., D, h, w)."""
        return on_grids(self.cells, state + on_grids(self.spread, z))


class BottomUp(nn.Module):
    """The deterministic pass upwards: features of x at every scale.

    Args:
        in_channels: C.
        widths: hidden channels of the scales, the smallest grid first.
        block: side of the pixels' blocks that are one place of the largest grid.
        cell: a name of ``CELLS``.
        num_cells: of the scales, likewise.
        compute: calls the cells.
    """

    def __init__(
        self,
        in_channels: int,
        widths: Sequence[int],
        block: int,
        cell: str,
        num_cells: Sequence[int],
        compute: Compute,
    ) -> None:
        super().__init__()
        upwards = list(widths)[::-1]
        self.block = block
        self.stem = WeightNormConv2d(in_channels * block**2, upwards[0])
        self.scales = nn.ModuleList(
            make_cells(cell, width, number)
            for width, number in zip(upwards, num_cells[::-1], strict=True)
        )
        self.halvings = nn.ModuleList(WeightNormConv2d(a, b, 2, 2) for a, b in pairwise(upwards))
        self.compute = compute

    def forward(self, x: Tensor) -> list[Tensor]:
        """Of images (..., C, H, W): (..., F, h, w) of every scale, the smallest grid first."""
        images = x.reshape(-1, *x.shape[-3:])
        grid = self.stem(F.pixel_unshuffle(2 * images - 1, self.block))
        found = []
        for number, cells in enumerate(self.scales):
            grid = self.halvings[number - 1](grid) if number else grid
            for cell in cells.children():
                grid = self.compute(cell, grid)
            found.append(grid.reshape(*x.shape[:-3], *grid.shape[1:]))
        return found[::-1]


class Pixels(nn.Module):
    """The last state to what a likelihood wants of every pixel.

    Args:
        hidden_channels: F.
        out_channels: C.
        num_outputs: maps of the image's shape.
        block: side of the pixels' blocks that are one place of the grid.
        cells: before the last convolution.
    """

    def __init__(
        self,
        hidden_channels: int,
        out_channels: int,
        num_outputs: int,
        block: int,
        cells: nn.Module,
    ) -> None:
        super().__init__()
        self.maps = (num_outputs, out_channels)
        self.block = block
        outputs = num_outputs * out_channels * block**2
        last = WeightNormConv2d(hidden_channels, outputs, gain=QUIET)
        self.net = nn.Sequential(cells, nn.SiLU(), last)

    def forward(self, state: Tensor) -> Tensor:
        """(..., num_outputs, C, H, W) of (..., F, h, w)."""
        image = F.pixel_shuffle(on_grids(self.net, state), self.block)
        return image.unflatten(-3, self.maps)


def grids_of(size: Sequence[int], scales: int, halvings: int) -> list[Size]:
    """Height and width of every scale, the smallest first.

    Args:
        size: (H, W) of the image.
        scales: how many.
        halvings: between the image and the largest grid.

    Raises:
        ProgramError: the scales do not divide the image; with the sizes that fit.
    """
    block = 2 ** (scales - 1 + halvings)
    if any(side % block or side < block for side in size):
        near = [sorted({max(1, side // block) * block, -(-side // block) * block}) for side in size]
        fit = " and ".join(
            f"{what} {' or '.join(map(str, sides))}"
            for what, sides in zip(("height", "width"), near, strict=True)
        )
        raise ProgramError(
            f"{scales} scales below {halvings} halvings divide height and width by {block}, which "
            f"images of {size[0]}×{size[1]} do not allow; what fits: {fit} (resize or pad the "
            "images), or fewer entries in groups, or fewer stem_halvings"
        )
    return [(size[0] // block * 2**s, size[1] // block * 2**s) for s in range(scales)]


def one_a_scale(name: str, value: int | Sequence[int], scales: int) -> list[int]:
    """A number for every scale.

    Raises:
        PplError: another count of numbers, or not all are whole and positive.
    """
    numbers = list(value) if isinstance(value, Iterable) else [value] * scales
    if len(numbers) != scales:
        raise ProgramError(
            f"{name} must be one number, or one for each of the {scales} scales of groups (the "
            f"smallest grid first); got {numbers}"
        )
    return whole_numbers(name, numbers)


class HierarchicalVAE(GroupedVAE):
    """A VAE of groups of latents on grids of several sizes.

    Args:
        x_shape: (C, H, W) of one image; H and W a multiple of 2^(scales − 1 + stem_halvings).
        groups: how many at each scale, the smallest grid first; each grid is twice the last.
        latent_channels: D; one number, or one a scale.
        hidden_channels: F; one number, or one a scale.
        stem_halvings: between the image and the largest grid.
        cell: ``plain`` (two 3×3 convolutions) or ``depthwise`` (NVAE's).
        cells: in each step of the top-down pass, and before the pixels; one number, or one a scale.
        encoder_cells: at each scale of the pass upwards; one number, or one a scale.
        likelihood: a name of ``LIKELIHOODS``.
        grey_levels: of the data, for likelihoods of levels; 256 when left out.
        checkpoint_cells: compute cells again in the backward pass instead of keeping what they
            computed: less memory, more time, the same gradients.
        spectral_weight: of the auxiliary loss ``spectral``; 0: none.

    Raises:
        ProgramError: an image that the scales do not divide, no groups, widths that are none.
    """

    def __init__(
        self,
        x_shape: Sequence[int] = (1, 28, 28),
        groups: Sequence[int] = (4, 2),
        latent_channels: int | Sequence[int] = 8,
        hidden_channels: int | Sequence[int] = 32,
        stem_halvings: int = 1,
        cell: str = "plain",
        cells: int | Sequence[int] = 1,
        encoder_cells: int | Sequence[int] = 2,
        likelihood: str = "bernoulli",
        grey_levels: int | None = None,
        checkpoint_cells: bool = False,
        spectral_weight: float = 0.0,
    ) -> None:
        channels, *size = check_image(x_shape)
        counts = whole_numbers("groups of the scales", groups)
        if not counts:
            raise ProgramError("groups must name one scale or more, got none")
        halvings = whole_number("stem_halvings", stem_halvings, least=0)
        grids = grids_of(size, len(counts), halvings)
        latent = one_a_scale("latent_channels", latent_channels, len(counts))
        hidden = one_a_scale("hidden_channels", hidden_channels, len(counts))
        each = one_a_scale("cells", cells, len(counts))
        upwards = one_a_scale("encoder_cells", encoder_cells, len(counts))
        observed = make_likelihood(likelihood, x_shape, grey_levels)
        block, last = 2**halvings, make_cells(cell, hidden[-1], each[-1])

        def group(scale: int, number: int) -> Group:
            width, codes = hidden[scale], latent[scale]
            after: list[nn.Module] = list(make_cells(cell, width, each[scale]))
            if number == counts[scale] - 1 and scale + 1 < len(counts):
                after.append(Doubling(width, hidden[scale + 1]))
            return Group(
                Head(width, width, codes), Head(2 * width, width, codes), Step(codes, width, *after)
            )

        super().__init__(
            Start((hidden[0], *grids[0])),
            [[group(scale, n) for n in range(count)] for scale, count in enumerate(counts)],
            BottomUp(
                channels, hidden, block, cell, upwards, recomputed if checkpoint_cells else computed
            ),
            Pixels(hidden[-1], channels, observed.num_outputs, block, last),
            observed,
            event_dim=3,
            checkpoint_cells=checkpoint_cells,
            spectral_weight=spectral_weight,
        )
        self.x_shape = (channels, *size)
        self.grids = grids
