"""Conjugate programs whose posteriors are known, with guides as good or as bad as asked."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models import Program


class Conjugate(nn.Module):
    """z ~ N(0, 1), x | z ~ N(z, s²); the posterior is N(x/(1 + s²), s²/(1 + s²)).

    The guide has its scale times ``width``, and its mean moved by ``shift`` of its scales.
    """

    def __init__(self, width: float = 1.0, shift: float = 0.0, s: float = 0.7):
        super().__init__()
        self.s, self.shift = s, shift
        self.scale = s / math.sqrt(1 + s**2)
        self.width = nn.Parameter(torch.tensor(width))

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.width), 1.0))
            return pyro.sample("x", dist.Normal(z, self.s), obs=x)

    def guide(self, x):
        loc = x / (1 + self.s**2) + self.shift * self.scale
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, self.scale * self.width))

    def log_evidence(self, x: Tensor) -> Tensor:
        return dist.Normal(0.0, math.sqrt(1 + self.s**2)).log_prob(x)


class SharedMean(nn.Module):
    """μ ~ N(0, 1), x_n | μ ~ N(μ, 1); the posterior of μ is N(Σx/(1 + N), 1/(1 + N)).

    With ``local``, every datum has a z_n ~ N(μ, 1) before x_n ~ N(z_n, 1), whose posterior given μ
    is N((μ + x_n)/2, ½). The guide has the scales times ``width``; its mean is moved by ``shift``
    of its scale.
    """

    def __init__(self, x: Tensor, width: float = 1.0, shift: float = 0.0, *, local: bool = False):
        super().__init__()
        self.noise = 2.0 if local else 1.0
        precision = 1 + len(x) / self.noise
        scale = 1 / math.sqrt(precision)
        loc = float(x.sum()) / self.noise / precision + shift * scale
        self.loc = nn.Parameter(torch.tensor(loc))
        self.scale, self.width, self.local = scale, width, local

    def model(self, x=None, *, size=1, num_data=None):
        rows = size if x is None else len(x)
        mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
        with pyro.plate("data", num_data or rows, subsample=torch.arange(rows), dim=-1):
            loc = pyro.sample("z", dist.Normal(mu, 1.0)) if self.local else mu
            return pyro.sample("x", dist.Normal(loc, 1.0), obs=x)

    def guide(self, x):
        mu = pyro.sample("mu", dist.Normal(self.loc, self.scale * self.width))
        if self.local:
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal((mu + x) / 2, self.width * math.sqrt(0.5)))

    def log_evidence(self, x: Tensor) -> Tensor:
        """Log p(x_1 ... x_N)."""
        cov = self.noise * torch.eye(len(x)) + 1.0
        return dist.MultivariateNormal(torch.zeros(len(x)), cov).log_prob(x)

    def given_all(self, x: Tensor) -> Tensor:
        """Log p(x_n | all data, it included), (N,)."""
        var = 1 / (1 + len(x) / self.noise)
        return dist.Normal(var * x.sum() / self.noise, math.sqrt(self.noise + var)).log_prob(x)

    def leave_one_out(self, x: Tensor) -> Tensor:
        """Log p(x_n | all others), (N,)."""
        var = 1 / (1 + (len(x) - 1) / self.noise)
        loc = var * (x.sum() - x) / self.noise
        return dist.Normal(loc, math.sqrt(self.noise + var)).log_prob(x)


class TwoCodes(nn.Module):
    """z ~ N(0, I) with 3 dimensions, w ~ N(0, 1), x | z ~ N(z_0, ½²): the rest is unused."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor([math.sqrt(0.2), 1.0, 1.0]))

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("w", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z[..., 0], 0.5), obs=x)

    def guide(self, x):
        loc = torch.stack([0.8 * x, torch.zeros_like(x), torch.zeros_like(x)], -1)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, self.scale).to_event(1))
            pyro.sample("w", dist.Normal(0.0, 1.0))


def normal_data(size: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    return scale * torch.randn(size, generator=torch.Generator().manual_seed(seed))


def rows_of_parameters() -> Program:
    """z_n ~ N(0, 1), x_n ~ N(z_n, 1), and a guide with a ``pyro.param`` row for every datum."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        loc = pyro.param("loc", lambda: x / 2)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(loc, 0.5**0.5))

    return Program(model, guide)
