"""The mixture of Gaussians as a program: densities, gradients, posterior, criteria, refusals."""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from mixture_helpers import STRUCTURES, blobs, closed_form, dense, peer, random_mixture, started
from scipy import stats
from torch.autograd import grad

from inference.elbo import Enumerate
from inference.testing import check_program
from ppl_models import PplError, UnknownNameError, as_program
from ppl_models.distributions import Shaped
from ppl_models.gmm import GaussianMixture
from ppl_models.mixture_prior import ConjugatePrior

X = blobs(40)


def enumerated(mixture, x, num_data=None):
    """The estimator's loss as a tensor."""
    program = as_program(mixture)
    with program.scope():
        return Enumerate().differentiable_loss(
            program.run_model, program.run_guide, {"x": x}, num_data=num_data
        )


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("covariance", STRUCTURES)
def test_the_density_is_the_mixture_s(covariance, num):
    mixture = random_mixture(covariance, num)
    torch.testing.assert_close(mixture.log_prob(X).detach(), closed_form(mixture, X))
    assert float(-enumerated(mixture, X).detach()) == pytest.approx(
        float(closed_form(mixture, X).sum())
    )


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_the_gradient_of_enumeration_is_that_of_the_log_likelihood(covariance):
    mixture = random_mixture(covariance)
    parameters = list(mixture.parameters())
    ours = grad(-enumerated(mixture, X), parameters)
    theirs = grad(mixture.log_prob(X).sum(), parameters)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)


def test_minibatches_with_a_prior_add_up_to_the_whole():
    mixture = random_mixture("full", prior={"concentration": 2.0, "mean_strength": 0.5})
    whole = enumerated(mixture, X, num_data=40)
    parts = [enumerated(mixture, part, num_data=40) for part in X.split(10)]
    torch.testing.assert_close(sum(parts) / 4, whole)
    expected = -mixture.log_prob(X).sum() - mixture.log_prior()
    torch.testing.assert_close(whole, expected)


@pytest.mark.parametrize("covariance", STRUCTURES)
@pytest.mark.parametrize("zero_mean", [False, True])
def test_the_contract_holds(covariance, zero_mean):
    if zero_mean and covariance == "tied":
        return
    mixture = GaussianMixture((1, 2, 3), 4, covariance, zero_mean)
    check_program(mixture, {"x": torch.randn(6, 1, 2, 3)})


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_moments_that_are_set_are_those_that_it_has(covariance):
    mixture = random_mixture(covariance)
    twin = GaussianMixture((2,), 3, covariance).double()
    twin.set_unit(torch.tensor([3.0, 0.2]))
    twin.set_moments(*mixture.moments())
    for ours, theirs in zip(mixture.moments(), twin.moments(), strict=True):
        torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(mixture.log_prob(X), twin.log_prob(X))


def test_a_covariance_at_the_floor_survives_the_round_trip():
    mixture = GaussianMixture((2,), 1, min_scale=1e-3).double()
    thin = torch.tensor([[[1.0, 0.0], [0.0, 1e-6]]]).double()
    mixture.set_moments(torch.ones(1), torch.zeros(1, 2), thin)
    torch.testing.assert_close(mixture.moments().covariances, thin, rtol=1e-6, atol=1e-12)
    assert float(mixture.float().moments().covariances.double().det()) > 0.9e-6


def test_responsibilities_are_bayes_and_draws_follow_them():
    """20,000 draws: each frequency within 5 standard errors, chance below 1e-4 for six cells."""
    mixture = random_mixture("full")
    resp = mixture.responsibilities(X[:2]).detach()
    weights, locs, covariances = dense(mixture)
    joint = weights * dist.MultivariateNormal(locs, covariances).log_prob(X[:2, None]).exp()
    torch.testing.assert_close(resp, joint / joint.sum(-1, keepdim=True))
    draws = mixture.posterior(X[:2]).sample((20_000,))
    for k in range(3):
        seen = (draws == k).double().mean(0)
        assert bool(((seen - resp[:, k]).abs() <= 5 * 0.5 / math.sqrt(20_000)).all())


def test_draws_have_the_mixture_s_moments():
    """50,000 draws: means and variances within 6 standard errors."""
    mixture = random_mixture("full")
    x = mixture.sample(50_000)
    weights, locs, covariances = dense(mixture)
    mean = weights @ locs
    away = locs - mean
    cov = torch.einsum("k,kij->ij", weights, covariances + away[:, :, None] * away[:, None])
    assert bool(((x.mean(0) - mean).abs() < 6 * (cov.diagonal() / 50_000).sqrt()).all())
    fourth = (x - x.mean(0)).pow(4).mean(0)
    error = ((fourth - cov.diagonal().square()) / 50_000).sqrt()
    assert bool(((x.var(0) - cov.diagonal()).abs() < 6 * error).all())


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_criteria_are_scikit_learn_s(covariance):
    mixture = started(X, 3, covariance, min_scale=1e-3)
    theirs = peer(mixture, X.numpy(), 5)
    mixture.set_moments(
        torch.tensor(theirs.weights_),
        torch.tensor(theirs.means_),
        torch.tensor(theirs.covariances_),
    )
    assert mixture.num_free_parameters == theirs._n_parameters()
    assert mixture.bic(X) == pytest.approx(theirs.bic(X.numpy()), abs=1e-3)
    assert mixture.aic(X) == pytest.approx(theirs.aic(X.numpy()), abs=1e-3)


def test_a_zero_mean_mixture_has_fewer_parameters_and_no_locs():
    mixture = random_mixture("full", zero_mean=True)
    assert mixture.num_free_parameters == 2 + 3 * 3
    assert not bool(mixture.locs.any())
    torch.testing.assert_close(mixture.log_prob(-X), mixture.log_prob(X))


def test_a_shaped_distribution_integrates_to_one_and_keeps_the_moments():
    flat = dist.MultivariateNormal(torch.zeros(2).double(), torch.eye(2).double())
    shaped = Shaped(flat, (1, 2))
    side = torch.linspace(-8, 8, 161, dtype=torch.float64)
    grid = torch.cartesian_prod(side, side).reshape(-1, 1, 2)
    assert float(shaped.log_prob(grid).exp().sum() * 0.01) == pytest.approx(1, abs=1e-9)
    assert shaped.expand((3,)).sample((4,)).shape == (4, 3, 1, 2)
    assert shaped.mean.shape == shaped.variance.shape == (1, 2)
    single = Shaped(dist.MultivariateNormal(torch.zeros(1), torch.eye(1)), ())
    assert single.log_prob(torch.tensor([0.5, 1.0])).shape == (2,)
    assert single.support.check(torch.tensor(1.0))


def test_the_prior_is_dirichlet_and_normal_inverse_wishart():
    """Against scipy's densities, for every structure."""
    prior = ConjugatePrior(2.5, scale=0.7, df=5.0, mean=0.3, mean_strength=0.8)
    for covariance in STRUCTURES:
        mixture = random_mixture(covariance, prior=prior)
        weights, locs, covariances = (m.numpy() for m in mixture.moments())
        expected = stats.dirichlet([2.5] * 3).logpdf(weights)
        if covariance in ("full", "tied"):
            wishart = stats.invwishart(5.0, 0.7 * torch.eye(2).numpy())
            each = covariances if covariance == "full" else [covariances]
            expected += sum(wishart.logpdf(c) for c in each)
        else:
            expected += stats.invgamma(2.5, scale=0.35).logpdf(covariances).sum()
        _, _, full = dense(mixture)
        expected += sum(
            stats.multivariate_normal([0.3, 0.3], c / 0.8).logpdf(loc)
            for loc, c in zip(locs, full.numpy(), strict=True)
        )
        assert float(mixture.log_prior().detach()) == pytest.approx(expected), covariance


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_components": 0}, "at least 1, got 0"),
        ({"min_scale": 0.0}, "min_scale must be positive"),
        ({"zero_mean": True, "covariance": "tied"}, "all components the same"),
        ({"prior": {"concentration": 0.5}}, "at least 1 for a mode"),
        ({"prior": {"scale": -1.0}}, "scale must be positive"),
        ({"prior": {"df": 0.5}}, "df must be above 1 for 2 dimensions"),
        ({"prior": {"mean": (0.0,)}}, "mean has 1 entries for 2 dimensions"),
    ],
)
def test_what_makes_no_mixture_is_refused(options, message):
    with pytest.raises(PplError, match=message):
        GaussianMixture((2,), **options)


def test_an_unknown_structure_names_the_nearest():
    with pytest.raises(UnknownNameError, match="Did you mean 'diagonal'"):
        GaussianMixture((2,), covariance="diag")


def test_moments_that_are_none_are_refused():
    mixture = GaussianMixture((2,), 2)
    weights, locs, eye = torch.ones(2) / 2, torch.zeros(2, 2), torch.eye(2).expand(2, 2, 2)
    with pytest.raises(PplError, match=r"add up to 1; got shape .2,. with sum 2"):
        mixture.set_moments(2 * weights, locs, eye)
    with pytest.raises(PplError, match=r"locs of shape \(2, 2\), got \(2, 3\)"):
        mixture.set_moments(weights, torch.zeros(2, 3), eye)
    with pytest.raises(PplError, match=r"shape \(2, 2, 2\), got \(2, 2\)"):
        mixture.set_moments(weights, locs, torch.eye(2))
    with pytest.raises(PplError, match="component 0 is not positive definite"):
        mixture.set_moments(weights, locs, -eye)
    with pytest.raises(PplError, match=r"data of shape \(N, 2\), got \(4, 3\)"):
        mixture.log_prob(torch.zeros(4, 3))
    variances = GaussianMixture((2,), 2, "diagonal")
    with pytest.raises(PplError, match="not positive definite"):
        variances.set_moments(weights, locs, torch.zeros(2, 2))
