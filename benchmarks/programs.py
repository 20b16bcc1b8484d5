"""The networks that the benchmarks train, as Pyro programs and by hand."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.nn import functional as F


class PlainVAE(nn.Module):
    """The same networks, with the loss written out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
        self.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))

    def loss(self, x: Tensor) -> Tensor:
        """−ELBO per datum."""
        loc, raw = self.encoder(x.flatten(1)).chunk(2, dim=-1)
        scale = F.softplus(raw) + 1e-4
        z = loc + scale * torch.randn_like(loc)
        logits = self.decoder(z)
        distortion = F.binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="sum")
        kl = (0.5 * (loc.square() + scale.square() - 1) - scale.log()).sum()
        return (distortion + kl) / len(x)


class ConvVAE(nn.Module):
    """Two convolutions in, two out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 49, 40),
        )  # fmt: skip
        self.project = nn.Linear(20, 32 * 49)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1)
        )

    def model(self, x: Tensor) -> None:
        """Draw z, then the pixels."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(20), 1.0).to_event(1))
            logits = self.decoder(self.project(z).relu().unflatten(-1, (32, 7, 7)))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw z given the pixels."""
        with pyro.plate("data", len(x), dim=-1):
            loc, raw = self.encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw) + 1e-4).to_event(1))


class Mixture(nn.Module):
    """Twenty diagonal Gaussians over 64 dimensions; which one is summed out."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(20))
        self.locs = nn.Parameter(torch.randn(20, 64))
        self.log_scales = nn.Parameter(torch.zeros(20, 64))

    def model(self, x: Tensor) -> None:
        """Draw a component, then a datum from it."""
        with pyro.plate("data", len(x), dim=-1):
            component = dist.Categorical(logits=self.logits)
            c = pyro.sample("c", component, infer={"enumerate": "parallel"})
            fn = dist.Normal(self.locs[c], self.log_scales[c].exp()).to_event(1)
            pyro.sample("x", fn, obs=x)

    def guide(self, x: Tensor) -> None:
        """Nothing is left to draw."""
