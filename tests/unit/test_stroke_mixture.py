"""The density of a pen's movement: integrates to 1, equals a reference, is what is drawn."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ppl_models.distributions.stroke_mixture import StrokeMixture, StrokeRows

DOWN, UP, OVER = torch.eye(3).unbind(0)


def some_mixture(num_components=4, seed=0, dtype=torch.float32, batch=(), spread=1.0):
    generator = torch.Generator().manual_seed(seed)
    size = StrokeMixture.num_outputs(num_components)
    outputs = spread * torch.randn(*batch, size, generator=generator, dtype=torch.float64)
    return StrokeMixture.from_outputs(outputs.to(dtype))


def rows_at(offsets, pen):
    return torch.cat([offsets, pen.to(offsets).expand(*offsets.shape[:-1], 3)], -1)


def grid(side=701, reach=40.0):
    """Points of a plane, and the area that each stands for; denser in the middle."""
    t = torch.linspace(-1, 1, side, dtype=torch.float64)
    line, weight = reach * t**3, reach * 3 * t**2 * (t[1] - t[0])
    points = torch.cartesian_prod(line, line)
    return points, torch.outer(weight, weight).flatten()


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
def test_it_integrates_to_one(seed, temperature):
    mixture = some_mixture(seed=seed, dtype=torch.float64)
    mixture.temperature = temperature
    points, area = grid()
    moving = sum((mixture.log_prob(rows_at(points, pen)).exp() * area).sum() for pen in (DOWN, UP))
    ending = mixture.log_prob(rows_at(torch.zeros(2, dtype=torch.float64), OVER)).exp()
    assert 0.001 < float(ending) < 0.9
    assert float(moving + ending) == pytest.approx(1.0, abs=1e-3)


def reference(mixture, rows):
    """By torch's own mixture of multivariate normals, in float64."""
    parts = (mixture.logits, mixture.locs, mixture.log_scales, mixture.correlations)
    logits, locs, log_scales, correlations = (part.double() for part in parts)
    scales = (5 * torch.tanh(log_scales / 5)).exp()
    rho = 0.999 * torch.tanh(correlations)
    ones = torch.ones_like(rho)
    correlation = torch.stack([torch.stack([ones, rho], -1), torch.stack([rho, ones], -1)], -1)
    covariance = correlation * scales.unsqueeze(-1) * scales.unsqueeze(-2)
    offsets = MixtureSameFamily(Categorical(logits=logits), MultivariateNormal(locs, covariance))
    pen = Categorical(logits=mixture.pen_logits.double()).log_prob(rows[..., 2:].argmax(-1))
    return pen + torch.where(rows[..., 4] > 0, 0.0, offsets.log_prob(rows[..., :2].double()))


@pytest.mark.parametrize("pen", [DOWN, UP, OVER], ids=["down", "up", "end"])
def test_it_equals_a_reference_in_float64(pen):
    mixture = some_mixture(20, batch=(200,), spread=1.5)
    rows = rows_at(torch.randn(200, 2) * (1 - pen[2]), pen)
    torch.testing.assert_close(
        mixture.log_prob(rows).double(), reference(mixture, rows), rtol=1e-4, atol=1e-4
    )


@pytest.mark.parametrize("size", [1e2, 1e4, 1e6])
def test_extreme_outputs_give_finite_densities_gradients_and_draws(size):
    outputs = torch.randn(50, StrokeMixture.num_outputs(5)).sign() * size
    outputs.requires_grad_()
    mixture = StrokeMixture.from_outputs(outputs)
    value = mixture.log_prob(rows_at(torch.randn(50, 2) * 100, DOWN))
    value.sum().backward()
    assert bool(value.isfinite().all())
    assert bool(outputs.grad.isfinite().all())
    assert bool(StrokeRows().check(mixture.sample()).all())


def cells_of(points, edges):
    return torch.bucketize(points.contiguous(), edges) @ torch.tensor([6, 1])


def test_draws_match_the_density():
    """Cells of the plane are hit as often as they weigh: χ², 35 degrees of freedom, p < 1e-5."""
    mixture = some_mixture(3, dtype=torch.float64, spread=0.7)
    torch.manual_seed(0)
    drawn = mixture.sample((40_000,))
    edges = torch.tensor([-1.5, -0.5, 0.0, 0.5, 1.5], dtype=torch.float64)
    points, area = grid()
    cells = cells_of(points, edges)
    weights = area * sum(mixture.log_prob(rows_at(points, pen)).exp() for pen in (DOWN, UP))
    expected = torch.zeros(36, dtype=torch.float64).index_add_(0, cells, weights)
    moved = drawn[drawn[:, 4] == 0]
    hits = torch.bincount(cells_of(moved[:, :2], edges), minlength=36)
    expected = expected / expected.sum() * len(moved)
    used = expected > 5
    chi2 = float(((hits - expected)[used] ** 2 / expected[used]).sum())
    assert chi2 < 83  # the quantile 1 − 1e-5 for 35
    shares = drawn[:, 2:].mean(0)
    five_sigma = 5 * 0.5 / math.sqrt(len(drawn))
    torch.testing.assert_close(shares, mixture.pen_logits.softmax(-1), atol=five_sigma, rtol=0.0)


def test_a_low_temperature_draws_the_centre_of_the_likeliest_component():
    mixture = some_mixture(4)
    mixture.temperature = 1e-6
    mixture.pen_logits = torch.tensor([0.0, 0.1, -1.0])
    drawn = mixture.sample((5,))
    centre = mixture.locs[mixture.logits.argmax()]
    torch.testing.assert_close(drawn[:, :2], centre.expand(5, 2), atol=0.05, rtol=0.0)
    assert torch.equal(drawn[:, 2:], UP.expand(5, 3))


def test_the_variance_of_draws_is_proportional_to_the_temperature():
    """A ratio of variances of 20,000 draws has a deviation of 1.4 %; five of them are allowed."""
    torch.manual_seed(0)
    spreads = {}
    for temperature in (1.0, 0.25):
        mixture = some_mixture(1)
        mixture.temperature, mixture.pen_logits = temperature, torch.tensor([0.0, 0.0, -50.0])
        spreads[temperature] = mixture.sample((20_000,))[:, :2].var(0)
    torch.testing.assert_close(
        spreads[0.25] / spreads[1.0], torch.full((2,), 0.25), rtol=0.07, atol=0
    )


def test_shapes_and_expand():
    mixture = some_mixture(3, batch=(4,))
    wide = mixture.expand((2, 4))
    assert wide.batch_shape == (2, 4)
    assert wide.event_shape == (5,)
    assert wide.sample((6,)).shape == (6, 2, 4, 5)
    rows = mixture.sample()
    torch.testing.assert_close(wide.log_prob(rows)[1], mixture.log_prob(rows))


@pytest.mark.parametrize(
    "row",
    [[1.0, 0, 0, 0, 1], [0.0, 0, 1, 1, 0], [0.0, 0, 0, 0, 0], [math.nan, 0, 1, 0, 0]],
    ids=["moves at an end", "two states", "none", "nan"],
)
def test_what_is_no_row(row):
    assert not bool(StrokeRows().check(torch.tensor(row)))
