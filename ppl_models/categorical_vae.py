"""The VAE with discrete latents that needs no codebook: categorical variables, each with its odds.

Generative story, for each datum in the plate ``data``:

    z_n ~ Categorical(1/K, ..., 1/K)    site ``z``, (N, K): N one-hot vectors
    x ~ likelihood(decoder(z))          site ``x``, (C, H, W)

and the guide, which draws, and knows the odds of what it draws:

    z_n ~ Categorical(logits_n(x))      one encoder for all data

A one-hot draw has no gradient. Where ``vqvae.py`` takes the nearest code and hands the decoder's
gradient straight through, the ELBO of this program has a gradient that can be estimated:
by draws made continuous (``estimator="gumbel_softmax"``; little variance, some bias), or by the
score function with other draws for a baseline (``"leave_one_out"``, two particles or more; no
bias). ``docs/estimators.md`` tells of all.

Shapes: B data, N num_latents, K num_states, C H W image.

References:
    Jang, Gu, Poole: Categorical Reparameterization with Gumbel-Softmax, 2017, arXiv:1611.01144.
    Maddison, Mnih, Teh: The Concrete Distribution, 2017, arXiv:1611.00712.
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
from ppl_models.likelihoods import make_likelihood
from ppl_models.nets import mlp


class CategoricalVAE(PyroModule):
    """A VAE whose latents are categorical variables, with fully connected networks.

    Args:
        x_shape: shape of one datum.
        num_latents: N.
        num_states: K, of each.
        hidden_dims: widths of the encoder's hidden layers; the decoder mirrors them.
        likelihood: a name of ``LIKELIHOODS``.
        activation: between layers.
        grey_levels: of the data, for likelihoods of levels; 256 when left out.
    """

    no_odds: Tensor

    def __init__(
        self,
        x_shape: Sequence[int] = (1, 28, 28),
        num_latents: int = 20,
        num_states: int = 10,
        hidden_dims: Sequence[int] = (400,),
        likelihood: str = "normal_shared_scale",
        activation: str = "relu",
        grey_levels: int | None = None,
    ) -> None:
        super().__init__()
        if num_latents < 1 or num_states < 2:
            raise ProgramError(
                "expected one latent or more of two states or more, got "
                f"num_latents={num_latents}, num_states={num_states}"
            )
        self.x_shape = tuple(x_shape)
        self.likelihood = make_likelihood(likelihood, x_shape, grey_levels)
        pixels, outputs = math.prod(self.x_shape), self.likelihood.output_shape.numel()
        states = num_latents * num_states
        self.encoder = mlp(pixels, hidden_dims, states, activation)
        self.decoder = mlp(states, hidden_dims[::-1], outputs, activation)
        self.register_buffer("no_odds", torch.zeros(num_latents, num_states), persistent=False)

    def prior(self) -> dist.TorchDistribution:
        """p(z), event shape (N, K): all states alike."""
        return dist.OneHotCategorical(logits=self.no_odds).to_event(1)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """q(z | x) for x (B, C, H, W): batch shape (B,), event shape (N, K)."""
        logits = self.encoder(x.flatten(-len(self.x_shape))).unflatten(-1, self.no_odds.shape)
        return dist.OneHotCategorical(logits=logits).to_event(1)

    def decode(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z) for z (..., N, K): batch shape (...), event shape (C, H, W)."""
        outputs = self.decoder(z.flatten(-2))
        return self.likelihood(outputs.unflatten(-1, self.likelihood.output_shape))

    @pyro_method
    def model(self, x: Tensor | None = None, *, size: int = 1) -> Tensor:
        """p(x, z); without data, ``size`` draws from the prior predictive."""
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", self.prior())  # (B, N, K)
            return pyro.sample("x", self.decode(z), obs=x)  # (B, C, H, W)

    @pyro_method
    def guide(self, x: Tensor) -> Tensor:
        """q(z | x)."""
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.posterior(x))  # (B, N, K)
