"""Programs of more than one site: hierarchies, shared parameters, autoguides, dropout, branches.

A single comparison goes beyond 4 standard errors by luck with p = 6.3e-5; seeds are fixed.
"""

from __future__ import annotations

import math
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pytest
import torch
from elbo_helpers import (
    LUCK,
    BitCopies,
    Copies,
    GaussianCopies,
    TwoLayerCopies,
    affine,
    bits,
    bound,
    exact_gradients,
    gradients,
    make,
    nodes,
    worst,
    z_scores,
)
from torch import nn

N = 100_000
ELBO_CONTINUOUS = [
    *("pathwise", "analytic_kl", "sticking_the_landing", "score_function"),
    *("rao_blackwellized", "decaying_average", "neural_baseline", "leave_one_out"),
]
BOUNDS = ["iwae", "doubly_reparameterized", "vimco"]


class HierarchyCopies(Copies):
    """q(z1) q(z2 | z1) for p(z2) p(z1 | z2) p(x | z1)."""

    start: ClassVar[dict[str, object]] = {
        "m1": 0.4,
        "m2": [-0.3, 0.8],
        "log_sigma": -0.3,
        "e": [0.2, 0.7],
        "b": 0.1,
    }
    guide_names = ("m1", "m2", "log_sigma")

    def model(self, x):
        with self.plate():
            z2 = pyro.sample("z2", dist.Normal(torch.zeros_like(self.b), 1.0))
            z1 = pyro.sample("z1", dist.Normal(affine(self.e, z2), 0.8))
            pyro.sample("x", dist.Normal(z1 + self.b, 0.7), obs=x)

    def guide(self, x):
        with self.plate():
            z1 = pyro.sample("z1", dist.Normal(self.m1, self.log_sigma.exp()))
            pyro.sample("z2", dist.Normal(affine(self.m2, z1), 0.6))

    def table(self):
        points, log_weights = nodes(20)
        e1, e2 = (g.flatten() for g in torch.meshgrid(points, points, indexing="ij"))
        q1 = dist.Normal(self.m1, self.log_sigma.exp())
        z1 = self.m1 + self.log_sigma.exp() * e1
        q2 = dist.Normal(affine(self.m2, z1), 0.6)
        z2 = q2.loc + 0.6 * e2
        log_p = dist.Normal(0.0, 1.0).log_prob(z2)
        log_p = log_p + dist.Normal(affine(self.e, z2), 0.8).log_prob(z1)
        log_p = log_p + dist.Normal(z1 + self.b, 0.7).log_prob(torch.tensor(self.x))
        log_prob = (log_weights[:, None] + log_weights).flatten()
        return log_prob, log_p, q1.log_prob(z1) + q2.log_prob(z2)


class SharedCopies(GaussianCopies):
    """A parameter of model and guide alike, and an auxiliary draw of the guide (r(a) = N(0, 1))."""

    x = 0.9
    start: ClassVar[dict[str, object]] = {"b": 0.3, "m": 0.2, "log_sigma": -0.4}

    def model(self, x):
        with self.plate():
            z = pyro.sample("z", dist.Normal(0.5 * self.m, (0.3 * self.log_sigma).exp()))
            pyro.sample("x", dist.Normal(z + self.b, self.s), obs=x)

    def guide(self, x):
        with self.plate():
            unit = dist.Normal(torch.zeros_like(self.m), 1.0)
            a = pyro.sample("a", unit, infer={"is_auxiliary": True})
            pyro.sample("z", dist.Normal(self.m + 0.4 * a, self.log_sigma.exp()))

    def table(self):
        points, log_weights = nodes(20)
        a, e = (g.flatten() for g in torch.meshgrid(points, points, indexing="ij"))
        q = dist.Normal(self.m + 0.4 * a, self.log_sigma.exp())
        z = q.loc + self.log_sigma.exp() * e
        log_p = dist.Normal(0.5 * self.m, (0.3 * self.log_sigma).exp()).log_prob(z)
        log_p = log_p + dist.Normal(z + self.b, self.s).log_prob(torch.tensor(self.x))
        log_q = q.log_prob(z) + dist.Normal(0.0, 1.0).log_prob(a)
        return (log_weights[:, None] + log_weights).flatten(), log_p, log_q


@pytest.mark.parametrize("kind", [HierarchyCopies, SharedCopies])
@pytest.mark.parametrize("name", [*ELBO_CONTINUOUS, *BOUNDS])
def test_several_continuous_latents(name, kind):
    """Against quadrature in two dimensions, for the bounds (K = 2) in four."""
    k = 2 if name in BOUNDS else make(name).num_particles
    exact = exact_gradients(kind, bound, 2 if name in BOUNDS else 1)
    small = {"hidden_dim": 10} if name == "neural_baseline" else {}
    for vectorize in (False, True)[:k]:
        found = gradients(kind(N), make(name, k, vectorize_particles=vectorize, **small))
        assert worst(found, exact) < LUCK


def test_sticking_the_landing_in_a_hierarchy_at_the_posterior():
    """No noise where q is the posterior, which a gate between the draws might spoil."""
    e0, e1, b, x = 0.2, 0.7, 0.1, 0.9
    prior = torch.tensor([[1.0, e1], [e1, e1**2 + 0.64]])  # of (z2, z1)
    gain = prior[:, 1] / (prior[1, 1] + 0.49)
    mean = torch.tensor([0.0, e0]) + gain * (x - b - e0)
    cov = prior - gain[:, None] * prior[1]
    slope = cov[0, 1] / cov[1, 1]
    conditional = float((cov[0, 0] - slope * cov[0, 1]).sqrt())

    class AtPosterior(HierarchyCopies):
        def guide(self, x):
            with self.plate():
                z1 = pyro.sample("z1", dist.Normal(self.m1, self.log_sigma.exp()))
                pyro.sample("z2", dist.Normal(affine(self.m2, z1), conditional))

    start = {
        "m1": mean[1],
        "log_sigma": 0.5 * cov[1, 1].log(),
        "m2": [float(mean[0] - slope * mean[1]), float(slope)],
    }
    for name, k in (("sticking_the_landing", 1), ("doubly_reparameterized", 3)):
        found = gradients(AtPosterior(1000, **start), make(name, k))
        for parameter in AtPosterior.guide_names:
            assert float(found[parameter].abs().max()) < 1e-4, (name, parameter)


class ChainCopies(TwoLayerCopies):
    """p(b1) p(x1 | b1) p(b2 | b1) p(x | b2): what b1 alone explains is upstream of b2."""

    def model(self, x):
        with self.plate():
            b1 = pyro.sample("b1", dist.Bernoulli(logits=self.p2))
            pyro.sample("x1", dist.Normal(3 * b1, 1.0), obs=torch.zeros(self.n))
            b2 = pyro.sample("b2", dist.Bernoulli(logits=affine(self.p1, b1)))
            pyro.sample("x", dist.Normal(b2 * self.w, 0.5), obs=x)

    def table(self):
        b1, b2 = bits(2).double().T
        log_q = dist.Bernoulli(logits=self.q1).log_prob(b1)
        log_q = log_q + dist.Bernoulli(logits=affine(self.q2, b1)).log_prob(b2)
        log_p = dist.Bernoulli(logits=self.p2).log_prob(b1)
        log_p = log_p + dist.Normal(3 * b1, 1.0).log_prob(torch.zeros(()))
        log_p = log_p + dist.Bernoulli(logits=affine(self.p1, b1)).log_prob(b2)
        x = dist.Normal(b2 * self.w, 0.5).log_prob(torch.tensor(self.x))
        return log_q, log_p + x, log_q


def test_rao_blackwellization_lowers_the_variance():
    """The second layer's gradient is rid of what the first one alone has caused."""
    plain = gradients(ChainCopies(N), make("score_function"))
    better = gradients(ChainCopies(N), make("rao_blackwellized"))
    assert worst(better, exact_gradients(ChainCopies, bound)) < LUCK
    assert float(better["q2"].var(0).sum()) < 0.5 * float(plain["q2"].var(0).sum())


class SequentialCopies(Copies):
    """Three bits, one a turn of a sequential plate, after a bit that they share."""

    start: ClassVar[dict[str, object]] = {
        "q0": 0.3,
        "q": [0.4, -0.5, 0.8],
        "p": [0.1, 0.2, -0.3],
        "w": [0.8, -0.6, 1.1],
    }
    xs = (0.9, -0.2, 0.4)

    def model(self, x):
        data = self.plate()
        with data:
            g = pyro.sample("g", dist.Bernoulli(torch.full((self.n,), 0.5)))
        for i in pyro.plate("turns", 3):
            with data:
                b = pyro.sample(f"b{i}", dist.Bernoulli(logits=self.p[:, i] + g))
                x_i = torch.full((self.n,), self.xs[i])
                pyro.sample(f"x{i}", dist.Normal(self.w[:, i] * b, 0.5), obs=x_i)

    def guide(self, x):
        data = self.plate()
        with data:
            g = pyro.sample("g", dist.Bernoulli(logits=self.q0))
        for i in pyro.plate("turns", 3):
            with data:
                pyro.sample(f"b{i}", dist.Bernoulli(logits=self.q[:, i] + 0.5 * g))

    def table(self):
        g, *bs = bits(4).double().T
        log_q = dist.Bernoulli(logits=self.q0).log_prob(g)
        log_p = torch.full_like(log_q, math.log(0.5))
        for i, b in enumerate(bs):
            log_q = log_q + dist.Bernoulli(logits=self.q[:, i] + 0.5 * g).log_prob(b)
            log_p = log_p + dist.Bernoulli(logits=self.p[:, i] + g).log_prob(b)
            x = dist.Normal(self.w[:, i] * b, 0.5).log_prob(torch.tensor(self.xs[i]))
            log_p = log_p + x
        return log_q, log_p, log_q


@pytest.mark.parametrize(
    "name", ["score_function", "rao_blackwellized", "decaying_average", "leave_one_out", "disarm"]
)
def test_turns_of_a_sequential_plate_are_independent(name):
    found = gradients(SequentialCopies(N), make(name))
    assert worst(found, exact_gradients(SequentialCopies, bound)) < LUCK
    if name == "rao_blackwellized":
        plain = gradients(SequentialCopies(N), make("score_function"))
        assert float(found["q"].var(0).sum()) < 0.5 * float(plain["q"].var(0).sum())


class DropoutCopies(GaussianCopies):
    """An encoder with dropout in train mode: one mask a run, for guide and log q alike."""

    start: ClassVar[dict[str, object]] = GaussianCopies.start | {"h": [0.5, -0.2, 0.3, 0.1]}

    def guide(self, x):
        with self.plate():
            kept = nn.functional.dropout(torch.ones(self.n, 4), 0.5)
            loc = self.m + (self.h * kept).sum(-1)
            pyro.sample("z", dist.Normal(loc, self.log_sigma.exp()))


class DropoutBits(BitCopies):
    def guide(self, x):
        with self.plate():
            kept = nn.functional.dropout(torch.ones(self.n, 3), 0.5)
            pyro.sample("b", dist.Bernoulli(logits=self.logits * kept).to_event(1))


@pytest.mark.parametrize(
    ("kind", "name", "other", "k"),
    [
        (DropoutCopies, "sticking_the_landing", "pathwise", 1),
        (DropoutCopies, "doubly_reparameterized", "iwae", 2),
        (DropoutBits, "disarm", "score_function", 1),
        (DropoutBits, "rebar", "score_function", 1),
    ],
)
def test_dropout_in_the_encoder(kind, name, other, k):
    """The same mean as the plain estimator: draws and log q see one and the same mask."""
    found, expected = (gradients(kind(N), make(n, k)) for n in (name, other))
    for parameter, gradient in found.items():
        difference = gradient - expected[parameter]  # of independent draws
        assert float(z_scores(difference, torch.zeros(())).abs().max()) < LUCK, parameter


class AggregateCopies(Copies):
    """The guide draws two data's bits, then their group's bit given the sum of these."""

    start: ClassVar[dict[str, object]] = {"q": [[-0.8, 1.4]], "q_b": [[0.3, -0.4]], "w": [0.8]}
    xs = (0.9, -0.2)

    def plates(self):
        return pyro.plate("groups", self.n, dim=-2), pyro.plate("data", 2, dim=-1)

    def model(self, x):
        groups, data = self.plates()
        with groups:
            g = pyro.sample("g", dist.Bernoulli(torch.full((self.n, 1), 0.6)))
            with data:
                b = pyro.sample("b", dist.Bernoulli(logits=2 * g - 0.6))
                obs = torch.tensor(self.xs).expand(self.n, 2)
                pyro.sample("x", dist.Normal(g * self.w + b, 0.5), obs=obs)

    def guide(self, x):
        groups, data = self.plates()
        with groups:
            with data:
                b = pyro.sample("b", dist.Bernoulli(logits=self.q_b[:, 0]))
            pyro.sample("g", dist.Bernoulli(logits=affine(self.q, b.sum(-1, keepdim=True))))

    def table(self):
        g, *bs = bits(3).double().T
        log_q = dist.Bernoulli(logits=affine(self.q[0, 0], sum(bs))).log_prob(g)
        log_p = dist.Bernoulli(torch.tensor(0.6)).log_prob(g)
        for i, b in enumerate(bs):
            log_q = log_q + dist.Bernoulli(logits=self.q_b[0, 0, i]).log_prob(b)
            log_p = log_p + dist.Bernoulli(logits=2 * g - 0.6).log_prob(b)
            x = dist.Normal(g * self.w[0] + b, 0.5).log_prob(torch.tensor(self.xs[i]))
            log_p = log_p + x
        return log_q, log_p, log_q


@pytest.mark.parametrize(
    "name", ["vimco", "score_function", "rao_blackwellized", "leave_one_out", "disarm"]
)
def test_a_group_drawn_from_its_data(name):
    """Trap: a guide that draws inwards of a plate first; stock Trace_ELBO is wrong there too."""
    exact = exact_gradients(AggregateCopies, bound, 2 if name == "vimco" else 1)
    assert worst(gradients(AggregateCopies(N), make(name)), exact) < LUCK
