"""What a review found of wrapped sites, masks, scales and auxiliary losses."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import ClassVar

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as T
import pytest
import torch
from elbo_helpers import (
    Copies,
    bits,
)
from elbo_review_helpers import check_exact, loss_of
from programs import GaussianToy
from pyro import poutine
from torch import nn

from inference.elbo import make_estimator
from ppl_models.errors import ProgramError
from ppl_models.program import auxiliary_loss


class SpinCopies(Copies):
    """±1, as a Bernoulli with a transform, or a bit whose density a mask leaves out."""

    start: ClassVar = {"logit": 0.4, "w": 0.8}
    guide_names = ("logit",)

    masked = staticmethod(nullcontext)

    def fn(self, logit):
        spin = [T.AffineTransform(-1.0, 2.0)]
        return dist.TransformedDistribution(dist.Bernoulli(logits=logit), spin)

    def model(self, x):
        with self.plate():
            with self.masked():
                z = pyro.sample("z", self.fn(torch.zeros(self.n)))
            pyro.sample("x", dist.Normal(self.w * z, 0.5), obs=x)

    def guide(self, x):
        with self.plate(), self.masked():
            pyro.sample("z", self.fn(self.logit))

    states, counts = (-1.0, 1.0), 1.0

    def table(self):
        b = bits(1)[:, 0].double()
        log_q = dist.Bernoulli(logits=self.logit).log_prob(b)
        z = torch.tensor(self.states).double()
        x = dist.Normal(self.w * z, 0.5).log_prob(torch.tensor(self.x))
        return log_q, x - self.counts * math.log(2), self.counts * log_q


class MaskedCopies(SpinCopies):
    states, counts = (0.0, 1.0), 0.0

    def fn(self, logit):
        return dist.Bernoulli(logits=logit).mask(torch.zeros(self.n, dtype=torch.bool))


class HandledCopies(MaskedCopies):
    def fn(self, logit):
        return dist.Bernoulli(logits=logit)

    def masked(self):
        return poutine.mask(mask=torch.zeros(self.n, dtype=torch.bool))


@pytest.mark.parametrize("name", ["enumerate", "disarm", "rebar", "relax", "gumbel_softmax"])
def test_wrapped_bits_are_refused(name):
    with pytest.raises(ProgramError, match="'z'"):
        loss_of(name, SpinCopies(5))


@pytest.mark.parametrize("name", ["score_function", "leave_one_out", "disarm", "enumerate"])
def test_a_masked_draw_that_is_used(name):
    check_exact(name, HandledCopies)


class Ordered(GaussianToy):
    def __init__(self, order):
        super().__init__()
        self.order = order

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            for name in self.order:
                with poutine.scale(scale=10.0 if name == "y" else 1.0):
                    pyro.sample(name, dist.Normal(z, 2.0 if name == "y" else 0.5), obs=x)


def test_the_order_of_observed_sites_of_other_scales():
    losses = []
    for order in ("xy", "yx"):
        torch.manual_seed(1)
        losses.append(loss_of("iwae", Ordered(order), torch.ones(9), num_particles=8).detach())
    torch.testing.assert_close(*losses)


class Scalar(GaussianToy):
    def model(self, x):
        z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
        auxiliary_loss("r", z**2)
        pyro.sample("x", dist.Normal(z + self.b, 0.5), obs=x)

    def guide(self, x):
        pyro.sample("z", dist.Normal(self.m, 1.0))


class Scaled(GaussianToy):
    def model(self, x):
        with poutine.scale(scale=torch.linspace(0.5, 1.0, len(x))):
            super().model(x)

    def guide(self, x):
        with poutine.scale(scale=torch.linspace(0.5, 1.0, len(x))):
            super().guide(x)


@pytest.mark.parametrize(
    ("name", "kind", "shape"),
    [("iwae", Scalar, ()), ("doubly_reparameterized", Scalar, ()), ("pathwise", Scaled, (5,))],
)
def test_auxiliary_losses_and_scales(name, kind, shape):
    assert loss_of(name, kind(), torch.ones(shape)).isfinite()


class MaskedWithin(nn.Module):
    """A one-hot latent whose distributions carry the mask of half the rows."""

    def __init__(self):
        super().__init__()
        self.logits = nn.Parameter(torch.tensor([0.2, -0.1, 0.4]))
        self.keep = torch.tensor([True, False])

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.OneHotCategorical(torch.ones(3)).mask(self.keep))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0).mask(self.keep), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            logits = self.logits.expand(len(x), 3)
            pyro.sample("z", dist.OneHotCategorical(logits=logits).mask(self.keep))


@pytest.mark.parametrize(
    "name", ["enumerate", "score_function", "leave_one_out", "vimco", "disarm", "rebar"]
)
def test_a_mask_inside_a_discrete_distribution_is_refused(name):
    """It hides the probability of the draw: sums over states weighed the row by their number."""
    program = MaskedWithin()
    with pytest.raises(ProgramError, match=r"'z'.*(fn.mask|MaskedDistribution)"):
        make_estimator(name, 2).loss(program.model, program.guide, torch.zeros(2))


@pytest.mark.parametrize(
    "name", ["gumbel_softmax", "straight_through", "rebar", "relax", "leave_one_out", "enumerate"]
)
def test_an_impossible_state_leaves_the_gradient_finite(name):
    """Logits of −∞: 0 · −∞ has no gradient."""
    raw = torch.tensor([0.2, -0.1, 0.4], requires_grad=True)

    def logits(x):
        return raw.masked_fill(torch.tensor([False, False, True]), -torch.inf).expand(len(x), 3)

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.5, 0.3, 0.2])))
            pyro.sample("x", dist.Normal(z[..., 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.OneHotCategorical(logits=logits(x)))

    estimator = make_estimator(name, 2)
    for _ in range(3):
        loss = estimator.differentiable_loss(model, guide, torch.zeros(4))
        (gradient,) = torch.autograd.grad(loss, raw)
        assert torch.isfinite(loss)
        assert torch.isfinite(gradient).all()
        assert gradient[2] == 0
