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

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
from pyro.nn import pyro_method
from torch import Tensor

from ppl_models.likelihoods import make_likelihood
from ppl_models.nets import Codebook, GridDecoder, GridEncoder, Quantized, halvings
from ppl_models.nets.conv import check_image
from ppl_models.quantized import QuantizedProgram, UniformCodes, stage_widths


class VQVAE(QuantizedProgram):
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
        code_dim: int = 16,
        grid: Sequence[int] | None = None,
        hidden_channels: int = 64,
        residual_blocks: int = 2,
        commitment_cost: float = 0.25,
        distance: str = "euclidean",
        codebook_update: str = "ema",
        decay: float = 0.99,
        restart_below: float = 0.2,
        kmeans_start: bool = True,
        likelihood: str = "normal_shared_scale",
        activation: str = "relu",
        grey_levels: int | None = None,
    ) -> None:
        super().__init__()
        channels, *size = self.x_shape = check_image(x_shape)
        widths = stage_widths(size, grid, hidden_channels)
        self.num_codes, self.kmeans_start = num_codes, kmeans_start
        self.grids = {"codes": halvings(size, len(widths))[-1]}
        self.likelihood = make_likelihood(likelihood, x_shape, grey_levels)
        self.encoder = GridEncoder(channels, widths, code_dim, activation, residual_blocks)
        outputs = (channels, self.likelihood.num_outputs)
        self.decoder = GridDecoder(code_dim, widths[::-1], *outputs, activation, residual_blocks)
        learning = (distance, codebook_update, commitment_cost, decay)
        self.codebook = Codebook(num_codes, code_dim, *learning, restart_below=restart_below)
        self.code_prior = UniformCodes(num_codes, self.grids["codes"])

    @property
    def codebooks(self) -> dict[str, Codebook]:
        """By site of codes."""
        return {"codes": self.codebook}

    def quantize(self, x: Tensor) -> dict[str, Quantized]:
        """The nearest codes of E(x), for x (B, C, H, W)."""
        return {"codes": self.codebook(self.encoder(x))}

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
