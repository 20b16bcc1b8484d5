"""What a review of the estimators found, each against an exact value, or refused by name."""

from __future__ import annotations

import math
from functools import partial
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from elbo_helpers import (
    K_SAMPLE,
    BitCopies,
    Copies,
    GaussianCopies,
    bits,
    bound,
    exact_gradients,
    gradients,
    make,
    nodes,
    worst,
)
from elbo_review_helpers import LUCK, N, check_exact, loss_of
from programs import BernoulliToy
from pyro.infer.autoguide import AutoNormal, AutoStructured, init_to_value
from torch import nn

from ppl_models.errors import ProgramError


class FlowCopies(GaussianCopies):
    """A flow by an auxiliary draw: z = m + σ (e + e³/10), e ~ N(a, 1)."""

    start: ClassVar = GaussianCopies.start | {"a": 0.4}
    guide_names = ("m", "log_sigma", "a")

    def flow(self, e):
        z = self.m + self.log_sigma.exp() * (e + 0.1 * e**3)
        return z, -self.log_sigma - torch.log1p(0.3 * e**2)

    def guide(self, x, num_data=None):
        with self.plate(num_data):
            e = pyro.sample("e", dist.Normal(self.a, 1.0), infer={"is_auxiliary": True})
            z, log_density = self.flow(e)
            pyro.sample("z", dist.Delta(z, log_density=log_density))

    def table(self):
        e, log_weights = nodes(60)
        z, log_density = self.flow(self.a + e)
        log_p = dist.Normal(0.0, 1.0).log_prob(z)
        log_p = log_p + dist.Normal(z + self.b, self.s).log_prob(torch.tensor(self.x))
        return log_weights, log_p, dist.Normal(0.0, 1.0).log_prob(e) + log_density


@pytest.mark.parametrize(
    "name", ["pathwise", "analytic_kl", "sticking_the_landing", "iwae", "vimco"]
)
def test_a_flow_by_an_auxiliary_draw(name):
    check_exact(name, FlowCopies, 1 if name not in K_SAMPLE else 2, 50_000)


def positive(x):
    with pyro.plate("data", len(x)):
        w = pyro.sample("w", dist.LogNormal(torch.zeros(()), 1.0))
        pyro.sample("x", dist.Normal(w.log(), 1.0), obs=x)


@pytest.mark.parametrize("name", ["pathwise", "analytic_kl"])
def test_an_autoguide_of_a_positive_latent(name):
    x = torch.full((N,), 0.9)
    start = init_to_value(values={"w": torch.full((N,), 1.5)})
    guide = AutoNormal(positive, init_loc_fn=start, init_scale=0.6)
    guide(x)
    loss = make(name).differentiable_loss(positive, guide, x)
    loss.backward()
    m, s = math.log(1.5), torch.tensor(0.6)
    found = {n.split(".")[0]: p.grad.double() for n, p in guide.named_parameters()}
    slope = 1 - torch.exp(-s)  # of the softplus that makes the scale positive
    expected = {"locs": torch.tensor(2 * m - 0.9), "scales": (2 * s - 1 / s) * slope}
    assert worst(found, expected) < LUCK
    kl = (s**2 + m**2 - 1) / 2 - s.log()
    nll = ((0.9 - m) ** 2 + s**2 + math.log(2 * math.pi)) / 2
    assert float(loss.detach()) / N == pytest.approx(float(kl + nll), abs=LUCK * 1.5 / math.sqrt(N))


@pytest.mark.parametrize(
    ("name", "remedy"),
    [("doubly_reparameterized", "iwae.*vimco"), ("reweighted_wake_sleep", "iwae|vimco")],
)
def test_point_masses_are_refused(name, remedy):
    with pytest.raises(ProgramError, match=rf"'z'.*point mass(.|\n)*({remedy})"):
        loss_of(name, FlowCopies(5))


@pytest.mark.parametrize("name", ["pathwise", "sticking_the_landing", "analytic_kl"])
def test_a_structured_autoguide(name):
    x = torch.tensor([0.9, 1.5])
    guide = AutoStructured(positive, conditionals="normal", dependencies="linear")
    guide(x)
    make(name).differentiable_loss(positive, guide, x).backward()
    assert all(p.grad.isfinite().all() for p in guide.parameters())


class AffineCopies(GaussianCopies):
    cache = 1

    def guide(self, x, num_data=None):
        moved = T.AffineTransform(self.m, self.log_sigma.exp(), cache_size=self.cache)
        with self.plate(num_data):
            base = dist.Normal(torch.zeros(self.n), 1.0)
            pyro.sample("z", dist.TransformedDistribution(base, [moved]))


@pytest.mark.parametrize(
    ("name", "k"), [("score_function", 1), ("leave_one_out", 2), ("vimco", 2), ("iwae", 2)]
)
def test_transforms_with_a_cache(name, k):
    check_exact(name, AffineCopies, k, 50_000)


class PlanarToy(nn.Module):
    def __init__(self):
        super().__init__()
        self.flow = T.Planar(2)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 0.5), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            base = dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [self.flow]))


def test_a_flow_without_inverse():
    program, x = PlanarToy(), torch.tensor([0.9, 1.5])
    with pytest.raises(ProgramError, match=r"'z'.*without an inverse"):
        loss_of("score_function", program, x)

    def seeded(times, k):
        torch.manual_seed(1)
        program.zero_grad()
        losses = [loss_of("pathwise", program, x, num_particles=k) for _ in range(times)]
        (sum(losses) / times).backward()
        return [sum(losses) / times, *(p.grad.clone() for p in program.parameters())]

    for once, both in zip(seeded(2, 1), seeded(1, 2), strict=True):
        torch.testing.assert_close(once, both)


class NamedCopies(BitCopies):
    """With ``pyro.deterministic`` values, of which no baseline may read the latent."""

    def model(self, x, num_data=None):
        with self.plate(num_data):
            b = pyro.sample("b", dist.Bernoulli(logits=self.prior).to_event(1))
            loc = pyro.deterministic("loc", (b * self.w).sum(-1), event_dim=0)
            pyro.deterministic("bits", b, event_dim=1)
            pyro.sample("x", dist.Normal(loc, self.log_scale.exp()), obs=x)


@pytest.mark.parametrize("name", ["neural_baseline", "relax"])
def test_baselines_read_no_deterministic_site(name):
    estimator, small = make(name), NamedCopies(100)
    loss = partial(estimator.differentiable_loss, small.model, small.guide, small.data())
    loss()
    optimizer = torch.optim.Adam(estimator.state.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    found = gradients(NamedCopies(N), estimator)
    assert worst(found, {"logits": exact_gradients(BitCopies, bound)["logits"]}) < LUCK


class OneValue(BernoulliToy):
    def model(self, x=None, *, size=1):
        with pyro.plate("data", len(x)):
            b = pyro.sample("b", dist.Bernoulli(torch.full_like(self.logit, 0.5)))
            pyro.sample("x", dist.Normal(b, self.scale), obs=torch.tensor(0.3))


@pytest.mark.parametrize("name", ["neural_baseline", "relax"])
def test_one_observed_value_for_the_whole_plate(name):
    program = OneValue()
    loss_of(name, program, torch.zeros(5)).backward()
    assert program.logit.grad.isfinite()


class Outside(GaussianCopies):
    """With a site outside of the plate."""

    def __init__(self, n, outside):
        super().__init__(n)
        self.outside = outside

    def model(self, x, num_data=None):
        if self.outside == "factor":
            pyro.factor("outside", -self.b.square().sum())
        if self.outside == "deterministic":
            pyro.deterministic("outside", torch.tensor(self.s))
        super().model(x, num_data)


@pytest.mark.parametrize("name", ["iwae", "vimco", "doubly_reparameterized"])
def test_sites_outside_of_the_plate(name):
    losses = []
    for outside in ("deterministic", None):
        torch.manual_seed(1)
        losses.append(loss_of(name, Outside(20, outside), num_particles=4).detach())
    assert losses[0] == losses[1]
    program = Outside(20, "factor")
    with pytest.raises(ProgramError, match=r"'outside'.*outside the plate 'data'"):
        make(name).differentiable_loss(program.model, program.guide, program.data(), num_data=90)


class RandomMinibatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.m = nn.Parameter(torch.zeros(2))
        self.seen = []

    def plate(self, x):
        return pyro.plate("data", len(x), subsample_size=20, dim=-1)

    def model(self, x):
        with self.plate(x) as i:
            self.seen.append(i)
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            pyro.sample("x", dist.Normal(z, 0.5), obs=x[i])

    def guide(self, x):
        with self.plate(x) as i:
            pyro.sample("z", dist.Normal(self.m[(x[i] > 1).long()], 1.0))


@pytest.mark.parametrize("name", ["iwae", "vimco", "reweighted_wake_sleep"])
def test_a_random_minibatch_is_one_for_all_particles(name):
    program, x = RandomMinibatch(), torch.tensor([0.0, 4.0]).repeat(100)
    loss_of(name, program, x, num_particles=4)
    assert all(torch.equal(program.seen[-1], i) for i in program.seen[-4:])
    losses = []
    for vectorize in (False, True):
        estimator = make(name, 4, vectorize_particles=vectorize)
        losses.append(
            torch.tensor([estimator.loss(program.model, program.guide, x) for _ in range(200)])
        )
    error = math.sqrt(sum(float(found.var()) / len(found) for found in losses))
    assert abs(float(losses[0].mean() - losses[1].mean())) < LUCK * error


class InnerCopies(Copies):
    """Three bits in an inner plate, x outside of it."""

    start: ClassVar = {"logit": [0.4], "w": [0.8]}
    guide_names = ("logit",)

    def model(self, x):
        with pyro.plate("data", self.n, dim=-2):
            with pyro.plate("in", 3, dim=-1):
                c = pyro.sample("c", dist.Bernoulli(logits=torch.tensor(0.1)))
            loc = self.w * c.sum(-1, keepdim=True)
            pyro.sample("x", dist.Normal(loc, 0.5), obs=x[:, None])

    def guide(self, x):
        with pyro.plate("data", self.n, dim=-2), pyro.plate("in", 3, dim=-1):
            pyro.sample("c", dist.Bernoulli(logits=self.logit))

    def table(self):
        c = bits(3).to(self.w)
        log_q = dist.Bernoulli(logits=self.logit[0]).log_prob(c).sum(-1)
        x = dist.Normal(self.w[0] * c.sum(-1), 0.5).log_prob(torch.tensor(self.x))
        log_p = dist.Bernoulli(logits=torch.tensor(0.1).double()).log_prob(c).sum(-1)
        return log_q, log_p + x, log_q


@pytest.mark.parametrize("name", ["rebar", "relax", "leave_one_out", "disarm"])
def test_bits_in_an_inner_plate(name):
    check_exact(name, InnerCopies)


def test_enumeration_outside_of_a_plate_is_refused():
    refused = pytest.raises(ProgramError, match=r"plate 'in'.*outside(.|\n)*leave_one_out")
    with pyro.validation_enabled(False), refused:  # as in fit; Pyro warns of it else
        loss_of("enumerate", InnerCopies(4))
