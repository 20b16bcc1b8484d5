"""Likelihoods: shapes, densities, gradients, precision."""

from __future__ import annotations

import math

import pytest
import torch

from ppl_models.errors import UnknownNameError
from ppl_models.likelihoods import (
    LIKELIHOODS,
    MIN_SCALE,
    SharedScaleNormalLikelihood,
    full_precision,
    make_likelihood,
    positive,
)

BINARY = {"bernoulli"}
UNIT = {"continuous_bernoulli"}
LEVELS = {"discretized_logistic_mixture"}
REAL = {"normal", "normal_shared_scale", "normal_pixel_scale"}
SHAPES = [(1, 4, 4), (7,)]

every_likelihood = pytest.mark.parametrize("name", LIKELIHOODS)
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=str)


def data(name: str, *shape: int, seed: int = 1) -> torch.Tensor:
    """Values that the likelihood can give."""
    x = torch.rand(shape, generator=torch.Generator().manual_seed(seed))
    if name in LEVELS:
        return (x * 255).round() / 255
    return (x > 0.5).float() if name in BINARY else x


def test_every_likelihood_is_tested_here():
    assert set(LIKELIHOODS) == BINARY | UNIT | LEVELS | REAL


@every_likelihood
@every_shape
@pytest.mark.parametrize("batch", [(), (5,), (3, 5), (2, 3, 5)], ids=str)
def test_shapes(name, shape, batch):
    likelihood = make_likelihood(name, shape)
    p = likelihood(torch.randn(*batch, *likelihood.output_shape))
    assert p.batch_shape == batch
    assert p.event_shape == shape
    assert p.sample().shape == (*batch, *shape)
    assert p.sample((6,)).shape == (6, *batch, *shape)
    assert p.mean.shape == (*batch, *shape)
    assert p.log_prob(data(name, *batch, *shape)).shape == batch


@every_likelihood
@every_shape
def test_output_shape_is_the_event_shape_times_the_number_of_outputs(name, shape):
    likelihood = make_likelihood(name, shape)
    expected = {"normal_pixel_scale": 2, "discretized_logistic_mixture": 15}
    assert likelihood.num_outputs == expected.get(name, 1)
    assert likelihood.output_shape == (likelihood.num_outputs, *shape)
    assert likelihood.event_shape == shape


@every_likelihood
def test_a_sample_is_in_the_support_and_data_are_scored_one_by_one(name):
    likelihood = make_likelihood(name, (7,))
    outputs = torch.randn(5, *likelihood.output_shape)
    p = likelihood(outputs)
    assert p.support.check(p.sample()).all()
    x = data(name, 5, 7)
    alone = torch.stack([likelihood(outputs[i]).log_prob(x[i]) for i in range(5)])
    torch.testing.assert_close(p.log_prob(x), alone)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_normal_of_unit_variance_is_half_the_squared_error_and_a_constant(shape):
    likelihood = make_likelihood("normal", shape)
    outputs, x = torch.randn(5, *likelihood.output_shape), torch.randn(5, *shape)
    error = 0.5 * (x - outputs.reshape(5, *shape)).flatten(1).square().sum(1)
    constant = math.prod(shape) / 2 * math.log(2 * math.pi)
    torch.testing.assert_close(-likelihood(outputs).log_prob(x), error + constant)


def test_the_bernoulli_is_minus_the_binary_cross_entropy():
    logits, x = torch.randn(5, 1, 7), data("bernoulli", 5, 7)
    entropy = torch.nn.functional.binary_cross_entropy_with_logits(
        logits.squeeze(1), x, reduction="none"
    )
    log_prob = make_likelihood("bernoulli", (7,))(logits).log_prob(x)
    torch.testing.assert_close(log_prob, -entropy.sum(1))


def test_the_pixel_scale_reads_loc_first_and_scale_second():
    outputs = torch.randn(5, 2, 7)
    p = make_likelihood("normal_pixel_scale", (7,))(outputs)
    torch.testing.assert_close(p.mean, outputs[:, 0])
    torch.testing.assert_close(p.stddev, outputs[:, 1].exp().log1p() + MIN_SCALE)


@pytest.mark.parametrize("name", sorted(REAL))
@pytest.mark.parametrize(("loc", "raw"), [(0.3, 0.5), (-1.2, -1.0)])
def test_a_density_integrates_to_one(name, loc, raw):
    likelihood = make_likelihood(name, (1,)).double()
    outputs = torch.tensor([loc, raw], dtype=torch.float64)[: likelihood.num_outputs]
    grid = torch.linspace(-15, 15, 20_001, dtype=torch.float64)
    density = likelihood(outputs.unsqueeze(-1)).log_prob(grid.unsqueeze(-1)).exp().detach()
    assert float(torch.trapezoid(density, grid)) == pytest.approx(1, abs=1e-6)
    mean = float(torch.trapezoid(density * grid, grid))
    assert mean == pytest.approx(loc, abs=1e-6)


@pytest.mark.parametrize("name", sorted(BINARY))
@pytest.mark.parametrize("logit", [-3.0, 0.4])
def test_a_mass_sums_to_one(name, logit):
    p = make_likelihood(name, (1,))(torch.tensor([[logit]], dtype=torch.float64))
    mass = p.log_prob(torch.tensor([[0.0], [1.0]], dtype=torch.float64)).exp()
    assert float(mass.sum()) == pytest.approx(1, abs=1e-12)
    assert float(mass[1]) == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-12)


@every_likelihood
@pytest.mark.parametrize("size", [1e4, -1e4])
def test_extreme_outputs_give_finite_densities_and_gradients(name, size):
    likelihood = make_likelihood(name, (1, 4, 4))
    outputs = torch.full((5, *likelihood.output_shape), size, requires_grad=True)
    p = likelihood(outputs)
    for x in (data(name, 5, 1, 4, 4), p.sample()):
        log_prob = p.log_prob(x)
        assert log_prob.isfinite().all()
        (gradient,) = torch.autograd.grad(log_prob.sum(), outputs, retain_graph=True)
        assert gradient.isfinite().all()


@every_likelihood
@every_shape
def test_a_gradient_reaches_every_output_and_parameter(name, shape):
    likelihood = make_likelihood(name, shape)
    outputs = torch.randn(5, *likelihood.output_shape, requires_grad=True)
    likelihood(outputs).log_prob(data(name, 5, *shape)).sum().backward()
    assert (outputs.grad != 0).all()
    for parameter in likelihood.parameters():
        assert (parameter.grad != 0).all()


@every_likelihood
def test_the_gradient_is_that_of_finite_differences(name):
    likelihood = make_likelihood(name, (3,)).double()
    outputs = torch.randn(2, *likelihood.output_shape, dtype=torch.float64, requires_grad=True)
    x = data(name, 2, 3).double()
    assert torch.autograd.gradcheck(lambda o: likelihood(o).log_prob(x), (outputs,))


@every_likelihood
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_outputs_give_float32_densities(name, dtype):
    likelihood = make_likelihood(name, (1, 4, 4))
    outputs = torch.randn(5, *likelihood.output_shape).to(dtype)
    x = data(name, 5, 1, 4, 4)
    log_prob = likelihood(outputs).log_prob(x)
    assert log_prob.dtype == torch.float32
    torch.testing.assert_close(log_prob, likelihood(outputs.float()).log_prob(x))


def test_full_precision_leaves_float64_as_it_is():
    assert full_precision(torch.zeros(1, dtype=torch.float64)).dtype == torch.float64
    assert full_precision(torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.float32


def test_a_scale_has_a_floor():
    scale = positive(torch.tensor([-1e4, 0.0, 1e4]))
    torch.testing.assert_close(scale, torch.tensor([MIN_SCALE, math.log(2) + MIN_SCALE, 1e4]))


@pytest.mark.parametrize("scale", [0.01, 0.3, 2.0])
def test_the_shared_scale_starts_where_it_is_told(scale):
    found = SharedScaleNormalLikelihood((7,), scale).scale.detach()
    assert float(found) == pytest.approx(scale, rel=1e-5)


def test_the_best_shared_scale_is_the_root_mean_square_of_the_errors():
    x = torch.randn(50, 7)
    best = float(x.square().mean().sqrt())
    gradients = []
    for scale in (0.9 * best, best, 1.1 * best):
        likelihood = SharedScaleNormalLikelihood((7,), scale)
        likelihood(torch.zeros(50, 1, 7)).log_prob(x).mean().backward()
        gradients.append(float(likelihood.raw_scale.grad))
    assert gradients[0] > 0.1
    assert abs(gradients[1]) < 1e-3
    assert gradients[2] < -0.1


def test_the_fixed_scale_is_saved_but_not_trained():
    likelihood = make_likelihood("normal", (7,))
    assert float(likelihood.scale) == 1.0
    assert list(likelihood.parameters()) == []
    assert list(likelihood.state_dict()) == ["scale"]


def test_an_unknown_likelihood_gives_near_misses_and_the_list():
    with pytest.raises(UnknownNameError, match=r"unknown likelihood 'bernouli'.*'bernoulli'") as it:
        make_likelihood("bernouli", (7,))
    assert all(name in str(it.value) for name in LIKELIHOODS)
