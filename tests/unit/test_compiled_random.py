"""Random small programs: the traced step gives what the eager one gives, step after step."""

from __future__ import annotations

import random
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import nn
from unit.test_compiled import step_of

from inference.elbo import make_estimator
from inference.step_graph import trace_step

KINDS = ("normal", "lognormal", "vector", "bernoulli", "one hot")


class RandomProgram(nn.Module):
    """A chain of one to three latents of random kinds, perhaps a global one, a scale, a mask."""

    def __init__(self, seed: int):
        super().__init__()
        dice = random.Random(seed)
        self.kinds = [dice.choice(KINDS) for _ in range(dice.randint(1, 3))]
        self.has_global = dice.random() < 0.3
        self.scale = dice.choice([1.0, 0.5])
        self.masked = dice.random() < 0.3
        self.continuous = not {"bernoulli", "one hot"} & set(self.kinds)
        self.prior = nn.ParameterList(torch.randn(3) * 0.3 for _ in self.kinds)
        self.posterior = nn.ParameterList(torch.randn(3) * 0.3 for _ in self.kinds)
        self.top = nn.Parameter(torch.tensor(0.2), requires_grad=self.has_global)
        self.weights = nn.Parameter(torch.randn(3, 3) * 0.5)

    def latent(self, kind, raw):
        if kind == "normal":
            return dist.Normal(raw[..., 0], 0.3 + raw[..., 1].exp())
        if kind == "lognormal":
            return dist.LogNormal(raw[..., 0], 0.3 + raw[..., 1].sigmoid())
        if kind == "vector":
            return dist.Normal(raw, 0.7).to_event(1)
        if kind == "bernoulli":
            return dist.Bernoulli(logits=raw).to_event(1)
        return dist.OneHotCategorical(logits=raw)

    def chain(self, parameters, top, x):
        carried = top
        for i, (kind, raw) in enumerate(zip(self.kinds, parameters, strict=True)):
            shifted = raw + 0.1 * carried[..., None] * torch.ones(len(x), 3)
            z = pyro.sample(f"z{i}", self.latent(kind, shifted))
            carried = z.sum(-1) if kind in ("vector", "bernoulli", "one hot") else z
        return carried

    def surroundings(self, x):
        masked = poutine.mask(mask=x[:, 0] > -0.5) if self.masked else nullcontext()
        return poutine.scale(scale=self.scale), masked

    def global_latent(self, loc):
        if not self.has_global:
            return torch.zeros(())
        return pyro.sample("top", dist.Normal(loc, 1.0))

    def model(self, x):
        scale, masked = self.surroundings(x)
        with scale:
            top = self.global_latent(torch.zeros(()))
            with pyro.plate("data", len(x), dim=-1), masked:
                carried = self.chain(self.prior, top, x)
                loc = carried[..., None] * self.weights[0] + self.weights[1]
                pyro.sample("x", dist.Normal(loc, self.weights[2].exp()).to_event(1), obs=x)

    def guide(self, x):
        scale, masked = self.surroundings(x)
        with scale:
            top = self.global_latent(self.top)
            with pyro.plate("data", len(x), dim=-1), masked:
                self.chain(self.posterior, top + 0.3 * x.mean(-1), x)


def estimator_for(program: RandomProgram, seed: int):
    continuous = ("pathwise", "analytic_kl", "sticking_the_landing", "iwae")
    names = continuous if program.continuous else ("leave_one_out", "vimco", "decaying_average")
    return make_estimator(names[seed % len(names)], 2, vectorize_particles=seed % 2 == 0)


@pytest.mark.parametrize("seed", range(50))
def test_a_random_program_learns_the_same_from_its_graph(seed):
    """Three steps of gradient descent on shared random numbers, from the graph and eagerly."""
    torch.manual_seed(seed)
    program, x = RandomProgram(seed), torch.randn(5, 3)
    step = step_of(program, estimator_for(program, seed), x)
    inputs = step.compiled._up_to_date()
    traced, eager = trace_step(inputs, {"x": x}), inputs.step(["x"])
    trained = len(inputs.trained)
    for turn in range(3):
        flat = inputs.flat({"x": x})
        torch.manual_seed(turn)
        ours = traced.graph(*flat)
        torch.manual_seed(turn)
        with step.program.scope(), pyro.validation_enabled(False):
            theirs = eager(*flat)
        for a, b in zip(ours[: 1 + trained], theirs, strict=False):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        with torch.no_grad():
            for value, gradient in zip(inputs.trained.values(), ours[1:], strict=False):
                value.sub_(0.01 * gradient)
