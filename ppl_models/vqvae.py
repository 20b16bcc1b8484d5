"""The vector-quantized VAE: an image as a grid of codes from a codebook.

Generative story, for each datum in the plate ``data``:

    codes ~ p(codes)                    site ``codes``, (h, w) integers below K
    z = e[codes]                        site ``z``, a ``Delta``, (D, h, w): the codes' vectors
    x ~ likelihood(decoder(z))          site ``x``, (C, H, W)

with e the codebook, K vectors of D numbers (``nets/quantizer.py``). While it trains, p(codes) is
uniform, h·w independent codes; afterwards a prior that is learned over the codes of data can take
its place (``code_prior``), and the same program is the generative model p(codes) p(x | codes).

The guide is deterministic:

    codes = argmin_k ‖E(x) − e_k‖       site ``codes``, a ``Delta``, place by place
    z = e[codes]                        site ``z``, a ``Delta``; its gradient goes to E(x)

It is a point, but one of finitely many: log q(codes | x) = 0, and the ELBO, log p(x | z) −
h·w·log K with the uniform prior, is a lower bound of log p(x) like any other. Two auxiliary losses
stand in the guide: ``commitment`` and, where the codebook is learned by gradients, ``codebook``.

Encoder and decoder are convolutional with residual blocks, as in the paper.

Shapes: B data, K num_codes, D code_dim, C H W image, h w grid.

References:
    van den Oord, Vinyals, Kavukcuoglu: Neural Discrete Representation Learning, 2017,
    arXiv:1711.00937.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppl_models.errors import ProgramError
from ppl_models.likelihoods import make_likelihood
from ppl_models.nets import (
    Codebook,
    GridDecoder,
    GridEncoder,
    Quantized,
    fingerprint_of,
    halvings,
    halvings_to,
)
from ppl_models.nets.conv import check_image
from ppl_models.program import Batch, auxiliary_loss

Grid = tuple[int, int]
START_SAMPLE = 20_000
"""Features that a k-means start looks at."""


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
        """p(codes), event shape (h, w); whatever the class."""
        return dist.Categorical(logits=self.logits).expand(self.grid).to_event(2)


class VQVAE(PyroModule):
    """A VAE whose latent is a grid of codes.

    Args:
        x_shape: (C, H, W) of one image.
        num_codes: K, vectors of the codebook.
        code_dim: D, size of each.
        grid: (h, w) of the codes: the image's size, halved some times; twice when left out.
        hidden_channels: of encoder and decoder.
        residual_blocks: in each of them.
        commitment_cost: weight of ‖E(x) − sg[e]‖².
        distance: between features and codes: ``euclidean`` or ``cosine``.
        codebook_update: ``ema`` (running averages) or ``gradient`` (the paper's loss).
        decay: of the running averages.
        restart_below: codes used less often than this share of the mean use are set anew; 0: never.
        kmeans_start: put the codes on clusters of the first features before training.
        likelihood: a name of ``LIKELIHOODS``.
        activation: between layers.
        grey_levels: of the data, for likelihoods of levels; 256 when left out.
    """

    def __init__(
        self,
        x_shape: Sequence[int] = (1, 28, 28),
        num_codes: int = 128,
        code_dim: int = 32,
        grid: Sequence[int] | None = None,
        hidden_channels: int = 64,
        residual_blocks: int = 2,
        commitment_cost: float = 0.25,
        distance: str = "euclidean",
        codebook_update: str = "ema",
        decay: float = 0.99,
        restart_below: float = 0.05,
        kmeans_start: bool = True,
        likelihood: str = "normal_shared_scale",
        activation: str = "relu",
        grey_levels: int | None = None,
    ) -> None:
        super().__init__()
        channels, *size = self.x_shape = check_image(x_shape)
        widths = stage_widths(size, grid, hidden_channels)
        self.num_codes, self.kmeans_start = num_codes, kmeans_start
        self.grids: dict[str, Grid] = {"codes": halvings(size, len(widths))[-1]}
        self.likelihood = make_likelihood(likelihood, x_shape, grey_levels)
        outputs = self.likelihood.num_outputs
        self.encoder = GridEncoder(channels, widths, code_dim, activation, residual_blocks)
        self.decoder = GridDecoder(
            code_dim, widths[::-1], channels, outputs, activation, residual_blocks
        )
        self.codebook = Codebook(
            num_codes,
            code_dim,
            distance,
            codebook_update,
            commitment_cost,
            decay,
            restart_below=restart_below,
        )
        self.code_prior: nn.Module = UniformCodes(num_codes, self.grids["codes"])

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for z (..., D, h, w): batch shape (...), event shape (C, H, W)."""
        return self.likelihood(self.decoder(z, self.x_shape[1:]))

    @pyro_method
    def model(self, x: Tensor | None = None, *, y: Tensor | None = None, size: int = 1) -> Tensor:
        """p(codes) p(x | codes); without data, ``size`` draws from the prior predictive.

        ``y`` is what ``code_prior`` conditions on.
        """
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            codes = pyro.sample("codes", self.code_prior(y))  # (B, h, w)
            vectors = self.codebook.look_up(codes)
            z = pyro.sample("z", dist.Delta(vectors, event_dim=3))  # (B, D, h, w)
            return pyro.sample("x", self.decode(z), obs=x)  # (B, C, H, W)

    @pyro_method
    def guide(self, x: Tensor) -> Tensor:
        """The nearest codes of the encoder's features, and their vectors."""
        check_size(x, self.x_shape)
        with pyro.plate("data", len(x), dim=-1):
            found = self.codebook(self.encoder(x))
            record_losses(found)
            pyro.sample("codes", dist.Delta(found.codes, event_dim=2))  # (B, h, w)
            return pyro.sample("z", dist.Delta(found.vectors, event_dim=3))  # (B, D, h, w)

    @torch.no_grad()
    def encode_codes(self, x: Tensor) -> dict[str, Tensor]:
        """The codes of images (B, C, H, W), (B, h, w) by site."""
        check_size(x, self.x_shape)
        return {"codes": self.codebook.codes_of(self.encoder(x))}

    def fingerprint(self) -> str:
        """A short name of the codebook's values, by which priors over its codes know it."""
        return fingerprint_of([self.codebook])

    def start_from_data(self, batches: Iterable[Batch]) -> bool:
        """Put the codes on clusters of features, before training; see ``docs/adding_a_model.md``.

        Raises:
            ProgramError: the data have fewer features than the codebook has codes.
        """
        if not self.kmeans_start or bool(self.codebook.started):
            return False
        start_codebook(self.codebook, (self.encoder(batch["x"]) for batch in batches))
        return True


def stage_widths(
    size: Sequence[int], grid: Sequence[int] | None, hidden_channels: int
) -> list[int]:
    """Channels after every halving from an image to a grid: half as many after the first.

    Raises:
        ProgramError: the grid does not fit the image.
    """
    if grid is None:
        grid = halvings(size, 2)[-1]
    times = halvings_to(size, grid)
    return [max(1, hidden_channels // 2)] * (times > 1) + [hidden_channels] * max(1, times - 1)


def record_losses(found: Quantized, suffix: str = "") -> None:
    """Record what quantizing costs as the guide's auxiliary losses."""
    auxiliary_loss(f"commitment{suffix}", found.commitment, in_guide=True)
    if found.codebook is not None:
        auxiliary_loss(f"codebook{suffix}", found.codebook, in_guide=True)


def start_codebook(codebook: Codebook, features: Iterable[Tensor]) -> None:
    """A k-means start of a codebook from features (B, D, h, w) of batches.

    Raises:
        ProgramError: there are fewer features than codes.
    """
    seed = int(torch.randint(2**31, ()))
    rows = list(_enough(codebook.rows(batch) for batch in features))
    codebook.start(torch.cat(rows), len(rows[0]), torch.Generator().manual_seed(seed))


def _enough(parts: Iterable[Tensor]) -> Iterator[Tensor]:
    """Parts of rows until they are enough for a start."""
    seen = 0
    for part in parts:
        seen += len(part)
        yield part
        if seen >= START_SAMPLE:
            return


def check_size(x: Tensor, x_shape: Sequence[int]) -> None:
    """Refuse images of another size than the grid was made for.

    Raises:
        ProgramError: saying both.
    """
    if tuple(x.shape[1:]) != tuple(x_shape):
        raise ProgramError(
            f"the grid of codes was made for images {tuple(x_shape)}, got {tuple(x.shape[1:])}; "
            "resize them, or make the program with this x_shape"
        )
