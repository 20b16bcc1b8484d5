"""The estimators against closed forms; chances of failing by luck are stated."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import BernoulliToy, GaussianToy, GlobalMean, tiny_images, tiny_vae
from pyro import poutine
from pyro.infer import SVI, Trace_ELBO
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from inference.elbo import ESTIMATORS, AnalyticKL, Pathwise, make_estimator
from ppl_models import PplError, ProgramError, as_program, auxiliary_loss

S2 = 0.25  # s² of the toy
X = torch.tensor([1.7])


def gradients(toy: GaussianToy, estimator, draws: int) -> dict[str, torch.Tensor]:
    """Single-draw gradients of the ELBO, (draws,), by parameter."""
    rows: dict[str, list[float]] = {name: [] for name, _ in toy.named_parameters()}
    for _ in range(draws):
        toy.zero_grad()
        (-estimator.differentiable_loss(toy.model, toy.guide, X)).backward()
        for name, parameter in toy.named_parameters():
            rows[name].append(float(parameter.grad))
    return {name: torch.tensor(values, dtype=torch.float64) for name, values in rows.items()}


def exact(toy: GaussianToy) -> dict[str, float]:
    b, m, sigma2 = toy.b.item(), toy.m.item(), math.exp(2 * toy.log_sigma.item())
    return {
        "m": (1.7 - m - b) / S2 - m,
        "log_sigma": 1 - sigma2 * (1 + 1 / S2),
        "b": (1.7 - m - b) / S2,
    }


@pytest.mark.parametrize("estimator", [Pathwise(), AnalyticKL()], ids=lambda e: e.name)
def test_gradients_are_unbiased(estimator):
    """Mean of 4,000 draws within 4.5 standard errors: luck fails each of 6 with p < 7e-6."""
    toy = GaussianToy()
    found = gradients(toy, estimator, 4000)
    for name, value in exact(toy).items():
        se = float(found[name].std()) / math.sqrt(4000)
        assert abs(float(found[name].mean()) - value) < 4.5 * se, name


def test_single_draw_variances_are_the_closed_forms():
    """Variances within 15 %; the standard error at 4,000 draws is 2-4 %: p < 1e-4."""
    toy = GaussianToy()
    sigma2 = math.exp(2 * toy.log_sigma.item())
    a = exact(toy)["m"]
    pathwise = gradients(toy, Pathwise(), 4000)
    analytic = gradients(toy, AnalyticKL(), 4000)
    curvature = 1 + 1 / S2
    expected = {
        "m": sigma2 * curvature**2,
        "log_sigma": sigma2 * a**2 + 2 * sigma2**2 * curvature**2,
    }
    for name, value in expected.items():
        assert float(pathwise[name].var()) == pytest.approx(value, rel=0.15), name
    assert float(analytic["m"].var()) == pytest.approx(sigma2 / S2**2, rel=0.15)


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


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("vectorize", [False, True])
def test_particles_average(name, vectorize):
    """A batch of the same datum n times costs n times the loss, whatever the particles."""
    toy = GaussianToy(log_sigma=-20.0)  # no noise: every draw gives the same number
    estimator = ESTIMATORS[name](num_particles=7, vectorize_particles=vectorize)
    one = ESTIMATORS[name]().loss(toy.model, toy.guide, X)
    assert estimator.loss(toy.model, toy.guide, X.expand(3)) == pytest.approx(3 * one, rel=1e-4)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_scale_and_subsampling_weigh_the_objective(name):
    estimator = ESTIMATORS[name]()
    mean = as_program(GlobalMean())
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

    toy = GaussianToy()
    torch.manual_seed(2)
    half = estimator.loss(poutine.scale(toy.model, 0.5), poutine.scale(toy.guide, 0.5), X)
    torch.manual_seed(2)
    assert half == pytest.approx(0.5 * estimator.loss(toy.model, toy.guide, X), rel=1e-5)


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
    toy = GaussianToy()

    def with_penalty(x):
        with pyro.plate("penalized", len(x), dim=-1):
            auxiliary_loss("penalty", torch.full((len(x),), 2.5))
        return toy.model(x)

    estimator = ESTIMATORS[name]()
    torch.manual_seed(0)
    plain = estimator.loss(toy.model, toy.guide, X.expand(4))
    torch.manual_seed(0)
    penalized = estimator.loss(with_penalty, toy.guide, X.expand(4))
    assert penalized - plain == pytest.approx(10.0, rel=1e-4)
    assert Trace_ELBO().loss(with_penalty, toy.guide, X) > 2.0  # stock Pyro takes it too


@pytest.mark.parametrize("name", ESTIMATORS)
def test_discrete_latents_are_refused_by_site(name):
    toy = BernoulliToy()
    with pytest.raises(ProgramError, match=r"guide site 'b' is Bernoulli.*TraceGraph_ELBO"):
        ESTIMATORS[name]().loss(toy.model, toy.guide, X)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_latent_missing_from_the_guide_is_refused(name):
    toy = GaussianToy()
    with pytest.raises(ProgramError, match="latent site 'z' of the model is not in the guide"):
        ESTIMATORS[name]().loss(toy.model, lambda x: None, X)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_stock_svi_trains_with_it(name):
    vae, x = tiny_vae(), tiny_images(50)
    svi = SVI(vae.model, vae.guide, pyro.optim.Adam({"lr": 1e-2}), ESTIMATORS[name]())
    losses = [svi.step(x) for _ in range(60)]
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("particles", [1, 3])
def test_loss_and_gradients_trace_into_one_graph(name, particles):
    """No tensor's value is read in Python: make_fx gets loss and gradients, and both are right."""
    program, x = as_program(tiny_vae()), tiny_images(6)
    estimator = ESTIMATORS[name](num_particles=particles)
    parameters = {k: v.detach().clone() for k, v in program.named_parameters()}

    class Loss(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.program = program

        def forward(self, x):
            return estimator.differentiable_loss(
                self.program.run_model, self.program.run_guide, {"x": x}
            )

    module = Loss()

    def loss_and_gradients(values, x):
        values = {k: v.requires_grad_() for k, v in values.items()}
        named = {f"program.{k}": v for k, v in values.items()}
        loss = functional_call(module, named, (x,))
        return [loss, *torch.autograd.grad(loss, list(values.values()))]

    with program.scope(), pyro.validation_enabled(False):
        graph = make_fx(loss_and_gradients)(parameters, x)
        torch.manual_seed(3)
        traced = graph(parameters, x)
        torch.manual_seed(3)
        eager = loss_and_gradients(parameters, x)
    for ours, theirs in zip(traced, eager, strict=True):
        torch.testing.assert_close(ours, theirs)


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
        ("pyro.infer.SVI", "unknown estimator"),
        ("no.such.thing", "unknown estimator"),
        (Trace_ELBO, r"not <class.*\(the class: call it\)"),
        (3, "estimator must be a name"),
    ],
)
def test_wrong_estimators_are_refused(wrong, message):
    with pytest.raises(PplError, match=message):
        make_estimator(wrong)
