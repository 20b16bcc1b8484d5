"""The mixture with a posterior over its parameters."""

from __future__ import annotations

import pytest
import torch
from mixture_helpers import blobs, closed_form, dense, started

from inference import evaluate, fit, fit_em
from inference.testing import check_program
from ppl_models import PplError
from ppl_models.bayesian_gmm import BayesianGaussianMixture


def at_em(x, num=3, **options):
    """EM's mixture, and a Bayesian one that starts there."""
    mixture = started(x, num, "full")
    fit_em(mixture, x, start="current", tolerance=1e-9)
    bayes = BayesianGaussianMixture(tuple(x.shape[1:]), num, **options).double()
    bayes.start_at(*dense(mixture), unit=x.reshape(len(x), -1).std(0))
    return mixture, bayes


@pytest.mark.parametrize(
    ("shape", "covariance"), [((2,), "full"), ((1, 1, 3), "diagonal"), ((), "full")]
)
def test_the_contract_holds(shape, covariance):
    check_program(BayesianGaussianMixture(shape, 3, covariance), {"x": torch.randn(6, *shape)})


def test_the_start_is_the_mixture_that_was_given():
    x = blobs(200)
    mixture, bayes = at_em(x)
    with torch.no_grad():
        for widths in bayes.log_widths.values():
            widths.fill_(-20.0)  # a guide that is a point
    found = evaluate(bayes, {"x": x}, num_data=200)
    evidence = float(closed_form(mixture, x).mean())
    assert -found.distortion - found.kl["z"] == pytest.approx(evidence, abs=1e-4)


def test_training_raises_the_bound_and_stays_below_the_likelihood():
    x = blobs(100)
    mixture, bayes = at_em(x)
    before = evaluate(bayes, {"x": x}, num_data=100, num_particles=20)
    options = {"epochs": 60, "batch_size": 80, "learning_rate": 0.03, "precision": "64"}
    fitted = fit(bayes, x, keep="last", progress=False, **options)
    after = evaluate(fitted.program, {"x": x}, num_data=100, num_particles=20)
    assert after.elbo > before.elbo
    assert after.elbo < float(closed_form(mixture, x).mean())
    assert after.iwae is None  # the parameters belong to all data


def test_minibatches_are_unbiased_for_the_whole():
    x = blobs(60)
    _, bayes = at_em(x)
    from inference.elbo import Enumerate
    from ppl_models import as_program

    program, estimator = as_program(bayes), Enumerate()

    def loss(part):
        torch.manual_seed(0)
        with program.scope():
            return estimator.differentiable_loss(
                program.run_model, program.run_guide, {"x": part}, num_data=60
            )

    torch.testing.assert_close(sum(loss(p) for p in x.split(20)) / 3, loss(x))


@pytest.mark.parametrize("site", ["weights", "locs", "scales", "corr"])
def test_the_guide_s_draws_have_the_prior_s_support(site):
    bayes = BayesianGaussianMixture((3,), 4)
    prior, drawn = bayes.prior(site), bayes.posterior(site).sample((10,))
    assert bool(prior.support.check(drawn).all())
    assert drawn.shape[1:] == torch.Size((4, *prior.event_shape) if site != "weights" else (4,))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_components": 1}, "at least 2 here, got 1"),
        ({"covariance": "tied"}, "full or diagonal here, got 'tied'"),
    ],
)
def test_what_it_does_not_take_is_refused(options, message):
    with pytest.raises(PplError, match=message):
        BayesianGaussianMixture((2,), **options)
