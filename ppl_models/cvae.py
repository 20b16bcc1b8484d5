"""The class-conditional variational autoencoder: images of a class that is asked for.

Generative story, given a label y = 0, ..., Y − 1 for each datum in the plate ``data``:

    z ~ Normal(0, I)                    site ``z``, (D,): what the label does not tell
    x ~ likelihood(decoder(z, y))       site ``x``, (C, H, W): the image

or, with ``prior="learned"``, z ~ Normal(loc_y, scale_y), a prior of its own for every class. The
guide reads the code off the image, knowing the label:

    z ~ Normal(loc(x, y), scale(x, y))  one encoder for all data, or a richer family

The label is an input, no latent: the ELBO is a bound on log p(x | y). Where no label is given, when
drawing from the prior predictive, it is drawn:

    y ~ Categorical(1/Y)                site ``y``, only there

Shapes: B data, D latent, Y classes, C H W image.

References:
    Sohn, Lee, Yan: Learning Structured Output Representation using Deep Conditional Generative
    Models, NeurIPS 2015.
    Kingma, Rezende, Mohamed, Welling: Semi-supervised Learning with Deep Generative Models, 2014,
    arXiv:1406.5298, model M2 with its labels given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppl_models.errors import ProgramError, UnknownNameError
from ppl_models.labels import beside, one_hot
from ppl_models.latent_priors import StandardNormal
from ppl_models.likelihoods import make_likelihood
from ppl_models.nets import mlp
from ppl_models.posteriors import diagonal_normal, make_posterior

PRIORS = ("standard_normal", "learned")
"""p(z | y) by the name that the model takes."""


class CVAE(PyroModule):
    """A VAE whose networks know the label.

    Args:
        x_shape: shape of one datum.
        num_classes: Y.
        latent_dim: D, the size of the code.
        hidden_dims: widths of the encoder's hidden layers; the decoder mirrors them. With one layer
            the label can hardly change what z draws.
        likelihood: a name of ``LIKELIHOODS``.
        posterior: family of q(z | x, y): ``diagonal``, ``full_covariance``, ``flow``.
        prior: p(z | y): ``standard_normal``, the same for all, or ``learned``, one a class.
        activation: between layers.
        grey_levels: of the data, for likelihoods of levels; 256 when left out.
    """

    class_weights: Tensor

    def __init__(
        self,
        x_shape: Sequence[int] = (1, 28, 28),
        num_classes: int = 10,
        latent_dim: int = 10,
        hidden_dims: Sequence[int] = (400, 400),
        likelihood: str = "normal_shared_scale",
        posterior: str = "diagonal",
        prior: str = "standard_normal",
        activation: str = "relu",
        grey_levels: int | None = None,
    ) -> None:
        super().__init__()
        if prior not in PRIORS:
            raise UnknownNameError("prior p(z | y)", prior, PRIORS)
        if num_classes < 1:
            raise ProgramError(f"num_classes must be at least 1, got {num_classes}")
        self.x_shape = tuple(x_shape)
        self.num_classes = num_classes
        self.likelihood = make_likelihood(likelihood, x_shape, grey_levels)
        self.family = make_posterior(posterior, latent_dim)
        inputs, outputs = math.prod(x_shape), self.likelihood.output_shape.numel()
        self.encoder = mlp(inputs + num_classes, hidden_dims, self.family.num_outputs, activation)
        self.decoder = mlp(latent_dim + num_classes, hidden_dims[::-1], outputs, activation)
        self.standard_normal = StandardNormal(latent_dim)
        self.class_prior = nn.Linear(num_classes, 2 * latent_dim) if prior == "learned" else None
        self.register_buffer("class_weights", torch.ones(num_classes), persistent=False)

    def prior(self, y: Tensor) -> dist.TorchDistribution:
        """p(z | y) for labels (B,): event shape (D,); batch shape () if it is one for all."""
        if self.class_prior is None:
            return self.standard_normal()
        return diagonal_normal(self.class_prior(self._indicators(y)))

    def posterior(self, x: Tensor, y: Tensor) -> dist.TorchDistribution:
        """q(z | x, y) for x (B, C, H, W), y (B,): batch shape (B,), event shape (D,)."""
        pixels = x.flatten(-len(self.x_shape))
        return self.family(self.encoder(beside(pixels, self._indicators(y))))

    def decode(self, z: Tensor, y: Tensor) -> dist.TorchDistribution:
        """p(x | z, y) for z (..., B, D), y (B,): event shape (C, H, W)."""
        outputs = self.decoder(beside(z, self._indicators(y)))
        return self.likelihood(outputs.unflatten(-1, self.likelihood.output_shape))

    def _indicators(self, y: Tensor) -> Tensor:
        return one_hot(y, self.num_classes, like=self.class_weights)

    @pyro_method
    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, size: int = 1) -> Tensor:
        """p(x, z | y); without data, draws of the labels' images, or ``size`` of any class.

        Raises:
            ProgramError: images without labels.
        """
        if y is None and x is not None:
            raise ProgramError("images without labels: a conditional program takes x and y")
        given = x if x is not None else y
        with pyro.plate("data", size if given is None else len(given), dim=-1):
            if y is None:
                y = pyro.sample("y", dist.Categorical(self.class_weights))  # (B,)
            z = pyro.sample("z", self.prior(y))  # (B, D)
            return pyro.sample("x", self.decode(z, y), obs=x)  # (B, C, H, W)

    @pyro_method
    def guide(self, x: Tensor, y: Tensor) -> Tensor:
        """q(z | x, y)."""
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", self.posterior(x, y))  # (B, D)
