"""The variational autoencoder.

Generative story, for each datum in the plate ``data``:

    z ~ Normal(0, I)                    site ``z``, (D,): the image's code
    x ~ likelihood(decoder(z))          site ``x``, (C, H, W): the image

with the decoder a network and the likelihood one of ``likelihoods.py``: Normal with unit variance
(the lecture's), Bernoulli, ... The prior may be learned instead (``latent_priors.py``). The guide
reads the code off the image:

    z ~ Normal(loc(x), scale(x))        one encoder for all data (amortized), diagonal

or a richer family (``posteriors.py``): full covariance, a normalizing flow.

With the Normal likelihood of unit variance the negative ELBO is the lecture's loss,
½‖x − x̂‖² + KL(q(z|x) ‖ p(z)), plus the constant (d/2) log 2π. ``beta`` weighs the KL term in
training; what is reported is the ELBO, whatever beta.

Shapes: B data, D latent, C H W image.

References:
    Kingma, Welling: Auto-Encoding Variational Bayes, 2014, arXiv:1312.6114.
    Rezende, Mohamed, Wierstra: Stochastic Backpropagation and Approximate Inference in
    Deep Generative Models, 2014, arXiv:1401.4082.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import pyro
import pyro.distributions as dist
from pyro import poutine
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppl_models.errors import ProgramError
from ppl_models.latent_priors import make_latent_prior
from ppl_models.likelihoods import make_likelihood
from ppl_models.nets import ConvDecoder, ConvEncoder, mlp
from ppl_models.posteriors import Point, make_posterior


class VAE(PyroModule):
    """A VAE with fully connected encoder and decoder, and convolutions before them if asked.

    Args:
        x_shape: shape of one datum.
        latent_dim: D, the size of the code.
        hidden_dims: widths of the encoder's hidden layers; the decoder mirrors them.
        likelihood: a name of ``LIKELIHOODS``: ``normal`` (unit variance, the lecture's),
            ``normal_shared_scale`` (one learned scale), ``bernoulli``, ...
        posterior: family of q(z | x): ``diagonal``, ``full_covariance``, ``flow``, or ``point``.
        prior: p(z): ``standard_normal``, or learned: ``mixture``, ``vamp``.
        prior_components: of a learned prior.
        beta: weight of the rate in training.
        activation: between layers: ``relu``, ``tanh``, ``silu``, ``elu``.
        grey_levels: of the data, for likelihoods of levels; 256 when left out.
        channels: of convolutions of the image before the hidden layers, after every halving; none
            when left out.
    """

    def __init__(
        self,
        x_shape: Sequence[int] = (1, 28, 28),
        latent_dim: int = 20,
        hidden_dims: Sequence[int] = (400,),
        likelihood: str = "normal_shared_scale",
        posterior: str = "diagonal",
        prior: str = "standard_normal",
        prior_components: int = 50,
        beta: float = 1.0,
        activation: str = "relu",
        grey_levels: int | None = None,
        channels: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if not beta > 0:
            raise ProgramError(
                f"beta must be positive, got {beta}; without a rate it is the model `autoencoder`"
            )
        self.x_shape = tuple(x_shape)
        self.beta = float(beta)
        self.likelihood = make_likelihood(likelihood, x_shape, grey_levels)
        self.family = make_posterior(posterior, latent_dim)
        self.latent_prior = make_latent_prior(
            prior, latent_dim, prior_components, self.x_shape, posterior
        )
        self.encoder, self.decoder = self.make_networks(
            latent_dim, hidden_dims, activation, channels
        )

    def make_networks(
        self, latent_dim: int, widths: Sequence[int], activation: str, channels: Sequence[int]
    ) -> tuple[nn.Module, nn.Module]:
        """Encoder and decoder, from vectors to vectors: flat x, z, flat outputs."""
        codes, maps = self.family.num_outputs, self.likelihood.num_outputs
        if channels:
            up, down = channels[::-1], widths[::-1]
            return (
                ConvEncoder(self.x_shape, channels, codes, activation, widths),
                ConvDecoder(latent_dim, up, self.x_shape, maps, activation, down),
            )
        pixels = math.prod(self.x_shape)
        return (
            mlp(pixels, widths, codes, activation),
            mlp(latent_dim, widths[::-1], maps * pixels, activation),
        )

    @property
    def deterministic_guide(self) -> bool:
        """Whether the guide is a point, so that its "ELBO" is no bound."""
        return isinstance(self.family, Point)

    def prior(self) -> dist.TorchDistribution:
        """p(z), event shape (D,)."""
        return self.latent_prior(self.posterior)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """q(z | x) for x (B, C, H, W): batch shape (B,), event shape (D,)."""
        return self.family(self.encoder(x.flatten(-len(self.x_shape))))

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for z (..., D): batch shape (...), event shape (C, H, W)."""
        return self.likelihood(self.decoder(z).unflatten(-1, self.likelihood.output_shape))

    def rate_weight(self) -> AbstractContextManager[object]:
        """What z stands in, in model and guide alike: the weight of the rate, in training alone."""
        return nullcontext() if self.beta == 1 else poutine.scale(scale=self.beta)

    @pyro_method
    def model(self, x: Tensor | None = None, *, size: int = 1) -> Tensor:
        """p(x, z); without data, ``size`` draws from the prior predictive."""
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            with self.rate_weight():
                z = pyro.sample("z", self.prior())  # (B, D)
            return pyro.sample("x", self.decode(z), obs=x)  # (B, C, H, W)

    @pyro_method
    def guide(self, x: Tensor) -> Tensor:
        """q(z | x)."""
        with pyro.plate("data", len(x), dim=-1), self.rate_weight():
            return pyro.sample("z", self.posterior(x))  # (B, D)
