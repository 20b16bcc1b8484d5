"""What programs with codebooks share: the guide, the start from data, the names of the codes.

Every grid of codes is two sites: ``codes`` (integers) and ``z`` (their vectors), with a suffix
(``codes_top``, ``z_top``) where there are several.

Shapes: B data, K num_codes, D code_dim, C H W image, h w grid.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppl_models.errors import ProgramError
from ppl_models.nets import Codebook, Quantized, fingerprint_of, halvings, halvings_to
from ppl_models.program import Batch, auxiliary_loss

Grid = tuple[int, int]
START_SAMPLE = 20_000
"""Features that a k-means start looks at, or as many as there are codes, if they are more."""


class UniformCodes(nn.Module):
    """p(codes) while the quantizer trains: every code of every place is as likely.

    Args:
        num_codes: K.
        grid: (h, w).
    """

    logits: Tensor

    def __init__(self, num_codes: int, grid: Sequence[int]) -> None:
        super().__init__()
        self.grid = tuple(grid)
        self.register_buffer("logits", torch.zeros(num_codes), persistent=False)

    def forward(self, y: Tensor | None = None) -> dist.TorchDistribution:
        """p(codes), event shape (h, w); whatever the class ``y`` (B,)."""
        return dist.Categorical(logits=self.logits).expand(self.grid).to_event(2)


class QuantizedProgram(PyroModule):
    """A program whose latents are grids of codes.

    Subclasses set the attributes below, and say how an image is quantized and what the story is.
    """

    x_shape: tuple[int, int, int]
    num_codes: int
    grids: dict[str, Grid]
    """(h, w) of every site of codes, in the order of the story."""
    code_prior: Any
    """p(codes); one that is learned may take the place of the uniform one."""
    kmeans_start: bool

    @property
    @abstractmethod
    def codebooks(self) -> dict[str, Codebook]:
        """By site of codes."""

    @abstractmethod
    def quantize(self, x: Tensor) -> dict[str, Quantized]:
        """What images (B, C, H, W) become, by site of codes."""

    @pyro_method
    def guide(self, x: Tensor) -> None:
        """The nearest codes of the encoder's features, and their vectors."""
        with pyro.plate("data", len(x), dim=-1):
            for site, found in self.quantize(self._checked(x)).items():
                suffix = site.removeprefix("codes")
                auxiliary_loss(f"commitment{suffix}", found.commitment, in_guide=True)
                if found.codebook is not None:
                    auxiliary_loss(f"codebook{suffix}", found.codebook, in_guide=True)
                pyro.sample(site, dist.Delta(found.codes, event_dim=2))  # (B, h, w)
                pyro.sample(f"z{suffix}", dist.Delta(found.vectors, event_dim=3))  # (B, D, h, w)

    @torch.no_grad()
    def encode_codes(self, x: Tensor) -> dict[str, Tensor]:
        """The codes of images (B, C, H, W): (B, h, w) int64 by site."""
        return {site: found.codes for site, found in self.quantize(self._checked(x)).items()}

    def fingerprint(self) -> str:
        """A short name of the codebooks' values, by which priors over the codes know them."""
        return fingerprint_of(list(self.codebooks.values()))

    def start_from_data(self, batches: Iterable[Batch]) -> bool:
        """Put the codes on clusters of features, before training; ``fit`` calls it.

        Raises:
            ProgramError: the data have fewer features than a codebook has codes.
        """
        if not self.kmeans_start or all(bool(c.started) for c in self.codebooks.values()):
            return False
        fewest = min(h * w for h, w in self.grids.values())
        needed = math.ceil(max(START_SAMPLE, self.num_codes) / fewest)
        images = list(_enough((batch["x"] for batch in batches), needed))
        for codebook in self.codebooks.values():  # the next depends on the codes of the last
            start_codebook(codebook, self, images)
        return True

    def _checked(self, x: Tensor) -> Tensor:
        """Images, of the size that the grid was made for.

        Raises:
            ProgramError: of another; saying both.
        """
        if tuple(x.shape[1:]) != self.x_shape:
            raise ProgramError(
                f"the grids of codes were made for images {self.x_shape}, got "
                f"{tuple(x.shape[1:])}; resize them, or make the program with this x_shape"
            )
        return x


def start_codebook(codebook: Codebook, program: QuantizedProgram, images: list[Tensor]) -> None:
    """A k-means start from the features that a program quantizes by this codebook.

    Args:
        codebook: one of the program's.
        program: whose encoder gives the features.
        images: batches (B, C, H, W).

    Raises:
        ProgramError: there are fewer features than codes.
    """
    rows: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor]) -> None:
        rows.append(codebook.rows(inputs[0]))

    handle = codebook.register_forward_pre_hook(keep)
    try:
        for batch in images:
            program.encode_codes(batch)
    finally:
        handle.remove()
    generator = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
    found = torch.cat(rows)
    number = max(START_SAMPLE, codebook.num_codes)
    chosen = torch.randperm(len(found), generator=generator)[:number]
    codebook.start(found[chosen.to(found.device)], len(rows[0]), generator)


def _enough(parts: Iterable[Tensor], number: int) -> Iterable[Tensor]:
    """Parts until they hold so many data."""
    seen = 0
    for part in parts:
        seen += len(part)
        yield part
        if seen >= number:
            return


def stage_widths(
    size: Sequence[int], grid: Sequence[int] | None, hidden_channels: int
) -> list[int]:
    """Channels after every halving from an image to a grid: half as many after the first.

    Args:
        size: (H, W).
        grid: (h, w); the image's size halved twice when left out.
        hidden_channels: after the last.

    Raises:
        ProgramError: the grid does not fit the image.
    """
    times = halvings_to(size, halvings(size, 2)[-1] if grid is None else grid)
    narrow = [max(1, hidden_channels // 2)] if times > 1 else []
    return narrow + [hidden_channels] * (times - len(narrow))
