"""The variational autoencoder.

Generative story, for each datum in the plate ``data``:

    z ~ Normal(0, I)                    site ``z``, (D,): the image's code
    x ~ likelihood(decoder(z))          site ``x``, (C, H, W): the image

with the decoder a network and the likelihood Normal with unit variance (the lecture's),
Bernoulli, or Normal with a learned variance. The guide reads the code off the image:

    z ~ Normal(loc(x), scale(x))        one encoder for all data (amortized), diagonal

With the Normal likelihood of unit variance the negative ELBO is the lecture's loss,
½‖x − x̂‖² + KL(q(z|x) ‖ p(z)), plus the constant (d/2) log 2π.

Shapes: B data, D latent, C H W image.

References:
    Kingma, Welling: Auto-Encoding Variational Bayes, 2014, arXiv:1312.6114.
    Rezende, Mohamed, Wierstra: Stochastic Backpropagation and Approximate Inference in
    Deep Generative Models, 2014, arXiv:1401.4082.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor

from ppl_models.errors import ProgramError
from ppl_models.likelihoods import full_precision, make_likelihood, positive
from ppl_models.nets import mlp


class VAE(PyroModule):
    """A VAE with fully connected encoder and decoder.

    Args:
        x_shape: shape of one datum.
        latent_dim: D, the size of the code.
        hidden_dims: widths of the encoder's hidden layers; the decoder mirrors them.
        likelihood: ``normal`` (unit variance, the lecture's), ``normal_shared_scale`` (one learned
            scale), ``normal_pixel_scale`` (one a pixel, from the decoder) or ``bernoulli``.
    """

    prior_loc: Tensor
    prior_scale: Tensor

    def __init__(
        self,
        x_shape: Sequence[int] = (1, 28, 28),
        latent_dim: int = 20,
        hidden_dims: Sequence[int] = (400,),
        likelihood: str = "normal_shared_scale",
    ) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ProgramError(f"latent_dim must be at least 1, got {latent_dim}")
        self.x_shape = tuple(x_shape)
        self.likelihood = make_likelihood(likelihood, x_shape)
        self.encoder = mlp(math.prod(x_shape), hidden_dims, 2 * latent_dim)
        self.decoder = mlp(latent_dim, hidden_dims[::-1], self.likelihood.output_shape.numel())
        self.register_buffer("prior_loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("prior_scale", torch.ones(latent_dim), persistent=False)

    def prior(self) -> dist.TorchDistribution:
        """p(z), event shape (D,)."""
        return dist.Normal(self.prior_loc, self.prior_scale).to_event(1)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """q(z | x) for x (B, C, H, W): batch shape (B,), event shape (D,)."""
        code = full_precision(self.encoder(x.flatten(-len(self.x_shape))))
        loc, raw_scale = code.chunk(2, dim=-1)  # (B, D) each
        return dist.Normal(loc, positive(raw_scale)).to_event(1)

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for z (..., D): batch shape (...), event shape (C, H, W)."""
        outputs = self.decoder(z).unflatten(-1, self.likelihood.output_shape)
        return self.likelihood(outputs)

    @pyro_method
    def model(self, x: Tensor | None = None, *, size: int = 1) -> Tensor:
        """p(x, z); without data, ``size`` draws from the prior predictive."""
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", self.prior())  # (B, D)
            return pyro.sample("x", self.decode(z), obs=x)  # (B, C, H, W)

    @pyro_method
    def guide(self, x: Tensor) -> Tensor:
        """q(z | x)."""
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.posterior(x))  # (B, D)
