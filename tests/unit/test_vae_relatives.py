"""The autoencoder is the lecture's, the beta-VAE's objective Higgins's, its ELBO nobody's."""

from __future__ import annotations

import math

import pytest
import torch
from programs import tiny_images
from torch.distributions import kl_divergence

from inference import evaluate, fit
from inference.elbo import ESTIMATORS
from inference.sampling import sample
from inference.vectorize import can_vectorize
from ppl_models import ProgramError, as_program
from ppl_models.autoencoder import Autoencoder
from ppl_models.beta_vae import BetaVAE
from ppl_models.conv_vae import ConvVAE
from ppl_models.posteriors import POSTERIORS
from ppl_models.vae import VAE

X = tiny_images(7, binary=False)


def loss_of(program, estimator: str = "analytic_kl") -> torch.Tensor:
    torch.manual_seed(3)
    return ESTIMATORS[estimator]().differentiable_loss(program.model, program.guide, X)


@pytest.mark.parametrize("estimator", ["analytic_kl", "pathwise"])
def test_the_autoencoders_loss_is_the_squared_error(estimator):
    """½‖x − x̂‖² and the constant (d/2) log 2π, value and gradient: no prior in it."""
    program = Autoencoder((1, 4, 4), 3, (8,))
    again = program.decoder(program.encoder(X.flatten(1))).reshape(X.shape)
    expected = 0.5 * (X - again).square().sum() + 0.5 * X.numel() * math.log(2 * math.pi)
    loss = loss_of(program, estimator)
    torch.testing.assert_close(loss, expected)
    ours = torch.autograd.grad(loss, list(program.parameters()))
    theirs = torch.autograd.grad(expected, list(program.parameters()))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_points_elbo_is_labelled_for_what_it_is():
    for program in (Autoencoder((1, 4, 4), 3, (8,)), VAE((1, 4, 4), 3, (8,), posterior="point")):
        result = evaluate(program, {"x": X}, num_particles=2, log_jacobian=-math.log(256))
        assert result.deterministic_guide
        assert "no bound on log p(x)" in result.note
        assert "no bound on log p(x)" in str(result)
        assert result.iwae is result.bits_per_dim is result.ess is None
    assert evaluate(VAE((1, 4, 4), 3, (8,)), {"x": X}).note is None


def test_random_codes_can_be_decoded():
    drawn = sample(Autoencoder((1, 4, 4), 3, (8,)), 500)
    assert drawn["x"].shape == (500, 1, 4, 4)
    assert float(drawn["z"].std()) == pytest.approx(1, abs=0.1)  # 1,500 numbers: five errors


def test_a_regularized_point_pays_for_the_prior():
    program = VAE((1, 4, 4), 3, (8,), "normal", posterior="point")
    z = program.encoder(X.flatten(1))
    distortion = -program.decode(z).log_prob(X).sum()
    torch.testing.assert_close(loss_of(program), distortion - program.prior().log_prob(z).sum())


@pytest.mark.parametrize("make", [BetaVAE, VAE, ConvVAE], ids=lambda c: c.__name__)
def test_beta_weighs_the_rate_in_training_alone(make):
    def built(beta):
        torch.manual_seed(0)
        options = {"channels": (3,)} if make is ConvVAE else {"hidden_dims": (8,)}
        return make((1, 4, 4), 3, beta=beta, **options)

    rate = kl_divergence(built(1.0).posterior(X), built(1.0).prior()).sum()
    torch.testing.assert_close(loss_of(built(4.0)), loss_of(built(1.0)) + 3 * rate)
    results = [evaluate(built(beta), {"x": X}, num_particles=5) for beta in (1.0, 4.0)]
    assert results[0].elbo == pytest.approx(results[1].elbo, rel=1e-6)


def test_a_higher_beta_buys_less_rate():
    x = tiny_images(200)
    rates = []
    for beta in (0.1, 4.0):
        torch.manual_seed(0)
        program = BetaVAE((1, 4, 4), 3, beta, (8,), "bernoulli")
        fit(program, x, epochs=60, learning_rate=0.01, keep="last", progress=False)
        rates.append(evaluate(program, {"x": x}, num_particles=20).rate)
    assert rates[0] > rates[1] + 1


@pytest.mark.parametrize("prior", ["standard_normal", "mixture"])
@pytest.mark.parametrize("posterior", POSTERIORS)
def test_particles_are_taken_in_one_pass(posterior, prior):
    vae = VAE((1, 4, 4), 3, (8,), "normal", posterior, prior, 4)
    assert can_vectorize(as_program(vae), {"x": X}, 7, plates=1)


@pytest.mark.parametrize("beta", [0.0, -1.0, float("nan")])
def test_beta_is_positive(beta):
    with pytest.raises(ProgramError, match=r"beta must be positive, got .*`autoencoder`"):
        BetaVAE(beta=beta)
