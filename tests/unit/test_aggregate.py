"""The aggregated posterior against closed forms."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import BernoulliToy, GlobalMean, tiny_images, tiny_vae
from torch import nn

from inference.aggregate import aggregated_posterior, mmd
from ppl_models import PplError, ProgramError, UnknownNameError
from ppl_models.autoencoder import Autoencoder
from ppl_models.vae import VAE


class Linear(nn.Module):
    """z ~ N(0, 1) and q(z | x) = N(slope x + shift, scale²): for x ~ N(0, 1), q(z) is Gaussian."""

    def __init__(self, slope: float, shift: float, scale: float):
        super().__init__()
        self.slope, self.shift, self.scale = slope, shift, scale

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.tensor(0.0), 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.slope * x + self.shift, self.scale))


X = torch.randn(1500, generator=torch.Generator().manual_seed(77))


def test_where_q_of_z_is_the_prior_nothing_is_found():
    found = aggregated_posterior(Linear(0.6, 0.0, 0.8), {"x": X})
    assert abs(found.mmd) < 2 * found.mmd_of_chance
    assert found.marginal_kl == pytest.approx(0, abs=0.02)
    assert found.gaussian_kl == pytest.approx(0, abs=0.02)


def test_numbers_of_a_gaussian_are_its_closed_forms():
    slope, shift, scale = 1.2, 0.5, 0.5
    found = aggregated_posterior(Linear(slope, shift, scale), {"x": X})
    variance = slope**2 + scale**2
    kl = 0.5 * (variance + shift**2 - 1 - math.log(variance))
    information = 0.5 * math.log(variance / scale**2)
    assert float(found.mean) == pytest.approx(shift, abs=0.15)  # four standard errors
    assert float(found.variance) == pytest.approx(variance, rel=0.15)
    assert found.marginal_kl == pytest.approx(kl, abs=0.15)
    assert found.gaussian_kl == pytest.approx(kl, abs=0.15)
    assert found.mutual_information == pytest.approx(information, abs=0.1)
    assert found.mmd > 10 * found.mmd_of_chance


def test_rate_is_information_and_marginal():
    """ELBO surgery, to equality: all three from the same draws."""
    vae, x = tiny_vae(), tiny_images(50)
    found = aggregated_posterior(vae, {"x": x}, seed=3)
    torch.manual_seed(0)
    z = found.draws.float()
    rate = (vae.posterior(x).log_prob(z) - vae.prior().log_prob(z)).mean().detach()
    assert found.marginal_kl + found.mutual_information == pytest.approx(float(rate), abs=1e-4)


@pytest.mark.parametrize(("posterior", "prior"), [("flow", "mixture"), ("full_covariance", "vamp")])
def test_it_takes_every_posterior_and_prior(posterior, prior):
    vae = VAE((1, 4, 4), 3, (8,), "bernoulli", posterior, prior, 4)
    found = aggregated_posterior(vae, {"x": tiny_images(20)})
    assert found.mutual_information <= math.log(20)
    assert "mutual information" in str(found)


def test_an_autoencoder_has_no_density_but_a_distance():
    found = aggregated_posterior(Autoencoder((1, 4, 4), 2, (8,)), {"x": tiny_images(50)})
    assert found.marginal_kl is None
    assert found.mutual_information is None
    assert found.mmd > found.mmd_of_chance  # an untrained encoder's codes are near 0
    assert "KL(q(z)" not in str(found)


def test_the_discrepancy_is_unbiased_and_its_chance_level_holds():
    """Of 100 pairs of sets from one distribution about 5 exceed it: 0 to 17 but in 1 of 10⁵."""
    torch.manual_seed(0)
    found = [mmd(torch.randn(40, 3), torch.randn(40, 3)) for _ in range(100)]
    values = torch.tensor([value for value, _ in found])
    assert abs(float(values.mean())) < 4 * float(values.std()) / 10
    assert 0 < sum(value > chance for value, chance in found) < 17


def test_errors():
    with pytest.raises(PplError, match="at least 3 data, got 2"):
        aggregated_posterior(tiny_vae(), {"x": tiny_images(2)})
    with pytest.raises(UnknownNameError, match="unknown latent site 'w'"):
        aggregated_posterior(tiny_vae(), {"x": tiny_images(5)}, site="w")
    with pytest.raises(ProgramError, match=r"'mu' has batch shape \(\)"):
        aggregated_posterior(GlobalMean(), {"x": X[:5]})
    with pytest.raises(ProgramError, match=r"'b' is discrete"):
        aggregated_posterior(BernoulliToy(), {"x": X[:5]})


def test_a_site_that_a_mask_hides_for_some_data_is_refused():
    class Ragged(Linear):
        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1), pyro.poutine.mask(mask=x > 0):
                pyro.sample("z", dist.Normal(x, 1.0))

    with pytest.raises(ProgramError, match="a mask hides site 'z' for some of the 1500 data"):
        aggregated_posterior(Ragged(1.0, 0.0, 1.0), {"x": X})


@pytest.mark.parametrize("seed", [0, 1])
def test_data_that_were_drawn_with_the_same_seed_share_no_draws(seed):
    """With torch.manual_seed(0) before the data, seed 0 would give the data's own latents."""
    torch.manual_seed(0)
    x = torch.randn(500)
    x = x + torch.randn(500)
    found = aggregated_posterior(Linear(0.5, 0.0, 0.5**0.5), {"x": x}, seed=seed)
    assert found.mutual_information == pytest.approx(0.5 * math.log(2), abs=0.1)
    assert found.mmd < found.mmd_of_chance
