"""Learned priors: what they are mixtures of, and what they refuse."""

from __future__ import annotations

import pytest
import torch
from programs import tiny_images

from inference import fit
from ppl_models import ProgramError, UnknownNameError
from ppl_models.likelihoods import positive
from ppl_models.vae import VAE


def tiny(prior: str, posterior: str = "diagonal", components: int = 4, dim: int = 2) -> VAE:
    return VAE((1, 4, 4), dim, (8,), "bernoulli", posterior, prior, components)


@pytest.mark.parametrize("prior", ["standard_normal", "mixture", "vamp"])
@pytest.mark.parametrize("posterior", ["diagonal", "full_covariance"])
def test_the_density_integrates_to_one(prior, posterior):
    p = tiny(prior, posterior).double().prior()
    axis = torch.linspace(-12, 12, 481, dtype=torch.float64)
    density = p.log_prob(torch.cartesian_prod(axis, axis)).exp().reshape(481, 481)
    mass = torch.trapezoid(torch.trapezoid(density, axis), axis)
    assert float(mass.detach()) == pytest.approx(1, abs=1e-4)


def test_the_vamp_prior_is_the_mean_of_posteriors_at_its_pseudo_inputs():
    vae, z = tiny("vamp"), torch.randn(5, 2)
    each = vae.posterior(vae.latent_prior.pseudo_inputs).log_prob(z.unsqueeze(1))  # (5, K)
    mean = each.logsumexp(1) - torch.tensor(4.0).log()
    torch.testing.assert_close(vae.prior().log_prob(z), mean)


def test_the_mixture_is_weighed_by_its_logits():
    vae, z = tiny("mixture"), torch.randn(5, 2)
    with torch.no_grad():
        vae.latent_prior.logits.copy_(torch.tensor([0.0, 100.0, 0.0, 0.0]))
    scale = positive(vae.latent_prior.raw_scales[1])
    chosen = torch.distributions.Normal(vae.latent_prior.locs[1], scale)
    torch.testing.assert_close(vae.prior().log_prob(z), chosen.log_prob(z).sum(-1))


@pytest.mark.parametrize("prior", ["mixture", "vamp"])
def test_a_learned_prior_is_learned(prior):
    vae = tiny(prior)
    before = [p.detach().clone() for p in vae.latent_prior.parameters()]
    fit(vae, tiny_images(60), epochs=2, progress=False)
    for old, new in zip(before, vae.latent_prior.parameters(), strict=True):
        assert not torch.equal(old, new)


def test_errors():
    with pytest.raises(UnknownNameError, match="Did you mean 'vamp'"):
        tiny("vampp")
    with pytest.raises(ProgramError, match="prior_components must be at least 1, got 0"):
        tiny("mixture", components=0)
    with pytest.raises(ProgramError, match="use posterior='diagonal' or 'full_covariance'"):
        tiny("vamp", "flow")
