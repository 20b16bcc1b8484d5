"""Families of posteriors: densities, shapes, closed forms, and what they are exact for."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from torch import nn
from torch.distributions import kl_divergence

from inference import log_weights
from inference.elbo import AnalyticKL
from ppl_models import ProgramError, UnknownNameError
from ppl_models.likelihoods import MIN_SCALE
from ppl_models.posteriors import POSTERIORS, Flow, FullCovariance, make_posterior

DENSITIES = sorted(set(POSTERIORS) - {"point"})
every_density = pytest.mark.parametrize("name", DENSITIES)


def family(name: str, dim: int = 3) -> nn.Module:
    torch.manual_seed(0)
    if name == "flow":
        return Flow(dim, num_steps=3, hidden_dim=8, context_dim=4)
    return make_posterior(name, dim)


@pytest.mark.parametrize("name", POSTERIORS)
@pytest.mark.parametrize("batch", [(5,), (2, 5)], ids=str)
def test_shapes(name, batch):
    posterior = family(name)
    q = posterior(torch.randn(*batch, posterior.num_outputs))
    assert (q.batch_shape, q.event_shape) == (batch, (3,))
    z = q.rsample()
    assert z.shape == (*batch, 3)
    assert q.log_prob(z).shape == batch


@every_density
def test_the_density_integrates_to_one(name):
    posterior = family(name, 2).double()
    torch.manual_seed(1)
    q = posterior(torch.randn(1, posterior.num_outputs, dtype=torch.float64))
    axis = torch.linspace(-12, 12, 481, dtype=torch.float64)
    grid = torch.cartesian_prod(axis, axis).unsqueeze(1)  # (N, 1, 2)
    density = q.expand((len(grid), 1)).log_prob(grid).exp().reshape(481, 481)
    mass = torch.trapezoid(torch.trapezoid(density, axis), axis)
    assert float(mass.detach()) == pytest.approx(1, abs=1e-4)


@every_density
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_draw_and_a_copy_of_it_have_one_density(name, dtype):
    """The flow knows the density of its draw, and finds that of a copy by its inverse."""
    posterior = family(name).to(dtype)
    q = posterior(torch.randn(5, posterior.num_outputs, dtype=dtype))
    z = q.rsample()
    known = q.log_prob(z)
    tolerance = 1e-4 if dtype == torch.float32 else 1e-10
    torch.testing.assert_close(q.log_prob(z.clone()), known, rtol=tolerance, atol=tolerance)


def test_the_flow_is_no_diagonal_normal():
    """Its dimensions depend on one another: off-diagonal entries of the Jacobian of the draw."""
    posterior = family("flow").double()
    q = posterior(torch.randn(1, posterior.num_outputs, dtype=torch.float64))

    def push(z):
        for step in q.transforms:
            z = step._call(z)
        return z

    z = torch.randn(1, 3, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(push, z)[0, :, 0]
    off = jacobian - torch.diag(jacobian.diagonal())
    assert (off.abs() > 1e-6).sum() >= 4  # steps in both directions: both triangles
    assert (off.triu().abs() > 1e-6).any()
    assert (off.tril().abs() > 1e-6).any()


def test_the_closed_form_is_that_of_two_full_normals():
    posterior = family("full_covariance").double()
    q = posterior(torch.randn(5, posterior.num_outputs, dtype=torch.float64))
    loc, scale = torch.randn(3).double(), torch.rand(3).double() + 0.5
    ours = kl_divergence(q, dist.Normal(loc, scale).to_event(1))
    theirs = kl_divergence(q, dist.MultivariateNormal(loc, scale_tril=torch.diag(scale)))
    torch.testing.assert_close(ours, theirs)
    with pytest.raises(NotImplementedError):
        kl_divergence(q, dist.Laplace(loc, scale).to_event(1))


def test_the_estimator_takes_the_closed_form():
    """Its objective is the draw's distortion and the closed-form KL."""
    toy = LinearGaussian()
    x = torch.randn(4, 5, dtype=torch.float64)
    torch.manual_seed(2)
    loss = AnalyticKL().differentiable_loss(toy.model, toy.guide, x)
    torch.manual_seed(2)
    q = toy.posterior(x)
    distortion = -toy.likelihood(q.rsample()).log_prob(x).sum()
    torch.testing.assert_close(loss, distortion + kl_divergence(q, toy.prior()).sum())


class LinearGaussian(nn.Module):
    """x | z ~ N(Wz + b, σ² I) with the exact posterior as a full covariance of a linear encoder."""

    def __init__(self, x_dim: int = 5, latent_dim: int = 3, sigma: float = 0.7):
        super().__init__()
        self.sigma, self.latent_dim = sigma, latent_dim
        self.decoder = nn.Linear(latent_dim, x_dim).double()
        self.family = FullCovariance(latent_dim)
        self.encoder = nn.Linear(x_dim, self.family.num_outputs).double()
        with torch.no_grad():
            w, b = self.decoder.weight, self.decoder.bias
            precision = w.T @ w / sigma**2 + torch.eye(latent_dim).double()
            to_loc = torch.linalg.solve(precision, w.T) / sigma**2
            tril = torch.linalg.cholesky(torch.linalg.inv(precision))
            raw = torch.log(torch.expm1(tril.diagonal() - MIN_SCALE))
            rows, columns = self.family.rows, self.family.columns
            below = tril[rows, columns] / tril.diagonal()[rows] * latent_dim**0.5
            self.encoder.weight.zero_()
            self.encoder.weight[:latent_dim] = to_loc
            self.encoder.bias.copy_(torch.cat([-to_loc @ b, raw, below]))

    def prior(self):
        return dist.Normal(torch.zeros(self.latent_dim).double(), 1.0).to_event(1)

    def posterior(self, x):
        return self.family(self.encoder(x))

    def likelihood(self, z):
        return dist.Normal(self.decoder(z), self.sigma).to_event(1)

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", self.prior())
            return pyro.sample("x", self.likelihood(z), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.posterior(x))


def test_the_full_covariance_is_exact_for_a_linear_gaussian_model():
    """Every weight is the evidence, for every draw: no gap and no variance."""
    toy, x = LinearGaussian(), torch.randn(4, 5, dtype=torch.float64)
    w, b = toy.decoder.weight, toy.decoder.bias
    evidence = dist.LowRankMultivariateNormal(
        b, w, torch.full((5,), toy.sigma**2, dtype=torch.float64)
    ).log_prob(x)
    found = log_weights(toy, {"x": x}, 20)
    torch.testing.assert_close(found, evidence.detach().expand(20, 4))


def test_the_best_diagonal_leaves_the_known_gap():
    """(Σ log M_ii − log |M|) / 2 of the posterior's precision M: Lucas et al. 2019."""
    toy, x = LinearGaussian(), torch.randn(4, 5, dtype=torch.float64)
    with torch.no_grad():
        full = toy.posterior(x)
    precision = full.precision_matrix[0]
    best = dist.Normal(full.loc, precision.diagonal().rsqrt()).to_event(1)
    as_full = dist.MultivariateNormal(
        full.loc, scale_tril=torch.diag_embed(precision.diagonal().rsqrt().expand(4, 3))
    )
    gap = (precision.diagonal().log().sum() - torch.logdet(precision)) / 2
    torch.testing.assert_close(kl_divergence(as_full, full), gap.expand(4))
    draws = best.sample((200_000,))
    estimate = (best.log_prob(draws) - full.log_prob(draws)).mean()
    assert float(estimate) == pytest.approx(float(gap), abs=0.02)  # five standard errors


def test_the_support_of_all_is_the_real_vectors():
    for name in DENSITIES:
        posterior = family(name)
        q = posterior(torch.randn(2, posterior.num_outputs))
        assert q.support.is_discrete is False
        assert constraints.real_vector.check(q.sample()).all()


def test_errors():
    with pytest.raises(UnknownNameError, match="Did you mean 'full_covariance'"):
        make_posterior("full_covarianc", 3)
    with pytest.raises(ProgramError, match="nothing to condition on; use posterior='diagonal'"):
        make_posterior("flow", 1)
    with pytest.raises(ProgramError, match="latent_dim must be at least 1, got 0"):
        make_posterior("diagonal", 0)
    assert math.isfinite(MIN_SCALE)
