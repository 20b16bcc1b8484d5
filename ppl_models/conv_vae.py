"""Convolutional variational autoencoders: one code an image, or a grid of codes.

:class:`ConvVAE` tells the story of ``vae.py`` with other networks: stages that halve the image,
an affine map to the code's distribution, and back.

:class:`ConvGridVAE` is convolutional throughout, and its latent is a grid of codes, one to every
patch of the image (the lecture's "N × N latents"):

    z ~ Normal(0, I)                    site ``z``, (D, h, w): a code a place
    x ~ likelihood(decoder(z))          site ``x``, (C, H, W)

with h = H / 2^S, w = W / 2^S after S halvings, rounded down. Nothing in it knows the image's size,
so that a trained one takes images of other sizes. The guide is diagonal:

    z ~ Normal(loc(x), scale(x))        a convolution of the image

Any height and width will do, as long as the halvings leave something: ``nets/conv.py``.

Shapes: B data, D latent channels, C H W image, h w grid.

References:
    Kingma, Welling: Auto-Encoding Variational Bayes, 2014, arXiv:1312.6114.
    Gulrajani et al.: PixelVAE, 2017, arXiv:1611.05013, for spatial latents.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import pyro_method
from torch import Tensor, nn

from ppl_models.nets import GridDecoder, GridEncoder, check_channels, halvings
from ppl_models.posteriors import diagonal_normal
from ppl_models.vae import VAE


class ConvVAE(VAE):
    """A VAE with convolutional encoder and decoder.

    Args:
        x_shape: (C, H, W) of one image, grey or colour, of any size.
        latent_dim: D, the size of the code.
        channels: of the encoder, after every halving; the decoder mirrors them.
        likelihood: a name of ``LIKELIHOODS``.
        posterior: family of q(z | x): ``diagonal``, ``full_covariance``, ``flow``, or ``point``.
        prior: p(z): ``standard_normal``, or learned: ``mixture``, ``vamp``.
        prior_components: of a learned prior.
        beta: weight of the rate in training.
        activation: between layers.
        grey_levels: of the data, for likelihoods of levels; 256 when left out.
        hidden_dims: widths of fully connected layers between the convolutions and the code.
    """

    def __init__(
        self,
        x_shape: Sequence[int] = (1, 28, 28),
        latent_dim: int = 20,
        channels: Sequence[int] = (32, 64),
        likelihood: str = "normal_shared_scale",
        posterior: str = "diagonal",
        prior: str = "standard_normal",
        prior_components: int = 50,
        beta: float = 1.0,
        activation: str = "relu",
        grey_levels: int | None = None,
        hidden_dims: Sequence[int] = (),
    ) -> None:
        check_channels(channels)
        super().__init__(
            x_shape,
            latent_dim,
            hidden_dims,
            likelihood,
            posterior,
            prior,
            prior_components,
            beta,
            activation,
            grey_levels,
            channels,
        )


class ConvGridVAE(VAE):
    """A fully convolutional VAE whose latent is a grid of codes.

    Args:
        x_shape: (C, H, W) of the training images; a trained one takes other H and W.
        latent_dim: D, latent channels of every place of the grid.
        channels: of the encoder, after every halving; the decoder mirrors them.
        likelihood: a name of ``LIKELIHOODS``.
        beta: weight of the rate in training.
        activation: between layers.
        grey_levels: of the data, for likelihoods of levels; 256 when left out.
    """

    zero: Tensor

    def __init__(
        self,
        x_shape: Sequence[int] = (1, 28, 28),
        latent_dim: int = 4,
        channels: Sequence[int] = (32, 64),
        likelihood: str = "normal_shared_scale",
        beta: float = 1.0,
        activation: str = "relu",
        grey_levels: int | None = None,
    ) -> None:
        super().__init__(
            x_shape,
            latent_dim,
            (),
            likelihood,
            beta=beta,
            activation=activation,
            grey_levels=grey_levels,
            channels=channels,
        )
        self.num_halvings = len(channels)
        self.register_buffer("zero", torch.zeros(()), persistent=False)

    def make_networks(
        self, latent_dim: int, widths: Sequence[int], activation: str, channels: Sequence[int]
    ) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder, between images and grids; no hidden layers."""
        halvings(self.x_shape[1:], len(channels))  # refuses images that are too small
        image_channels, outputs = self.x_shape[0], self.likelihood.num_outputs
        return (
            GridEncoder(image_channels, channels, 2 * latent_dim, activation),
            GridDecoder(latent_dim, channels[::-1], image_channels, outputs, activation),
        )

    def prior(self, size: Sequence[int] | None = None) -> dist.TorchDistribution:
        """p(z) of images of this size (H, W), event shape (D, h, w); of training's by default."""
        grid = halvings(self.x_shape[1:] if size is None else size, self.num_halvings)[-1]
        shape = (self.family.latent_dim, *grid)
        return dist.Normal(self.zero, torch.ones_like(self.zero)).expand(shape).to_event(3)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """q(z | x) for x (B, C, H, W): batch shape (B,), event shape (D, h, w)."""
        return diagonal_normal(self.encoder(x), event_dim=3)

    def decode(self, z: Tensor, size: Sequence[int] | None = None) -> dist.TorchDistribution:
        """p(x | z) for z (..., D, h, w).

        Args:
            z: grids.
            size: (H, W) of the image; by default that of training where its grid is z's, else
                the smallest with that grid.
        """
        height, width = self._size_of(z) if size is None else size
        likelihood = self.likelihood.resized((self.x_shape[0], height, width))
        return likelihood(self.decoder(z, (height, width)))

    def _size_of(self, z: Tensor) -> tuple[int, int]:
        grid, (height, width) = tuple(z.shape[-2:]), self.x_shape[1:]
        if grid == halvings((height, width), self.num_halvings)[-1]:
            return height, width
        return grid[0] << self.num_halvings, grid[1] << self.num_halvings

    @pyro_method
    def model(self, x: Tensor | None = None, *, size: int = 1) -> Tensor:
        """p(x, z); without data, ``size`` draws from the prior predictive."""
        image = self.x_shape[1:] if x is None else x.shape[-2:]
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            with self.rate_weight():
                z = pyro.sample("z", self.prior(image))  # (B, D, h, w)
            return pyro.sample("x", self.decode(z, image), obs=x)  # (B, C, H, W)
