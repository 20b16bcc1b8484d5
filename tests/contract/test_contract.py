"""The contract: every program of the catalog keeps it, and every clause can be broken."""

from __future__ import annotations

import copy

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import (
    BernoulliToy,
    GaussianToy,
    GlobalMean,
    LinearVAE,
    images_for,
    of_the_catalog,
    tiny_images,
    tiny_vae,
)
from pyro.infer.autoguide import AutoNormal
from torch import nn

from inference.contract import CHECKS
from inference.testing import check_program
from ppl_models import CATALOG, Program, ProgramError
from ppl_models.latent_priors import LATENT_PRIORS, MIXED
from ppl_models.likelihoods import LIKELIHOODS
from ppl_models.posteriors import POSTERIORS
from ppl_models.vae import VAE

X = torch.randn(6)


@pytest.mark.parametrize("name", CATALOG)
def test_the_catalog_keeps_it(name):
    results = check_program(*of_the_catalog(name))
    assert [r.name for r in results] == ["runs", *CHECKS, "lint"]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_every_likelihood_keeps_it(likelihood):
    check_program(tiny_vae(likelihood), {"x": images_for(likelihood, 5)})


@pytest.mark.parametrize(
    ("posterior", "prior"),
    [
        (posterior, prior)
        for posterior in POSTERIORS
        for prior in LATENT_PRIORS
        if prior != "vamp" or posterior in MIXED
    ],
)
def test_every_posterior_and_prior_keep_it(posterior, prior):
    vae = VAE((1, 4, 4), 3, (8,), "bernoulli", posterior, prior, 4, beta=2.0)
    check_program(vae, {"x": tiny_images(5)})


@pytest.mark.parametrize(
    ("program", "batch"),
    [
        (GaussianToy(), {"x": X}),
        (LinearVAE(4, 2), {"x": torch.randn(5, 4)}),
        (GlobalMean(), {"x": X}),
        (BernoulliToy(), {"x": X}),
    ],
    ids=["toy", "linear", "global", "discrete"],
)
def test_other_kinds_of_program_keep_it(program, batch):
    check_program(program, batch)


def test_an_autoguide_keeps_it():
    def model(x=None, *, size=1):
        rows = size if x is None else len(x)
        loc = pyro.param("loc", torch.tensor(0.0).double() if x is None else x.new_zeros(()))
        mu = pyro.sample("mu", dist.Normal(loc, 1.0))
        with pyro.plate("data", rows, dim=-1):
            return pyro.sample("x", dist.Normal(mu, 1.0), obs=x)

    check_program(Program(model, AutoNormal(model)), {"x": X})


def test_program_and_random_state_are_left_alone():
    vae = tiny_vae().train()
    before = copy.deepcopy(vae.state_dict())
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    check_program(vae, {"x": tiny_images(5)})
    assert torch.equal(torch.rand(2), expected)
    assert vae.training
    assert all(torch.equal(vae.state_dict()[k], v) for k, v in before.items())
    assert all(p.grad is None for p in vae.parameters())


class Toy(GaussianToy):
    """A program that keeps the contract; the classes below break one clause each."""


class GuideSiteElsewhere(Toy):
    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.m, self.log_sigma.exp()))
            pyro.sample("w", dist.Normal(self.m, 1.0))


class OtherName(Toy):
    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.b), 1.0))
            return pyro.sample("image", dist.Normal(z + self.b, self.s), obs=x)


class OtherPlate(Toy):
    def guide(self, x):
        with pyro.plate("rows", len(x), dim=-1):
            return pyro.sample("z", dist.Normal(self.m, self.log_sigma.exp()))


class WrongShape(Toy):
    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            return pyro.sample("x", dist.Normal(z.squeeze(-1) + self.b, self.s), obs=x)


class Unrunnable(Toy):
    def model(self, x=None, *, size=1):
        raise KeyError("oops")


class WrongParameter(Toy):
    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", dist.Normal(self.m, self.log_sigma))  # negative


class WrongSupport(Toy):
    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Exponential(torch.ones_like(self.b)))
            return pyro.sample("x", dist.Normal(z + self.b, self.s), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", dist.Normal(self.m.exp() + 3, self.log_sigma.exp() + 2))


class NoGradient(Toy):
    def __init__(self):
        super().__init__()
        self.idle = nn.Parameter(torch.zeros(()))


class NoSize(Toy):
    def model(self, x):
        return super().model(x)


class Forgetful(Toy):
    """Something learned is in no state dict."""

    def __init__(self):
        super().__init__()
        self.shift = self.b.detach() * 1.0

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.b), 1.0))
            self.shift += 0.1
            return pyro.sample("x", dist.Normal(z + self.b + self.shift, self.s), obs=x)


SHARED_NETWORK = nn.Linear(1, 1)


def _shared_model(x=None, *, size=1):
    pyro.module("shared", SHARED_NETWORK)
    with pyro.plate("data", size if x is None else len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        return pyro.sample("x", dist.Normal(SHARED_NETWORK(z).squeeze(-1), 1.0), obs=x)


def _shared_guide(x):
    loc = pyro.param("loc", torch.zeros(1))
    with pyro.plate("data", len(x), dim=-1):
        return pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))


class BatchCentred(Toy):
    """A datum's density depends on the rest of its batch."""

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.b), 1.0))
            weights = torch.arange(len(z)) / len(z)
            return pyro.sample("x", dist.Normal(z + self.b + weights, self.s), obs=x)


class SingleOnly(Toy):
    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0)).float()
            return pyro.sample("x", dist.Normal((z + self.b).float(), self.s), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            sigma = self.log_sigma.exp().float()
            return pyro.sample("z", dist.Normal(self.m.float(), sigma))


class NeedsSix(Toy):
    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            scale = self.log_sigma.exp() * (1.0 if len(x) >= 6 else 2.0)
            return pyro.sample("z", dist.Normal(self.m, scale))


@pytest.mark.parametrize(
    ("program", "clause", "message"),
    [
        (GuideSiteElsewhere(), "sites", "guide site 'w' is not in the model"),
        (OtherName(), "sites", "site 'image' observes the field 'x'; name it 'x'"),
        (OtherPlate(), "plates", "'rows'.*in the guide"),
        (WrongShape(), "shapes", r"site 'z' has values of shape \(6,\)"),
        (Unrunnable(), "runs", "KeyError.*test_contract.py, line"),
        (WrongParameter(), "validation", "scale"),
        (WrongSupport(), "supports", "site 'z' takes values outside the support.*Exponential"),
        (NoGradient(), "gradients", "no gradient reached parameter.*owner.idle"),
        (NoSize(), "prior predictive", "keyword-only option `size`"),
        (Forgetful(), "state dict", "does not hold all that the program learns"),
        (Program(_shared_model, _shared_guide), "deepcopy", "changes the original"),
        (BatchCentred(), "per datum", "depends on the rest of its batch"),
        (SingleOnly(), "precisions", "in float64"),
        (NeedsSix(), "batch sizes", "a batch of 1 gives other numbers"),
    ],
    ids=lambda value: value if isinstance(value, str) and " " not in value else None,
)
def test_every_clause_can_be_broken(program, clause, message):
    results = {r.name: r for r in check_program(program, {"x": X}, raise_on_failure=False)}
    assert not results[clause].ok
    with pytest.raises(ProgramError, match=rf"(?s)breaks the contract:.*- {clause}: .*{message}"):
        check_program(program, {"x": X})


def test_every_clause_has_a_program_that_breaks_it():
    broken = {
        mark.args[1][i][1]
        for mark in test_every_clause_can_be_broken.pytestmark
        for i in range(len(mark.args[1]))
    }
    assert broken == {"runs", *CHECKS}


def test_a_batch_too_small_to_permute_is_refused():
    with pytest.raises(ProgramError, match="at least 3, got 2"):
        check_program(GaussianToy(), {"x": X[:2]})
