"""Programs with a known latent space. Shapes: B data, D latent, C H W image."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, pyro_method
from torch import nn


class LinearImages(nn.Module):
    """x | z ~ N(Wz, 0.1²) on images of few pixels, q a point-like normal at W⁺x.

    Every walk in the latent space is known: codes and images are linear in each other.
    """

    def __init__(self, latent_dim: int = 2, side: int = 3, prior=None):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        weight = torch.randn(side * side, latent_dim, generator=generator) / 4
        self.register_buffer("weight", weight)
        self.register_buffer("inverse", torch.linalg.pinv(weight))
        self.side, self.latent_dim = side, latent_dim
        self.make_prior = prior or (lambda: dist.Normal(torch.zeros(latent_dim), 1.0).to_event(1))
        self.unused = nn.Parameter(torch.zeros(()))

    def mean(self, z):
        return (z @ self.weight.T).unflatten(-1, (1, self.side, self.side))

    def code(self, x):
        return x.flatten(1) @ self.inverse.T

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", self.make_prior())
            return pyro.sample("x", dist.Normal(self.mean(z), 0.1).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.code(x), 0.01).to_event(1))


class ByClass(LinearImages):
    """The same with x | z, y ~ N(Wz + y, 0.1²) and z | y ~ N(y, 1): conditional on labels."""

    def model(self, x=None, y=None, *, size=1):
        size = size if x is None else len(x)
        y = torch.zeros(size) if y is None else y
        with pyro.plate("data", size, dim=-1):
            loc = y.float().unsqueeze(-1).expand(size, self.latent_dim)
            z = pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))
            loc = self.mean(z) + y.float().reshape(-1, 1, 1, 1)
            return pyro.sample("x", dist.Normal(loc, 0.1).to_event(3), obs=x)

    def guide(self, x, y):
        with pyro.plate("data", len(x), dim=-1):
            code = self.code(x - y.float().reshape(-1, 1, 1, 1))
            pyro.sample("z", dist.Normal(code, 0.01).to_event(1))


class TwoLevels(PyroModule):
    """top ~ N(0, I₂), z | top ~ N(A top, I₃), bit ~ Bernoulli(½), x | z, bit: three latents."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(9, 3), nn.Linear(3, 9)
        self.link = nn.Linear(2, 3)

    @pyro_method
    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            top = pyro.sample("top", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            z = pyro.sample("z", dist.Normal(self.link(top), 1.0).to_event(1))
            bit = pyro.sample("bit", dist.Bernoulli(torch.tensor(0.5)))
            loc = (self.down(z) + bit.unsqueeze(-1)).unflatten(-1, (1, 3, 3))
            return pyro.sample("x", dist.Normal(loc, 0.1).to_event(3), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = self.up(x.flatten(1))
            pyro.sample("top", dist.Normal(z[..., :2], 0.1).to_event(1))
            pyro.sample("z", dist.Normal(z, 0.1).to_event(1))
            pyro.sample("bit", dist.Bernoulli(logits=x.mean((1, 2, 3))))
