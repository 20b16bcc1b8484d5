"""The vector-quantized VAE with two grids of codes: a small one above a large one.

Generative story, for each datum in the plate ``data``:

    codes_top ~ p(codes_top)            site ``codes_top``, (h/2, w/2): the image as a whole
    z_top = e_top[codes_top]            site ``z_top``, a ``Delta``, (D, h/2, w/2)
    codes_bottom ~ p(codes_bottom | codes_top)
                                        site ``codes_bottom``, (h, w): its details
    z_bottom = e_bottom[codes_bottom]   site ``z_bottom``, a ``Delta``, (D, h, w)
    x ~ likelihood(decoder(U(z_top), U(z_top) + z_bottom))
                                        site ``x``, (C, H, W); U spreads (h/2, w/2) over (h, w)

Both priors are uniform while it trains (``code_prior.top``, ``code_prior.bottom``). The guide is
deterministic, as that of ``vqvae.py``: features of the image are quantized on the small grid
first, and those of the large grid are a function of the image and of the codes above, of which
what the upper codes say is taken off:

    f = E_bottom(x)
    codes_top = nearest(E_top(f)),    codes_bottom = nearest(join(f, D_top(z_top)) − U(z_top))

so that the lower codes need not say it again. (In the paper they stand for join(f, D_top(z_top))
itself, and the decoder sees U(z_top) and z_bottom: worse by 16 % on faces.) Auxiliary losses:
``commitment_top``, ``commitment_bottom`` and, where codebooks are learned by gradients,
``codebook_top``, ``codebook_bottom``.

Shapes: B data, K num_codes of each codebook, D code_dim, C H W image.

References:
    Razavi, van den Oord, Vinyals: Generating Diverse High-Fidelity Images with VQ-VAE-2, 2019,
    arXiv:1906.00446.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import pyro_method
from torch import Tensor, nn

from ppl_models.likelihoods import make_likelihood
from ppl_models.nets import Codebook, GridDecoder, GridEncoder, Quantized, halvings, halvings_to
from ppl_models.nets.conv import check_image
from ppl_models.quantized import Grid, QuantizedProgram, UniformCodes, stage_widths


class UniformPyramid(nn.Module):
    """Uniform priors of two grids.

    Args:
        num_codes: K.
        top: (h, w) of the upper grid.
        bottom: of the lower.
    """

    def __init__(self, num_codes: int, top: Grid, bottom: Grid) -> None:
        super().__init__()
        self.top = UniformCodes(num_codes, top)
        self.of_bottom = UniformCodes(num_codes, bottom)

    def bottom(self, codes_top: Tensor, y: Tensor | None = None) -> dist.TorchDistribution:
        """p(codes_bottom | codes_top), event shape (h, w)."""
        return self.of_bottom(y)


class VQVAE2(QuantizedProgram):
    """A VAE whose latents are two grids of codes.

    Args:
        x_shape: (C, H, W) of one image.
        num_codes: K, vectors of each codebook.
        code_dim: D, size of each vector.
        grid: (h, w) of the lower codes: the image's size, halved some times; twice when left out.
        top_grid: of the upper ones: the lower grid, halved some times; once when left out.
        hidden_channels: of encoders and decoders.
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
        top_grid: Sequence[int] | None = None,
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
        bottom = halvings(size, len(widths))[-1]
        top = halvings(bottom, 1)[-1] if top_grid is None else (top_grid[0], top_grid[1])
        upper = [hidden_channels] * halvings_to(bottom, top)
        self.num_codes, self.kmeans_start = num_codes, kmeans_start
        self.grids = {"codes_top": top, "codes_bottom": bottom}
        self.likelihood = make_likelihood(likelihood, x_shape, grey_levels)
        same = (activation, residual_blocks)
        self.encoder_bottom = GridEncoder(channels, widths, hidden_channels, *same)
        self.encoder_top = GridEncoder(hidden_channels, upper, code_dim, *same)
        self.decoder_top = GridDecoder(code_dim, upper, hidden_channels, 1, *same)
        self.join = nn.Conv2d(2 * hidden_channels, code_dim, 1)
        self.spread = GridDecoder(code_dim, upper, code_dim, 1, activation)
        outputs = (channels, self.likelihood.num_outputs)
        self.decoder = GridDecoder(2 * code_dim, widths[::-1], *outputs, *same)
        learning = (distance, codebook_update, commitment_cost, decay, 1e-5, restart_below)
        self.codebook_top = Codebook(num_codes, code_dim, *learning)
        self.codebook_bottom = Codebook(num_codes, code_dim, *learning)
        self.code_prior = UniformPyramid(num_codes, top, bottom)

    @property
    def codebooks(self) -> dict[str, Codebook]:
        """By site of codes."""
        return {"codes_top": self.codebook_top, "codes_bottom": self.codebook_bottom}

    def quantize(self, x: Tensor) -> dict[str, Quantized]:
        """The upper codes of images (B, C, H, W), and the lower ones given them."""
        features = self.encoder_bottom(x)
        top = self.codebook_top(self.encoder_top(features))
        above = self.decoder_top(top.vectors, self.grids["codes_bottom"]).squeeze(-4)
        details = self.join(torch.cat([features, above], dim=-3)) - self._spread(top.vectors)
        return {"codes_top": top, "codes_bottom": self.codebook_bottom(details)}

    def _spread(self, z_top: Tensor) -> Tensor:
        """U(z_top): vectors (..., D, h/2, w/2) over the lower grid, (..., D, h, w)."""
        return self.spread(z_top, self.grids["codes_bottom"]).squeeze(-4)

    def decode(self, z_top: Tensor, z_bottom: Tensor) -> dist.TorchDistribution:
        """p(x | z) for grids of vectors (..., D, h, w): batch shape (...), event (C, H, W)."""
        above = self._spread(z_top)
        both = torch.cat([above, above + z_bottom], dim=-3)
        return self.likelihood(self.decoder(both, self.x_shape[1:]))

    @pyro_method
    def model(self, x: Tensor | None = None, *, y: Tensor | None = None, size: int = 1) -> Tensor:
        """p(codes) p(x | codes); without data, ``size`` draws from the prior predictive.

        ``y`` is what ``code_prior`` conditions on.
        """
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            codes_top = pyro.sample("codes_top", self.code_prior.top(y))
            above = self.codebook_top.look_up(codes_top)
            z_top = pyro.sample("z_top", dist.Delta(above, event_dim=3))
            codes_bottom = pyro.sample("codes_bottom", self.code_prior.bottom(codes_top, y))
            below = self.codebook_bottom.look_up(codes_bottom)
            z_bottom = pyro.sample("z_bottom", dist.Delta(below, event_dim=3))
            return pyro.sample("x", self.decode(z_top, z_bottom), obs=x)
