"""The numbers that are reported."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import GaussianToy, GlobalMean, LinearVAE, tiny_images, tiny_vae

from inference import evaluate, log_weights
from ppl_models import PplError, Program


def test_numbers_are_those_of_the_log_weights():
    vae, batch = tiny_vae(), {"x": tiny_images(9)}
    found = evaluate(vae, batch, num_particles=8, seed=5)
    vae.eval()
    torch.manual_seed(5)
    weights = log_weights(vae, batch, 8).double()
    assert found.elbo == pytest.approx(float(weights.mean()), rel=1e-6)
    iwae = weights.logsumexp(0) - math.log(8)
    assert found.iwae == pytest.approx(float(iwae.mean()), rel=1e-6)
    normal = weights.softmax(0)
    assert found.ess == pytest.approx(float((1 / normal.square().sum(0) / 8).mean()), rel=1e-6)
    assert found.elbo == pytest.approx(-(found.rate + found.distortion), rel=1e-9)
    assert found.kl == {"z": pytest.approx(found.rate)}
    assert found.elbo_se == pytest.approx(float((weights.var(0) / 8).sum().sqrt()) / 9, rel=1e-6)


def test_chunks_of_particles_and_of_data_change_nothing_but_the_draws():
    """Same numbers within Monte-Carlo error: difference below 5 joint standard errors."""
    vae = GaussianToy(m=0.56, log_sigma=-0.5)  # a guide a little too wide: bounded weights
    batch = {"x": 1 + 0.1 * torch.randn(10)}
    whole = evaluate(vae, batch, num_particles=400)
    for rows in (7, 50, 900):
        parts = evaluate(vae, batch, num_particles=400, max_rows=rows)
        assert parts.num_data == 10
        assert abs(parts.elbo - whole.elbo) < 5 * math.hypot(parts.elbo_se, whole.elbo_se)
        assert abs(parts.iwae - whole.iwae) < 5 * math.hypot(parts.iwae_se, whole.iwae_se)
        assert parts.iwae_se == pytest.approx(whole.iwae_se, rel=0.3)


def test_standard_errors_are_those_of_replications():
    """Against the spread of 200 replications: relative error of a spread 5 %, bound 25 %."""
    vae, batch = LinearVAE(4, 2), {"x": torch.randn(5, 4)}
    runs = [evaluate(vae, batch, num_particles=100, seed=s) for s in range(200)]
    for number in ("elbo", "iwae"):
        spread = torch.tensor([getattr(r, number) for r in runs]).std()
        claimed = torch.tensor([getattr(r, f"{number}_se") for r in runs]).mean()
        assert float(claimed) == pytest.approx(float(spread), rel=0.25), number


def test_the_global_random_state_and_the_mode_are_left_alone():
    vae = tiny_vae().train()
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    evaluate(vae, {"x": tiny_images(4)})
    assert torch.equal(torch.rand(2), expected)
    assert vae.training


def test_one_particle_has_no_standard_error():
    found = evaluate(tiny_vae(), {"x": tiny_images(4)})
    assert found.elbo_se is None
    assert found.iwae_se is None
    assert found.iwae == pytest.approx(found.elbo)


class Uniform:
    """x uniform on [0, 1]^D: a dequantized byte has exactly eight bits."""

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Uniform(torch.zeros(6), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))


def test_bits_of_a_uniform_density_on_dequantized_bytes_are_eight():
    batch = {"x": torch.rand(5, 6)}
    found = evaluate(Uniform(), batch, log_jacobian=-math.log(256))
    assert found.bits_per_dim == pytest.approx(8.0, abs=1e-6)
    assert found.iwae_bits_per_dim == pytest.approx(8.0, abs=1e-6)
    assert evaluate(Uniform(), batch).bits_per_dim is None


def test_bits_of_binary_data():
    batch = {"x": tiny_images(5)}
    found = evaluate(tiny_vae(), batch, log_jacobian=0.0)
    assert found.bits_per_dim == pytest.approx(-found.elbo / (16 * math.log(2)))


def test_active_units_counts_dimensions_that_move_with_the_data():
    class TwoOfThree:
        def model(self, x=None, *, size=1):
            with pyro.plate("data", size if x is None else len(x), dim=-1):
                pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
                pyro.sample("x", dist.Normal(torch.zeros(2), 1.0).to_event(1), obs=x)

        def guide(self, x):
            # Standard deviations over the data: 1, 0.2 (variance 0.04) and 0.05 (0.0025).
            loc = torch.stack([x[:, 0], 0.2 * x[:, 1], 0.05 * x[:, 1]], -1)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(loc, 1.0).to_event(1))

    found = evaluate(TwoOfThree(), {"x": torch.randn(500, 2)}, num_particles=2)
    assert found.active_units == 2
    assert found.active_units_by_site == {"z": 2}


def test_global_latents_share_their_kl_and_have_no_iwae():
    found = evaluate(GlobalMean(), {"x": torch.randn(10)}, num_particles=50, num_data=1000)
    assert found.iwae is None
    assert found.ess is None
    assert abs(found.rate) < 0.01  # q is the prior here


def test_the_kl_of_a_global_latent_is_shared_by_the_training_data():
    """q = N(0, 2): KL = 0.807; 4,000 draws give it to 0.05."""
    mean = GlobalMean()
    guide = lambda x: pyro.sample("mu", dist.Normal(0.0, 2.0))  # noqa: E731
    kl = 0.5 * (4 - 1 - math.log(4))
    program = Program(mean.model, guide)
    for num_data, shares in ((None, 5), (100, 100)):
        found = evaluate(program, {"x": torch.randn(5)}, num_particles=4000, num_data=num_data)
        assert found.rate * shares == pytest.approx(kl, abs=0.25)


def test_a_point_guide_is_labelled_and_claims_no_bound():
    class Point:
        deterministic_guide = True

        def model(self, x=None, *, size=1):
            with pyro.plate("data", size if x is None else len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Delta(x / 2))

    x = torch.tensor([1.0, 3.0])
    found = evaluate(Point(), {"x": x}, num_particles=3)
    assert found.deterministic_guide
    assert found.iwae is None
    standard = dist.Normal(0.0, 1.0)
    at_point = standard.log_prob(x / 2) + standard.log_prob(x - x / 2)
    assert found.elbo == pytest.approx(float(at_point.mean()), rel=1e-6)


def test_the_evidence_bound_orders_elbo_iwae_evidence():
    """IWAE-500 lies between ELBO and evidence; margins are many standard errors wide."""
    toy = GaussianToy()
    x = torch.tensor([-1.0, 0.5, 2.0])
    found = evaluate(toy, {"x": x}, num_particles=500)
    evidence = float(toy.log_evidence(x).detach().mean())
    assert found.elbo + 5 * found.elbo_se < found.iwae
    assert found.iwae < evidence + 5 * found.iwae_se


def test_no_data_and_no_particles_are_refused():
    with pytest.raises(PplError, match="no data to evaluate"):
        evaluate(tiny_vae(), [])
    with pytest.raises(PplError, match="num_particles must be at least 1, got 0"):
        evaluate(tiny_vae(), {"x": tiny_images(2)}, num_particles=0)


def test_a_notebook_shows_one_number_a_line():
    pretty = pytest.importorskip("IPython.lib.pretty").pretty
    found = evaluate(GaussianToy(), {"x": torch.ones(4)})
    assert pretty(found) == str(found)
