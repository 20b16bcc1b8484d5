"""Image completion by a conditional VAE: some quadrants are seen, the others are drawn.

Given the seen quadrants c of each datum in the plate ``data``:

    guess = baseline(c)                          logits of all pixels, one guess for each c
    z ~ Normal(loc(c, guess), scale(c, guess))   site ``z``, (D,): which of the many completions
    x ~ likelihood(guess + decoder(z, c))        site ``x``, (C, H, W): hidden pixels alone

The guide sees the whole image: z ~ Normal(loc(x), scale(x)). Seen pixels are inputs: they add
nothing to any density, and the ELBO is a bound on log p(hidden | seen), the negative conditional
log-likelihood of the literature; its K-particle bound with the guide's draws is the estimate by
importance sampling.

:class:`CompletionBaseline` is the network without latents: one guess for each c.

Quadrants are seen in this order: bottom left, top left, top right.

Shapes: B data, D latent, C H W image.

References:
    Sohn, Lee, Yan: Learning Structured Output Representation using Deep Conditional Generative
    Models, NeurIPS 2015, section 5.1. The guess feeds the prior network there too ("recurrent").
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor

from ppl_models.distributions import Completed
from ppl_models.errors import ProgramError
from ppl_models.labels import beside
from ppl_models.likelihoods import make_likelihood
from ppl_models.nets import mlp
from ppl_models.posteriors import diagonal_normal


class CompletionBaseline(PyroModule):
    """Hidden pixels by one guess from the seen ones: x ~ likelihood(baseline(c)), no latents.

    Args:
        x_shape: (C, H, W).
        num_quadrants: how many are seen: 1, 2 or 3.
        hidden_dims: of the network.
        likelihood: a name of ``LIKELIHOODS`` with independent pixels.
    """

    hidden: Tensor
    seen: Tensor

    def __init__(
        self,
        x_shape: Sequence[int] = (1, 28, 28),
        num_quadrants: int = 1,
        hidden_dims: Sequence[int] = (500, 500),
        likelihood: str = "bernoulli",
    ) -> None:
        super().__init__()
        self.likelihood = make_likelihood(likelihood, x_shape)
        hidden = hidden_quadrants(x_shape, num_quadrants)
        self.register_buffer("hidden", hidden, persistent=False)
        seen = (~hidden).flatten().nonzero().squeeze(1)
        self.register_buffer("seen", seen, persistent=False)
        outputs = self.likelihood.output_shape.numel()
        self.baseline = mlp(len(seen), hidden_dims, outputs)

    def context(self, x: Tensor) -> Tensor:
        """The seen pixels c of images (..., C, H, W), (..., number of them)."""
        return x.flatten(-3).index_select(-1, self.seen)

    def images(self, outputs: Tensor, x: Tensor) -> dist.TorchDistribution:
        """The distribution of images with x's seen pixels, from network outputs."""
        shaped = outputs.unflatten(-1, self.likelihood.output_shape)
        return Completed(self.likelihood(shaped), self.hidden, x)

    def blank(self, size: int) -> Tensor:
        """Black images, for draws without data."""
        like = next(self.baseline.parameters())
        return like.new_zeros(size, *self.likelihood.event_shape)

    @pyro_method
    def model(self, x: Tensor | None = None, *, size: int = 1) -> Tensor:
        """p(hidden | seen); without data, of black quadrants."""
        given = self.blank(size) if x is None else x
        with pyro.plate("data", len(given), dim=-1):
            guess = self.baseline(self.context(given))
            return pyro.sample("x", self.images(guess, given), obs=x)  # (B, C, H, W)

    def guide(self, x: Tensor) -> None:
        """Nothing is latent."""


class CompletionCVAE(CompletionBaseline):
    """Hidden pixels by the guess and a code.

    Args:
        x_shape: (C, H, W).
        num_quadrants: how many are seen: 1, 2 or 3.
        latent_dim: D.
        hidden_dims: of every network.
        likelihood: a name of ``LIKELIHOODS`` with independent pixels.
    """

    def __init__(
        self,
        x_shape: Sequence[int] = (1, 28, 28),
        num_quadrants: int = 1,
        latent_dim: int = 50,
        hidden_dims: Sequence[int] = (500, 500),
        likelihood: str = "bernoulli",
    ) -> None:
        super().__init__(x_shape, num_quadrants, hidden_dims, likelihood)
        pixels, outputs = math.prod(x_shape), self.likelihood.output_shape.numel()
        context = len(self.seen)
        self.prior_net = mlp(context + outputs, hidden_dims, 2 * latent_dim)
        self.encoder = mlp(pixels, hidden_dims, 2 * latent_dim)
        self.decoder = mlp(latent_dim + context, hidden_dims[::-1], outputs)

    def prior(self, x: Tensor) -> dist.TorchDistribution:
        """p(z | seen pixels of x): batch shape (B,), event shape (D,)."""
        seen = self.context(x)
        return diagonal_normal(self.prior_net(beside(seen, self.baseline(seen).sigmoid())))

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """q(z | x): batch shape (B,), event shape (D,)."""
        return diagonal_normal(self.encoder(x.flatten(-3)))

    def decode(self, z: Tensor, x: Tensor) -> dist.TorchDistribution:
        """p(x | z, seen pixels of x) for z (..., B, D): event shape (C, H, W)."""
        seen = self.context(x)
        return self.images(self.baseline(seen) + self.decoder(beside(z, seen)), x)

    def complete(self, x: Tensor, num: int = 1) -> Tensor:
        """Completions of images: means of p(x | z, seen) for z ~ p(z | seen).

        Args:
            x: (B, C, H, W), of which the seen quadrants are read.
            num: completions of each.

        Returns:
            (num, B, C, H, W).
        """
        return self.decode(self.prior(x).sample((num,)), x).mean

    @pyro_method
    def model(self, x: Tensor | None = None, *, size: int = 1) -> Tensor:
        """p(hidden, z | seen); without data, of black quadrants."""
        given = self.blank(size) if x is None else x
        with pyro.plate("data", len(given), dim=-1):
            z = pyro.sample("z", self.prior(given))  # (B, D)
            return pyro.sample("x", self.decode(z, given), obs=x)  # (B, C, H, W)

    @pyro_method
    def guide(self, x: Tensor) -> Tensor:
        """q(z | x)."""
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.posterior(x))  # (B, D)


def hidden_quadrants(x_shape: Sequence[int], num_seen: int) -> Tensor:
    """The mask of what is hidden, (C, H, W), where so many quadrants are seen.

    Raises:
        ProgramError: not 1, 2 or 3 of them, or data that are no images.
    """
    if num_seen not in (1, 2, 3):
        raise ProgramError(f"num_quadrants must be 1, 2 or 3, got {num_seen}")
    if len(x_shape) != 3 or min(x_shape[1:]) < 2:
        raise ProgramError(f"quadrants are of images (C, H, W), got {tuple(x_shape)}")
    middle, centre = x_shape[1] // 2, x_shape[2] // 2
    hidden = torch.ones(tuple(x_shape), dtype=torch.bool)
    bottom, top = slice(middle, None), slice(None, middle)
    left, right = slice(None, centre), slice(centre, None)
    for rows, columns in ((bottom, left), (top, left), (top, right))[:num_seen]:
        hidden[:, rows, columns] = False
    return hidden
