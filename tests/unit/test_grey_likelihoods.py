"""Likelihoods of grey values: the continuous Bernoulli, and mixtures of discretized logistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from pyro.distributions import ContinuousBernoulli as Torchs
from scipy.stats import kstest
from torch.nn import functional as F

from inference import evaluate, fit, load_data
from inference.data import from_tensors
from inference.runs import build_for
from ppl_models import PplError, ProgramError
from ppl_models.distributions import ContinuousBernoulli, DiscretizedLogisticMixture
from ppl_models.likelihoods import make_likelihood

ETAS = torch.tensor([-200.0, -9.0, -0.09, 0.0, 1e-4, 0.11, 3.0, 50.0], dtype=torch.float64)


def test_the_continuous_bernoulli_integrates_to_one():
    grid = torch.linspace(0, 1, 200_001, dtype=torch.float64).unsqueeze(1)
    density = ContinuousBernoulli(ETAS).log_prob(grid).exp()
    mass = torch.trapezoid(density, grid.squeeze(1), dim=0)
    torch.testing.assert_close(mass, torch.ones_like(mass), rtol=1e-5, atol=1e-5)
    mean = torch.trapezoid(density * grid, grid.squeeze(1), dim=0)
    torch.testing.assert_close(mean, ContinuousBernoulli(ETAS).mean, rtol=1e-5, atol=1e-5)


def test_it_is_torchs_where_that_is_exact():
    eta, x = torch.linspace(-8, 8, 50).double(), torch.linspace(0, 1, 50).double()
    ours, theirs = ContinuousBernoulli(eta), Torchs(logits=eta)
    torch.testing.assert_close(ours.log_prob(x), theirs.log_prob(x), rtol=1e-5, atol=1e-5)


def test_nothing_saturates_in_single_precision():
    """Torch's normalizer stops growing at |η| = 16; the density at the mode is η."""
    found = ContinuousBernoulli(torch.tensor([100.0, -1e4])).log_prob(torch.tensor([1.0, 0.0]))
    expected = torch.tensor([100.0, 1e4]).log()
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-3)  # 5000 − 5000 in float32


@pytest.mark.parametrize("eta", [-60.0, -2.0, 0.0, 0.01, 5.0])
def test_its_draws_follow_it(eta):
    """Kolmogorov-Smirnov at p < 1e-4, one seed."""
    draws = ContinuousBernoulli(torch.tensor(eta).double()).sample((20_000,)).numpy()

    def cdf(x):
        return x if eta == 0 else np.expm1(eta * x) / np.expm1(eta)

    assert kstest(draws, cdf).pvalue > 1e-4


def test_the_gradient_of_its_draws_is_that_of_the_mean():
    eta = torch.full((200_000,), 1.5, dtype=torch.float64, requires_grad=True)
    draws = ContinuousBernoulli(eta).rsample()
    (gradient,) = torch.autograd.grad(draws.sum(), eta)
    at = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    (expected,) = torch.autograd.grad(ContinuousBernoulli(at).mean, at)
    assert float(gradient.mean()) == pytest.approx(float(expected), rel=0.01)  # ten standard errors


def mixture(shape=(1, 2, 2), levels=8, batch=(), seed=0):
    likelihood = make_likelihood("discretized_logistic_mixture", shape, levels).double()
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(*batch, *likelihood.output_shape, generator=generator).double()
    return likelihood(outputs), outputs


@pytest.mark.parametrize("shape", [(1, 1, 1), (1,)], ids=str)
@pytest.mark.parametrize("levels", [2, 17, 256])
def test_the_levels_of_a_pixel_sum_to_one(shape, levels):
    p, _ = mixture(shape, levels)
    values = torch.arange(levels, dtype=torch.float64) / (levels - 1)
    mass = p.expand((levels,)).log_prob(values.reshape(levels, *shape)).exp()
    assert float(mass.sum()) == pytest.approx(1, abs=1e-10)
    mean = float((mass * values).sum())
    assert mean == pytest.approx(float(p.mean.squeeze()), abs=1e-10)


def test_the_colours_of_a_pixel_sum_to_one():
    p, _ = mixture((3, 1, 1), 6)
    values = torch.arange(6, dtype=torch.float64) / 5
    colours = torch.cartesian_prod(values, values, values).reshape(-1, 3, 1, 1)
    mass = p.expand((216,)).log_prob(colours).exp()
    assert float(mass.sum()) == pytest.approx(1, abs=1e-10)


@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 1, 1)], ids=str)
def test_draws_have_the_frequencies_of_the_masses(shape):
    """Every colour's frequency within five standard errors; 1e-4 for all by the union bound."""
    p, _ = mixture(shape, 3)
    values = torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64)
    colours = torch.cartesian_prod(*[values] * shape[0]).reshape(-1, *shape)
    mass = p.expand((len(colours),)).log_prob(colours).exp()
    torch.manual_seed(0)
    draws = p.sample((40_000,))
    found = torch.stack([(draws == colour).flatten(1).all(1).double().mean() for colour in colours])
    error = (mass * (1 - mass) / 40_000).sqrt()
    assert bool(((found - mass).abs() < 5 * error + 1e-12).all())
    assert float(found.sum()) == pytest.approx(1)


def test_green_depends_on_red_and_blue_on_both():
    p, _ = mixture((3, 1, 1), 6)
    values = torch.arange(6, dtype=torch.float64) / 5
    colours = torch.cartesian_prod(values, values, values).reshape(-1, 3, 1, 1)
    joint = p.expand((216,)).log_prob(colours).exp().reshape(6, 6, 6)
    product = joint.sum((1, 2))[:, None, None] * joint.sum((0, 2))[:, None] * joint.sum((0, 1))
    assert float((joint - product).abs().max()) > 1e-3


def test_a_single_component_is_the_discretized_logistic():
    """Against the difference of two distribution functions, where that is accurate."""
    loc, log_scale = torch.tensor(0.3).double(), torch.tensor(-1.2).double()
    p = DiscretizedLogisticMixture(
        torch.zeros(1, 1).double(), loc.reshape(1, 1), log_scale.reshape(1, 1), 256, 1
    )
    x = torch.tensor([100 / 255]).double()
    v = 2 * x - 1
    expected = torch.sigmoid((v + 1 / 255 - loc) / log_scale.exp()) - torch.sigmoid(
        (v - 1 / 255 - loc) / log_scale.exp()
    )
    torch.testing.assert_close(p.log_prob(x), expected.log().squeeze(0))


def test_far_tails_are_exact():
    """Level 0 under a logistic of scale e^-7 at the other end: log σ of −1800, not log 0."""
    p = DiscretizedLogisticMixture(
        torch.zeros(1, 1), torch.ones(1, 1), torch.full((1, 1), -7.0), 256, 1
    )
    scale = math.exp(-7)
    expected = F.logsigmoid(torch.tensor((-1 + 1 / 255 - 1) / scale))
    torch.testing.assert_close(p.log_prob(torch.zeros(1)), expected)
    inner = p.log_prob(torch.tensor([1 / 255]))
    assert inner.isfinite()
    assert inner > expected


def test_what_is_no_level_is_refused_and_bits_are_of_levels():
    data = load_data("digits")  # 17 levels, which the data say
    program = build_for("vae", {"likelihood": "discretized_logistic_mixture"}, data.info)
    assert program.owner.likelihood.levels == 17
    batch = next(iter(data.test.batches(20)))
    result = evaluate(program, batch, log_jacobian=data.info.log_jacobian)
    assert result.bits_per_dim == pytest.approx(-result.elbo / 64 / math.log(2))
    grey = from_tensors(torch.rand(40, 1, 8, 8))
    with pytest.raises(PplError, match=r"DiscretizedLogisticMixture.*dequantized data are not"):
        fit(program, grey, progress=False)
    with pytest.raises(PplError, match="A continuous Bernoulli takes values from 0 to 1"):
        fit(
            build_for("vae", {"likelihood": "continuous_bernoulli"}, grey.info),
            from_tensors(3 * torch.rand(40, 1, 8, 8)),
            progress=False,
        )


def test_data_sets_name_what_fits():
    assert "discretized_logistic_mixture" in load_data("digits").info.likelihoods
    assert (
        "discretized_logistic_mixture" not in load_data("digits", dequantize=True).info.likelihoods
    )
    assert "continuous_bernoulli" not in from_tensors(torch.randn(40, 3)).info.likelihoods


def test_errors():
    with pytest.raises(ProgramError, match="levels must be at least 2, got 1"):
        make_likelihood("discretized_logistic_mixture", (1, 4, 4), 1)
    with pytest.raises(ProgramError, match="1 or 3 channels, got 2"):
        make_likelihood("discretized_logistic_mixture", (2, 4, 4))
    p, _ = mixture((3, 2, 2))
    with pytest.raises(NotImplementedError, match="no closed form"):
        _ = p.mean
