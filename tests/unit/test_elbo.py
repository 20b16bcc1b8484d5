"""Values of the losses, structured guides, and estimators by name; luck is stated.

Gradients are in ``test_elbo_closed_forms.py`` and its neighbours.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from elbo_helpers import CONTINUOUS, make, served
from programs import GaussianToy, GlobalMean
from pyro.infer import Trace_ELBO

from inference.elbo import ESTIMATORS, AnalyticKL, Pathwise, make_estimator
from ppl_models import PplError, ProgramError, as_program, auxiliary_loss

S2 = 0.25  # s² of the toy
X = torch.tensor([1.7])


def test_the_loss_is_the_elbo_in_closed_form():
    """200,000 vectorized draws: the standard error is below 0.005, the bound 0.03."""
    toy = GaussianToy()
    m, b, sigma2 = toy.m.item(), toy.b.item(), math.exp(2 * toy.log_sigma.item())
    kl = 0.5 * (sigma2 + m**2 - 1 - math.log(sigma2))
    fit_term = -0.5 * math.log(2 * math.pi * S2) - ((1.7 - m - b) ** 2 + sigma2) / (2 * S2)
    for cls in (Pathwise, AnalyticKL):
        estimator = cls(num_particles=200_000, vectorize_particles=True, max_plate_nesting=1)
        loss = estimator.loss(toy.model, toy.guide, X)
        assert loss == pytest.approx(kl - fit_term, abs=0.03)


@pytest.mark.parametrize("name", CONTINUOUS)
@pytest.mark.parametrize("vectorize", [False, True])
def test_particles_average(name, vectorize):
    """A batch of the same datum n times costs n times the loss, whatever the particles."""
    toy = GaussianToy(log_sigma=-20.0)  # no noise: every draw gives the same number
    estimator = make(name, 7, vectorize_particles=vectorize)
    one = make(name).loss(toy.model, toy.guide, X)
    assert estimator.loss(toy.model, toy.guide, X.expand(3)) == pytest.approx(3 * one, rel=1e-4)


@pytest.mark.parametrize(
    "name",
    [
        *("pathwise", "analytic_kl", "sticking_the_landing"),
        *("score_function", "rao_blackwellized", "decaying_average"),
    ],
)
def test_subsampling_weighs_the_likelihood_of_a_global_latent(name):
    estimator, mean = make(name), as_program(GlobalMean())
    x = torch.tensor([0.5, -1.0])

    def loss(num_data):
        torch.manual_seed(1)
        with mean.scope():
            return estimator.loss(mean.run_model, mean.run_guide, {"x": x}, num_data=num_data)

    small, large = loss(2), loss(200)
    torch.manual_seed(1)
    mu = torch.randn(())
    log_lik = float(dist.Normal(mu, 1.0).log_prob(x).sum())
    assert small - large == pytest.approx(99 * log_lik, rel=1e-3)


def correlated(order: str):
    """p(a) p(b | a) with a guide that draws in one order or the other."""

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Normal(0.0, 1.0))
            b = pyro.sample("b", dist.Normal(a, 1.0))
            pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            if order == "model's":
                a = pyro.sample("a", dist.Normal(0.3, 0.8))
                pyro.sample("b", dist.Normal(0.5 * a, 0.7))
            else:
                b = pyro.sample("b", dist.Normal(0.15, 0.8))
                pyro.sample("a", dist.Normal(0.5 * b, 0.7))

    return model, guide


@pytest.mark.parametrize("order", ["model's", "other"])
def test_analytic_kl_is_right_for_structured_guides(order):
    """Where the guide draws in another order a closed-form KL would be wrong (stock Pyro's is).

    Both losses by 100,000 draws: standard errors below 0.01, bound 0.05.
    """
    model, guide = correlated(order)
    x = torch.tensor([0.7])
    options = {"num_particles": 100_000, "vectorize_particles": True, "max_plate_nesting": 1}
    plain = Pathwise(**options).loss(model, guide, x)
    assert AnalyticKL(**options).loss(model, guide, x) == pytest.approx(plain, abs=0.05)


def test_a_kl_without_formula_falls_back_to_the_draw():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.StudentT(4.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.2, 0.7))

    x = torch.tensor([0.7, 0.1])
    torch.manual_seed(0)
    drawn = Pathwise().loss(model, guide, x)
    torch.manual_seed(0)
    assert AnalyticKL().loss(model, guide, x) == pytest.approx(drawn, rel=1e-6)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_auxiliary_losses_enter_the_objective(name):
    program, estimator = served(name)(4), make(name)

    def with_penalty(x):
        with pyro.plate("penalized", len(x), dim=-1):
            auxiliary_loss("penalty", torch.full((len(x),), 2.5))
        return program.model(x)

    losses = []
    for model in (program.model, with_penalty):
        torch.manual_seed(0)
        losses.append(estimator.loss(model, program.guide, program.data()))
    assert losses[1] - losses[0] == pytest.approx(10.0, rel=1e-4)
    assert Trace_ELBO().loss(with_penalty, program.guide, program.data()) > 2.0  # stock Pyro too


@pytest.mark.parametrize("name", CONTINUOUS)
def test_a_latent_missing_from_the_guide_is_refused(name):
    toy = GaussianToy()
    with pytest.raises(ProgramError, match="latent site 'z' of the model is not in the guide"):
        make(name).loss(toy.model, lambda x: None, X)


def test_estimators_by_name_path_and_object():
    assert isinstance(make_estimator("pathwise", 3), Pathwise)
    assert make_estimator("pathwise", 3).num_particles == 3
    assert isinstance(make_estimator("pyro.infer.Trace_ELBO", 2), Trace_ELBO)
    mine = Trace_ELBO()
    assert make_estimator(mine) is mine


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("pathwize", r"unknown estimator 'pathwize'. Did you mean 'pathwise'\?"),
        ("REINFORCE", r"REINFORCE is 'score_function' here\."),
        ("rloo", r"rloo is 'leave_one_out' here\."),
        ("pyro.infer.SVI", "unknown estimator"),
        ("no.such.thing", "unknown estimator"),
        (Trace_ELBO, r"not <class.*\(the class: call it\)"),
        (3, "estimator must be a name"),
    ],
)
def test_wrong_estimators_are_refused(wrong, message):
    with pytest.raises(PplError, match=message):
        make_estimator(wrong)
