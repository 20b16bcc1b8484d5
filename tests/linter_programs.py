"""Programs that break one rule of the linter, or keep it. Shapes: B data."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from inspect import isfunction
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample, pyro_method
from torch import nn

from ppl_models import Program, auxiliary_loss


def within(name: str | None, size: int, dim: int = -1) -> Any:
    return nullcontext() if name is None else pyro.plate(name, size, dim=dim)


def toy(
    *,
    plate: str | None = "data",
    event: int = 0,
    extra: bool = False,
    guide_plate: str | None = None,
    guide_dim: int = -1,
    guide_name: str | None = "z",
    guide_obs: bool = False,
    x_name: str | None = "x",
    obs: bool = True,
    around_model: Any = None,
    around_guide: Any = None,
) -> Program:
    """z ~ N(0, 1), x ~ N(z, 1); each argument breaks a rule."""

    def model(x):
        if extra:
            with pyro.plate("others", len(x), dim=-1):
                pyro.sample("x2", dist.Normal(0.0, 1.0), obs=x)
        with within(plate, len(x)):
            with around_model or nullcontext():
                prior = dist.Normal(torch.zeros(len(x)), 1.0).to_event(event)
                z = pyro.sample("z", prior)
            if x_name is not None:
                fn = dist.Normal(z, 1.0).to_event(event)
                pyro.sample(x_name, fn, obs=x if obs else None)

    def guide(x):
        if guide_name is None:
            return
        with within(guide_plate or plate, len(x), guide_dim), around_guide or nullcontext():
            shape = (len(x),) if guide_dim == -1 else (len(x), 1)
            value = torch.zeros(shape) if guide_obs else None
            pyro.sample(guide_name, dist.Normal(torch.zeros(shape), 1.0).to_event(event), obs=value)

    return Program(model, guide)


def latent(
    prior: Any,
    posterior: Any,
    *,
    like: Callable[[Any], Any] | None = None,
    take: Callable[[Any], Any] = lambda z: z,
    also: str | None = None,
    net: nn.Module | None = None,
) -> Program:
    """A latent z with this prior and guide: distributions, or functions of x."""
    modules = {} if net is None else {"net": net}

    def model(x):
        with within("data", len(x)):
            z = take(pyro.sample("z", prior))
            z = z.sum(-1) if z.dim() > 1 else z
            fn = dist.Normal(z.float(), 1.0) if like is None else like(z)
            pyro.sample("x", fn, obs=x)

    def guide(x):
        if posterior is None:
            return
        with within("data", len(x)):
            pyro.sample("z", posterior(x) if isfunction(posterior) else posterior)
            if also is not None:
                pyro.sample(also, dist.Normal(0.0, 1.0))

    return Program(model, guide, **modules)


NORMAL = dist.Normal(0.0, 1.0)


def likelihood(like: Callable[[Any], Any]) -> Program:
    """z ~ N(0, 1) with this distribution of x."""
    return latent(NORMAL, NORMAL, like=like)


def joined(events: int) -> Program:
    """x ~ N(z, 1), an event of so many dimensions."""
    return likelihood(
        lambda z: dist.Normal(z[:, None, None, None], torch.ones(len(z), 1, 4, 4)).to_event(events)
    )


def failing(what: str, role: str = "model", like: Callable[[Any], Any] | None = None) -> Program:
    """Its model, or guide, raises an error."""
    whole = latent(NORMAL, NORMAL, like=like)

    def broken(x):
        raise AttributeError(what)

    return Program(broken, whole.guide) if role == "model" else Program(whole.model, broken)


def looped() -> Program:
    """A loop over the data."""

    def model(x):
        for i in pyro.plate("data", len(x)):
            z = pyro.sample(f"z_{i}", NORMAL)
            pyro.sample(f"x_{i}", dist.Normal(z, 1.0), obs=x[i])

    def guide(x):
        for i in pyro.plate("data", len(x)):
            pyro.sample(f"z_{i}", NORMAL)

    return Program(model, guide)


def global_mean(num_data: bool) -> Program:
    """A global latent, with or without the size of the whole data set."""

    def knowing(x, *, num_data=None):
        mu = pyro.sample("mu", NORMAL)
        with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x)), dim=-1):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def unknowing(x):
        mu = pyro.sample("mu", NORMAL)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    def guide(x):
        pyro.sample("mu", NORMAL)

    return Program(knowing if num_data else unknowing, guide)


class LocalAuto(nn.Module):
    """An automatic guide for a latent of each datum."""

    def __init__(self) -> None:
        super().__init__()
        self.guide = AutoNormal(self.model)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", NORMAL)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def with_loss(in_guide: bool) -> Program:
    """An auxiliary loss in the guide, which says so or does not."""
    whole = toy()

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", NORMAL)
            auxiliary_loss("penalty", x**2, in_guide=in_guide)

    return Program(whole.model, guide)


def changing(really: bool) -> Program:
    """A latent of every other run."""
    runs = []

    def model(x):
        runs.append(0)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", NORMAL)
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)
            if really and len(runs) % 2:
                pyro.sample("x2", dist.Normal(z, 1.0), obs=x + 1)

    return Program(model, toy().guide)


def foreign(registered: bool) -> Program:
    """A network in a closure."""
    decoder = nn.Linear(1, 1)

    def model(x):
        if registered:
            pyro.module("decoder", decoder)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", NORMAL)
            pyro.sample("x", dist.Normal(decoder(z[:, None])[:, 0], 1.0), obs=x)

    return Program(model, toy().guide)


class RandomWeights(PyroModule):
    """A random weight, read in a method that is a ``pyro_method``, or is not."""

    def __init__(self, decorated: bool) -> None:
        super().__init__()
        self.weight = PyroSample(dist.Normal(0.0, 1.0))
        self.model = self.decorated_model if decorated else self.plain_model

    def plain_model(self, x):
        weight = self.weight
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(weight, 1.0), obs=x)

    @pyro_method
    def decorated_model(self, x, *, num_data=None):
        weight = self.weight
        with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x)), dim=-1):
            pyro.sample("x", dist.Normal(weight, 1.0), obs=x)

    @pyro_method
    def guide(self, x):
        pyro.sample("weight", dist.Normal(0.0, 1.0))


def both_orders(*order: str) -> Program:
    """z -> w -> x in the model; the guide draws them in this order."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", NORMAL)
            w = pyro.sample("w", dist.Normal(z, 1.0))
            pyro.sample("x", dist.Normal(w, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            for name in order:
                pyro.sample(name, NORMAL)

    return Program(model, guide)


class Shy(dist.Normal):
    """A distribution that fails where it is asked for its support."""

    @property
    def support(self):
        raise RuntimeError("no support here")
