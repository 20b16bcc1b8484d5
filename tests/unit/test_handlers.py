"""Schedules and objectives of the rate: on latents in model and guide, in training alone."""

from __future__ import annotations

import math

import pyro
import pytest
import torch
from compiled_helpers import both, step_of
from programs import GaussianToy, tiny_images, tiny_vae
from pyro.distributions import Normal
from torch import nn
from torch.distributions import kl_divergence

from inference import evaluate, fit
from inference.elbo import AnalyticKL, Pathwise
from inference.handlers import Capacity, FreeBits, KLSchedule, KLWarmup, KLWeight
from inference.schedules import cosine, cyclical, exponential, linear
from ppl_models import PplError

X = torch.tensor([1.7, 0.3])


def weights(handler, steps):
    found = []
    for step in steps:
        handler.at(step)
        found.append(handler.weight)
    return found


@pytest.mark.parametrize("estimator", [Pathwise(), AnalyticKL()], ids=lambda e: e.name)
def test_it_weighs_the_rate_and_not_the_distortion(estimator):
    toy = GaussianToy()

    def loss(weight):
        handler = KLWeight(weight)
        torch.manual_seed(0)
        return estimator.loss(handler(toy.model), handler(toy.guide), X)

    rate = loss(1.0) - loss(0.0)
    assert loss(0.3) == pytest.approx(loss(0.0) + 0.3 * rate, rel=1e-5)
    torch.manual_seed(0)
    assert loss(1.0) == pytest.approx(
        (torch.manual_seed(0), estimator.loss(toy.model, toy.guide, X))[1], rel=1e-6
    )


def test_it_can_choose_sites():
    toy = GaussianToy()
    other = KLWeight(0.0, sites=["another"])
    torch.manual_seed(0)
    plain = AnalyticKL().loss(toy.model, toy.guide, X)
    torch.manual_seed(0)
    assert AnalyticKL().loss(other(toy.model), other(toy.guide), X) == pytest.approx(plain)


def test_the_reported_elbo_is_never_scaled():
    vae, batch = tiny_vae(), {"x": tiny_images(5)}
    plain = evaluate(vae, batch)
    with KLWeight(0.1):
        assert evaluate(vae, batch).elbo == pytest.approx(plain.elbo)


def test_warm_up_is_linear_to_one():
    warmup = KLWarmup(4)
    assert weights(warmup, range(6)) == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert weights(KLWarmup(0), range(2)) == [1.0, 1.0]
    with pytest.raises(PplError, match="must not be negative, got -1"):
        KLWarmup(-1)


def test_schedules():
    assert [linear(4, 1.0, 3.0)(s) for s in (0, 1, 3, 9)] == [1.5, 2.0, 3.0, 3.0]
    assert [round(cosine(4)(s), 4) for s in (0, 1, 3, 9)] == [0.1464, 0.5, 1.0, 1.0]
    assert [cyclical(4, 0.5)(s) for s in range(6)] == [0.5, 1.0, 1.0, 1.0, 0.5, 1.0]
    assert exponential(0.5, 0.2)(0) == pytest.approx(0.2)
    assert exponential(0.5, 0.2)(2) == pytest.approx(1 - 0.8 / 4)
    assert weights(KLSchedule(cyclical(4, 0.5)), range(3)) == [0.5, 1.0, 1.0]
    for wrong in (lambda: linear(0), lambda: exponential(1.0), lambda: cyclical(4, 0.0)):
        with pytest.raises(PplError, match="must be"):
            wrong()


def objective(toy, handler, estimator):
    torch.manual_seed(0)
    return estimator.differentiable_loss(
        handler.around_model(toy.model), handler.around_guide(toy.guide), X
    )


def toy_and_rate(toy=None):
    toy = toy or GaussianToy()
    return toy, kl_divergence(Normal(toy.m, toy.log_sigma.exp()), Normal(0.0, 1.0))


@pytest.mark.parametrize("estimator", [Pathwise(), AnalyticKL()], ids=lambda e: e.name)
@pytest.mark.parametrize("nats", [0.01, 5.0])
def test_free_bits_are_the_larger_of_rate_and_nats(estimator, nats):
    toy, rate = toy_and_rate()
    plain = objective(toy, KLWeight(), estimator)
    found = objective(toy, FreeBits(nats), estimator)
    expected = plain + len(X) * (torch.clamp(rate, min=nats) - rate)
    torch.testing.assert_close(found, expected)
    parameters = [toy.m, toy.log_sigma]
    ours = torch.autograd.grad(found, parameters, retain_graph=True)
    theirs = torch.autograd.grad(expected, parameters)
    torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("nats", [0.01, 5.0])
def test_the_capacity_takes_the_rates_place(nats):
    toy, rate = toy_and_rate()
    distortion = objective(toy, KLWeight(0.0), AnalyticKL())
    found = objective(toy, Capacity(nats, gamma=30.0), AnalyticKL())
    torch.testing.assert_close(found, distortion + len(X) * 30.0 * (rate - nats).abs())


def test_the_capacity_grows():
    handler = Capacity(8.0, num_steps=4)
    found = []
    for step in (0, 1, 3, 9):
        handler.at(step)
        found.append(handler.capacity)
    assert found == [2.0, 4.0, 8.0, 8.0]


def test_an_objective_counts_what_weighs_the_rate():
    """Free bits of a beta-VAE cost beta times what is short of them."""
    toy = GaussianToy()
    beta, free = KLWeight(3.0), FreeBits(5.0)
    model, guide = beta.around_model(toy.model), beta.around_guide(toy.guide)
    torch.manual_seed(0)
    found = AnalyticKL().loss(free.around_model(model), free.around_guide(guide), X)
    distortion = float(objective(toy, KLWeight(0.0), AnalyticKL()).detach())
    assert found == pytest.approx(distortion + len(X) * 3.0 * 5.0, rel=1e-5)


class Parts(nn.Module):
    """a and three b's a datum, each N(0, 1) and N(1, 1) in the guide: rates of 0.5 and 1.5."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", Normal(0.0, 1.0))
            with pyro.plate("parts", 3, dim=-2):
                b = pyro.sample("b", Normal(0.0, 1.0))
            pyro.sample("x", Normal(a + b.sum(-2), 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("a", Normal(1.0, 1.0))
            with pyro.plate("parts", 3, dim=-2):
                pyro.sample("b", Normal(1.0, 1.0))


@pytest.mark.parametrize("kind", [Pathwise, AnalyticKL])
@pytest.mark.parametrize("vectorized", [False, True])
def test_rates_are_a_datums_within_further_plates_and_of_several_particles(kind, vectorized):
    estimator = kind(num_particles=4, vectorize_particles=vectorized)
    plain = objective(Parts(), KLWeight(), estimator)
    found = objective(Parts(), FreeBits(5.0), estimator)
    short = (5 - 0.5) + (5 - 1.5)
    torch.testing.assert_close(found, plain + len(X) * short)


def test_training_with_a_capacity_holds_the_rate_there():
    vae, x = tiny_vae(), tiny_images(200)
    handlers = [Capacity(1.5, num_steps=60, gamma=50.0)]
    fit(vae, x, epochs=40, learning_rate=0.01, handlers=handlers, keep="last", progress=False)
    result = evaluate(vae, {"x": x}, num_particles=50)
    assert result.rate == pytest.approx(1.5, abs=0.3)
    assert result.auxiliary == {}  # the handler is of training alone


def test_training_with_free_bits_keeps_a_rate_that_would_be_given_up():
    x = tiny_images(200)
    rates = []
    for free_bits in (0.0, 1.0):
        torch.manual_seed(0)
        vae = tiny_vae()
        fit(vae, x, epochs=30, learning_rate=0.01, free_bits=free_bits, progress=False)
        rates.append(evaluate(vae, {"x": x}, num_particles=50).rate)
    assert rates[0] < 0.7 < rates[1]


@pytest.mark.parametrize(
    "handler",
    [KLSchedule(cyclical(4)), FreeBits(5.0), Capacity(2.0, 10)],
    ids=lambda h: type(h).__name__,
)
def test_a_compiled_step_takes_their_numbers_as_inputs(handler):
    step = step_of(tiny_vae(), AnalyticKL(), tiny_images(6), handlers=[handler])
    losses = []
    for at in (0, 7):
        step.at(at)
        ours, theirs = both(step, tiny_images(6))
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
        losses.append(float(ours[0]))
    assert (losses[0] != losses[1]) == bool(handler.changing)


def test_a_resumed_run_has_the_same_handlers(tmp_path):
    x, options = tiny_images(60), {"run_dir": tmp_path / "run", "progress": False}
    fit(tiny_vae(), x, epochs=1, handlers=[Capacity(2.0, 10)], **options)
    with pytest.raises(PplError, match=r"handlers=\['Capacity\(nats=3.0"):
        fit(tiny_vae(), x, epochs=2, handlers=[Capacity(3.0, 10)], resume=True, **options)
    again = fit(tiny_vae(), x, epochs=2, handlers=[Capacity(2.0, 10)], resume=True, **options)
    assert len(again.history) == 2


def test_errors_of_objectives():
    with pytest.raises(PplError, match=r"found none of its latent sites \(w\)"):
        objective(GaussianToy(), FreeBits(1.0, sites=["w"]), AnalyticKL())
    with pytest.raises(PplError, match="free bits must be positive"):
        FreeBits(-1.0)
    with pytest.raises(PplError, match="capacity and gamma must be positive"):
        Capacity(0.0)
    assert math.isfinite(Capacity(1.0).capacity)
