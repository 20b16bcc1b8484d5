"""Small programs that tests share. Shapes: B data, D latent."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from inference import load_data
from inference.runs import build_for
from ppl_models import Program
from ppl_models.vae import VAE


def tiny_vae(likelihood: str = "bernoulli", latent_dim: int = 3) -> VAE:
    return VAE((1, 4, 4), latent_dim, (8,), likelihood)


def tiny_images(size: int = 60, *, binary: bool = True, seed: int = 0) -> Tensor:
    x = torch.rand(size, 1, 4, 4, generator=torch.Generator().manual_seed(seed))
    return (x > 0.6).float() if binary else x


def images_for(likelihood: str, size: int) -> Tensor:
    """Images that the likelihood of this name can give: bits, or bytes."""
    x = tiny_images(size, binary=likelihood == "bernoulli")
    return (x * 255).round() / 255


SMALL_CELLS = {
    "groups": (2, 1),
    "latent_channels": 2,
    "hidden_channels": 4,
    "cells": 1,
    "encoder_cells": 1,
}
SMALLER = {
    "hvae_mnist_small": SMALL_CELLS,
    "hvae_mnist": SMALL_CELLS,
    "hvae_cifar10": SMALL_CELLS,
    "nvae_faces": SMALL_CELLS | {"groups": (1, 1, 1)},
}
"""Arguments of presets that are deeper than a test has time for."""


OF_BITS = ("cvae_completion", "hvae_mnist_small", "hvae_mnist")
"""Programs with a Bernoulli likelihood by default."""


def of_the_catalog(name: str) -> tuple[Program, dict[str, Tensor]]:
    """A program of the catalog as it is made, or smaller, and a few data for it."""
    if name == "vqvae_prior":
        codes = {"grids": {"codes": (3, 4)}, "num_codes": 8}
        program = build_for(name, codes, load_data("digits").info)
        return program, {"codes": torch.arange(6 * 12).reshape(6, 3, 4) % 8}
    if "sketch" in name:
        drawings = load_data("doodles")
        return build_for(name, {}, drawings.info), next(iter(drawings.train.batches(4)))
    bits = "threshold" if name in OF_BITS else "none"
    data = load_data("digits", binarize=bits)
    return build_for(name, SMALLER.get(name, {}), data.info), next(iter(data.train.batches(6)))


class GaussianToy(nn.Module):
    """z ~ N(0, 1), x | z ~ N(z + b, s²), q = N(m, σ²), the same q for every datum.

    The evidence is log N(x; b, 1 + s²), the posterior N((x − b)/(1 + s²), s²/(1 + s²)).
    """

    def __init__(self, b: float = 0.3, s: float = 0.5, m: float = 0.2, log_sigma: float = -0.4):
        super().__init__()
        self.b = nn.Parameter(torch.tensor(b))
        self.m = nn.Parameter(torch.tensor(m))
        self.log_sigma = nn.Parameter(torch.tensor(log_sigma))
        self.s = s

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.b), 1.0))
            return pyro.sample("x", dist.Normal(z + self.b, self.s), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", dist.Normal(self.m, self.log_sigma.exp()))

    def log_evidence(self, x: Tensor) -> Tensor:
        return dist.Normal(self.b, math.sqrt(1 + self.s**2)).log_prob(x)


class LinearVAE(PyroModule):
    """x | z ~ N(Wz + μ, σ² I), q = N(V(x − μ), diag d): probabilistic PCA when it is trained."""

    def __init__(self, x_dim: int, latent_dim: int):
        super().__init__()
        self.decoder = nn.Linear(latent_dim, x_dim)
        self.encoder = nn.Linear(x_dim, latent_dim)
        self.log_sigma = nn.Parameter(torch.zeros(()))
        self.log_d = nn.Parameter(torch.zeros(latent_dim))
        self.latent_dim = latent_dim

    @pyro_method
    def model(self, x=None, *, size=1):
        zeros = torch.zeros_like(self.log_d)
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))
            loc = self.decoder(z)
            return pyro.sample("x", dist.Normal(loc, self.log_sigma.exp()).to_event(1), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x), (0.5 * self.log_d).exp()).to_event(1))

    def log_evidence(self, x: Tensor) -> Tensor:
        w, mean = self.decoder.weight, self.decoder.bias
        return dist.LowRankMultivariateNormal(
            mean, w, (2 * self.log_sigma).exp().expand(len(mean))
        ).log_prob(x)


class GlobalMean:
    """μ ~ N(0, 1) for all data, x | μ ~ N(μ, 1): a global latent and ``pyro.param``s."""

    def model(self, x=None, *, size=1, num_data=None):
        batch = size if x is None else len(x)
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", num_data or batch, subsample=torch.arange(batch), dim=-1):
            return pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(self, x):
        loc = pyro.param("loc", torch.tensor(0.0))
        scale = pyro.param("scale", torch.tensor(1.0), constraint=dist.constraints.positive)
        pyro.sample("mu", dist.Normal(loc, scale))


class WithoutLatents(nn.Module):
    """x ~ N(loc, 1): nothing is latent."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(self.loc, 1.0), obs=x)

    def guide(self, x): ...


class BernoulliToy(nn.Module):
    """b ~ Bernoulli(½), x | b ~ N(b, 1), q = Bernoulli(logit): a discrete latent."""

    def __init__(self):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(0.5))
        self.scale = nn.Parameter(torch.tensor(1.0))

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            b = pyro.sample("b", dist.Bernoulli(torch.full_like(self.logit, 0.5)))
            return pyro.sample("x", dist.Normal(b, self.scale.abs()), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("b", dist.Bernoulli(logits=self.logit))


class EnumeratedMixture(nn.Module):
    """c ~ Categorical(½, ½), x | c ~ N(locs[c], ½); c is enumerated, the guide is empty."""

    def __init__(self):
        super().__init__()
        self.locs = nn.Parameter(torch.tensor([-0.5, 0.5]))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            parallel = {"enumerate": "parallel"}
            c = pyro.sample("c", dist.Categorical(torch.ones(2) / 2), infer=parallel)
            pyro.sample("x", dist.Normal(self.locs[c], 0.5), obs=x)

    def guide(self, x):
        pass


class DiscreteVAE(PyroModule):
    """A VAE of tiny images with bits, or a one-hot vector, for latent."""

    def __init__(self, latent_dim: int = 3, *, one_hot: bool = False):
        super().__init__()
        self.prior = nn.Parameter(torch.zeros(latent_dim))
        self.decoder = nn.Linear(latent_dim, 16)
        self.encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, latent_dim))
        self.one_hot = one_hot

    def latent(self, logits: Tensor):
        if self.one_hot:
            return dist.OneHotCategorical(logits=logits)
        return dist.Bernoulli(logits=logits).to_event(1)

    @pyro_method
    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            b = pyro.sample("b", self.latent(self.prior))
            logits = self.decoder(b).unflatten(-1, (1, 4, 4))
            return pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("b", self.latent(self.encoder(x)))
