"""Random small programs: a compiled run ends with the parameters of an eager one."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import dataclass

import pyro
import pyro.distributions as dist
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from pyro import poutine
from torch import nn

from inference import fit

CONTINUOUS = ("normal", "lognormal", "vector")
DISCRETE = ("bernoulli", "one hot")
ESTIMATORS = {
    "continuous": ("pathwise", "analytic_kl", "sticking_the_landing", "iwae"),
    "discrete": ("leave_one_out", "vimco", "decaying_average", "score_function"),
    "summed out": ("enumerate",),
}

ONE_BOUND = ("iwae", "vimco")
"""Estimators that refuse minibatches below a global latent."""


@dataclass(frozen=True)
class Recipe:
    """What a random program and its training are made of."""

    kinds: tuple[str, ...]
    summed_out: bool
    has_global: bool
    scale: float
    masked: bool
    layers: str
    estimator: str
    optimizer: str
    clip_grad_norm: float | None
    kl_warmup: float
    precision: str
    num_data: int
    seed: int


@st.composite
def recipes(draw, family: str) -> Recipe:
    kinds = CONTINUOUS if family != "discrete" else CONTINUOUS + DISCRETE
    chosen = draw(st.lists(st.sampled_from(kinds), min_size=1, max_size=3))
    if family == "discrete" and not set(chosen) & set(DISCRETE):
        chosen.append("bernoulli")
    estimator = draw(st.sampled_from(ESTIMATORS[family]))
    return Recipe(
        kinds=tuple(chosen),
        summed_out=family == "summed out",
        has_global=estimator not in ONE_BOUND and draw(st.booleans()),
        scale=draw(st.sampled_from([1.0, 0.5])),
        masked=draw(st.booleans()),
        layers=draw(st.sampled_from(["none", "linear", "batch norm", "dropout"])),
        estimator=estimator,
        optimizer=draw(st.sampled_from(["Adam", "AdamW", "SGD", "RMSprop"])),
        clip_grad_norm=draw(st.sampled_from([None, 0.5])),
        kl_warmup=0.0 if family == "summed out" else draw(st.sampled_from([0.0, 1.5])),
        # In float64 torch draws Bernoullis in an order that hangs on the layout of their logits.
        precision="32" if "bernoulli" in chosen else draw(st.sampled_from(["32", "64"])),
        num_data=draw(st.sampled_from([24, 26])),
        seed=draw(st.integers(0, 2**16)),
    )


def network(layers: str) -> nn.Module:
    last = {"batch norm": nn.BatchNorm1d(3), "dropout": nn.Dropout(0.4), "linear": nn.Tanh()}
    if layers not in last:
        return nn.Identity()
    # A bias before batch norm has no gradient but rounding errors, which RMSprop makes steps of.
    return nn.Sequential(nn.Linear(3, 3, bias=layers != "batch norm"), last[layers])


class RandomProgram(nn.Module):
    """A chain of latents of random kinds, in the data plate, perhaps below a global one."""

    def __init__(self, recipe: Recipe):
        super().__init__()
        self.recipe = recipe
        torch.manual_seed(recipe.seed)
        self.prior = nn.ParameterList(torch.randn(3) * 0.3 for _ in recipe.kinds)
        self.posterior = nn.ParameterList(torch.randn(3) * 0.3 for _ in recipe.kinds)
        self.top = nn.Parameter(torch.tensor(0.2), requires_grad=recipe.has_global)
        self.weights = nn.Parameter(torch.randn(3, 3) * 0.5)
        self.shifts = nn.Parameter(torch.randn(2, 3), requires_grad=recipe.summed_out)
        self.encoder = network(recipe.layers)

    def latent(self, kind, raw):
        if kind == "normal":
            return dist.Normal(raw[..., 0], 0.3 + raw[..., 1].sigmoid())
        if kind == "lognormal":
            return dist.LogNormal(raw[..., 0].tanh(), 0.1 + 0.3 * raw[..., 1].sigmoid())
        if kind == "vector":
            return dist.Normal(raw, 0.7).to_event(1)
        if kind == "bernoulli":
            return dist.Bernoulli(logits=raw).to_event(1)
        return dist.OneHotCategorical(logits=raw)

    def chain(self, parameters, start):
        carried = start
        for i, (kind, raw) in enumerate(zip(self.recipe.kinds, parameters, strict=True)):
            z = pyro.sample(f"z{i}", self.latent(kind, raw + 0.1 * carried[..., None]))
            carried = z if kind in ("normal", "lognormal") else z.sum(-1)
        return carried

    def surroundings(self, x):
        masked = poutine.mask(mask=x[:, 0] > -0.5) if self.recipe.masked else nullcontext()
        return poutine.scale(scale=self.recipe.scale), masked

    def global_latent(self, loc):
        if not self.recipe.has_global:
            return torch.zeros_like(loc)
        return pyro.sample("top", dist.Normal(loc, 1.0))

    def plate(self, x, num_data):
        return pyro.plate("data", num_data, subsample=torch.arange(len(x)), dim=-1)

    def model(self, x, *, num_data):
        scale, masked = self.surroundings(x)
        with scale:
            top = self.global_latent(x.new_zeros(()))
            with self.plate(x, num_data), masked:
                carried = self.chain(self.prior, top + x.new_zeros(len(x)))
                loc = carried[..., None] * self.weights[0] + self.weights[1]
                if self.recipe.summed_out:
                    coin = dist.Bernoulli(x.new_tensor(0.4))
                    c = pyro.sample("c", coin, infer={"enumerate": "parallel"})
                    loc = loc + self.shifts[c.long()]
                width = 0.2 + self.weights[2].exp()
                pyro.sample("x", dist.Normal(loc, width).to_event(1), obs=x)

    def guide(self, x, *, num_data):
        scale, masked = self.surroundings(x)
        with scale:
            top = self.global_latent(self.top)
            with self.plate(x, num_data), masked:
                self.chain(self.posterior, top + 0.3 * self.encoder(x).mean(-1))


def trained(recipe: Recipe, compile: bool) -> dict[str, torch.Tensor]:
    """Parameters and buffers after two epochs; the last batch may be a short one."""
    particles = 2 if recipe.estimator in ("iwae", "leave_one_out", "vimco") else 1
    fitted = fit(
        RandomProgram(recipe),
        {
            "x": torch.randn(
                recipe.num_data, 3, generator=torch.Generator().manual_seed(recipe.seed)
            )
        },
        estimator=recipe.estimator,
        num_particles=particles,
        optimizer=recipe.optimizer,
        learning_rate=0.01,
        clip_grad_norm=recipe.clip_grad_norm,
        kl_warmup=recipe.kl_warmup,
        epochs=2,
        batch_size=8,
        keep="last",
        seed=recipe.seed,
        precision=recipe.precision,
        compile=compile,
        progress=False,
    )
    return fitted.program.state_dict()


def training(family: str, runs: int):
    """A test of so many runs of the programs of a family."""

    @pytest.mark.slow
    @settings(
        max_examples=runs,
        derandomize=True,
        database=None,
        phases=[Phase.generate],  # a failure is told as it is: making it smaller takes an hour
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(recipe=recipes(family))
    def test(self, recipe, caplog):
        caplog.clear()
        ours, theirs = (trained(recipe, compile) for compile in (True, False))
        records = [r for r in caplog.records if r.name.startswith("inference")]
        said = [r.getMessage() for r in records if r.levelno >= logging.WARNING]
        assert not said, "training was not compiled to its end"
        # A rounding error in a gradient near zero is one in the direction of Adam's step (0.01).
        exact = {"rtol": 1e-3, "atol": 1e-4} if recipe.precision == "32" else {"rtol": 1e-9}
        for name, value in theirs.items():
            torch.testing.assert_close(ours[name], value, **({"atol": 1e-9} | exact), msg=name)

    return test


# Classes, so that processes share them. Fifty runs in all.
class TestContinuous:
    test_compiled_training_ends_where_eager_training_does = training("continuous", 20)


class TestDiscrete:
    test_compiled_training_ends_where_eager_training_does = training("discrete", 20)


class TestSummedOut:
    test_compiled_training_ends_where_eager_training_does = training("summed out", 10)
