"""Draws of a posterior: shapes by plate, densities of the same runs, new data, blocks."""

from __future__ import annotations

from unittest.mock import patch

import pyro
import pyro.distributions as dist
import pytest
import torch
from mixture_helpers import blobs, random_mixture
from programs import (
    BernoulliToy,
    EnumeratedMixture,
    GaussianToy,
    GlobalMean,
    LinearVAE,
    WithoutLatents,
    tiny_images,
    tiny_vae,
)
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from inference import log_weights
from inference.diagnostics.check import CannotTell
from inference.diagnostics.draw_runs import Runs
from inference.diagnostics.draws import draw_blocks, posterior_draws
from inference.diagnostics.layout import as_whole
from ppl_models import PplError, Program, ProgramError
from ppl_models.bayesian_gmm import BayesianGaussianMixture


def way(program, batch):
    """How the program was run, after the first draws."""
    seen = []
    taken = Runs.block

    def block(self, count):
        found = taken(self, count)
        seen.append(self.way)
        return found

    with patch.object(Runs, "block", block):
        posterior_draws(program, batch, 4)
    return seen[-1]


def in_groups(x):
    """Global latents, some in a plate, and a local one in two plates beside."""
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("groups", 3, dim=-1):
        g = pyro.sample("g", dist.Normal(mu, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(x), dim=-1), pyro.plate("copies", 4, dim=-2):
        z = pyro.sample("z", dist.Normal(g.sum(), 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x.T)


PROGRAMS = {
    "vae": lambda: (tiny_vae(), {"x": tiny_images(5)}, "plate"),
    "global": lambda: (GlobalMean(), {"x": torch.randn(5)}, "plate"),
    "discrete": lambda: (BernoulliToy(), {"x": torch.randn(5)}, "plate"),
    "one datum": lambda: (tiny_vae(), {"x": tiny_images(1)}, "repeat"),
    "summed out": lambda: (EnumeratedMixture(), {"x": torch.randn(5)}, "repeat"),
    "global, summed out": lambda: (
        BayesianGaussianMixture((2,), 3),
        {"x": torch.randn(6, 2)},
        "single",
    ),
    "numbers for each datum": lambda: (
        Program(GaussianToy().model, AutoNormal(GaussianToy().model)),
        {"x": torch.randn(5)},
        "plate",
    ),
    "numbers for one datum": lambda: (
        Program(GaussianToy().model, AutoNormal(GaussianToy().model)),
        {"x": torch.randn(1)},
        "single",
    ),
    "joint guide": lambda: (
        Program(in_groups, AutoMultivariateNormal(in_groups)),
        {"x": torch.randn(5, 4)},
        "single",
    ),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_is_run_in_the_widest_way_and_its_draws_differ(name):
    torch.manual_seed(0)
    program, batch, expected = PROGRAMS[name]()
    assert way(program, batch) == expected
    size = len(batch["x"])
    draws = posterior_draws(program, batch, 9, max_rows=3 * size)
    assert draws.num_samples == 9
    for value in draws.local_latents.values():
        assert value.shape[:2] == (9, size)
    for value in [*draws.local_latents.values(), *draws.global_latents.values()]:
        if value.is_floating_point():
            assert len(value.reshape(9, -1)[:, -1].unique()) == 9
    assert draws.log_p.shape == draws.log_q.shape == draws.log_likelihood["x"].shape == (9, size)
    assert draws.global_log_p.shape == draws.global_log_q.shape == (9,)
    assert draws.predictive["x"].shape == (9, *draws.observed["x"].shape)
    assert not draws.log_p.requires_grad


def test_plates_name_the_axes_and_auxiliary_sites_are_left_out():
    program = Program(in_groups, AutoNormal(in_groups))
    draws = posterior_draws(program, {"x": torch.randn(5, 4)}, 3)
    assert {k: tuple(v.shape) for k, v in draws.global_latents.items()} == {
        "mu": (3,),
        "g": (3, 3, 2),
    }
    assert draws.local_latents["z"].shape == draws.predictive["x"].shape == (3, 5, 4)
    assert draws.dims == {
        "mu": (),
        "g": ("groups", "g_dim_0"),
        "z": ("copies",),
        "x": ("copies",),
    }
    assert draws.plate == "data"


@pytest.mark.parametrize("way", ["plate", "repeat", "single"])
def test_densities_are_those_of_the_same_draws(way):
    """Written out for the linear VAE, whatever the way that the runs are taken."""
    vae, x = LinearVAE(5, 2), torch.randn(6, 5)
    with patch.object(Runs, "_may_take_a_plate", lambda self, traces: way == "plate"):
        if way == "single":
            with patch.object(Runs, "_rows", _one_at_most(Runs._rows)):
                draws = posterior_draws(vae, {"x": x}, 8)
        else:
            draws = posterior_draws(vae, {"x": x}, 8)
    z = draws.local_latents["z"]
    likelihood = dist.Normal(vae.decoder(z), vae.log_sigma.exp()).to_event(1).log_prob(x)
    log_p = likelihood + dist.Normal(torch.zeros(2), 1.0).to_event(1).log_prob(z)
    log_q = dist.Normal(vae.encoder(x), (0.5 * vae.log_d).exp()).to_event(1).log_prob(z)
    torch.testing.assert_close(draws.log_likelihood["x"], likelihood.detach())
    torch.testing.assert_close(draws.log_p, log_p.detach())
    torch.testing.assert_close(draws.log_q, log_q.detach())
    torch.testing.assert_close(draws.observed["x"], x)


def test_densities_of_shared_latents_are_apart():
    """In the plate of draws too, of as many data as draws."""
    x = torch.tensor([1.0, 2.0, -1.0])
    draws = posterior_draws(GlobalMean(), {"x": x}, 4, num_data=100, max_rows=9)
    mu, standard = draws.global_latents["mu"], dist.Normal(0.0, 1.0)
    torch.testing.assert_close(draws.global_log_p, standard.log_prob(mu))
    torch.testing.assert_close(draws.global_log_q, standard.log_prob(mu))  # where the guide starts
    likelihood = dist.Normal(mu.unsqueeze(1), 1.0).log_prob(x)
    torch.testing.assert_close(draws.log_p, likelihood)
    assert not draws.log_q.any()


def _one_at_most(rows):
    def limited(self, count):
        if count > 1:
            raise RuntimeError("no repeated rows")
        return rows(self, count)

    return limited


def test_weights_are_the_engine_s_where_they_do_not_depend_on_the_draw():
    """Summed out, the draw of z leaves the weight as it is: the evidence, and the mixture's."""
    mixture, x = random_mixture("full"), blobs(12)
    draws = posterior_draws(mixture, {"x": x}, 5)
    torch.testing.assert_close(draws.log_weights, log_weights(mixture, {"x": x}, 5))
    torch.testing.assert_close(draws.log_likelihood["x"], log_weights(mixture, {"x": x}, 5))
    z = draws.local_latents["z"]
    resp = mixture.responsibilities(x).detach()
    assert z.dtype == torch.int64
    torch.testing.assert_close(draws.log_q, resp.log()[torch.arange(12), z])


def test_summed_out_latents_come_from_their_exact_posterior():
    """Of 4,000 draws of each of 3 data; within 5 standard errors, 6e-7 each to fail by luck."""
    mixture, x = EnumeratedMixture(), torch.tensor([-0.4, 0.1, 0.6])
    z = posterior_draws(mixture, {"x": x}, 4000, predictive=False).local_latents["c"]
    joint = dist.Normal(mixture.locs.detach(), 0.5).log_prob(x.unsqueeze(-1))
    expected = joint.softmax(-1)[:, 1]
    error = (expected * (1 - expected) / 4000).sqrt()
    assert bool(((z.double().mean(0) - expected).abs() < 5 * error).all())


def test_given_global_draws_the_summed_out_likelihood_is_the_mixture_density():
    bayes, x = BayesianGaussianMixture((2,), 3, "diagonal"), torch.randn(6, 2)
    draws = posterior_draws(bayes, {"x": x}, 3)
    locs, scales = draws.global_latents["locs"], draws.global_latents["scales"]
    fn = dist.Normal(locs.unsqueeze(1), scales.unsqueeze(1)).to_event(1)  # (3, 1, K)
    joint = fn.log_prob(x.unsqueeze(-2)) + draws.global_latents["weights"].log().unsqueeze(1)
    torch.testing.assert_close(draws.log_likelihood["x"], joint.logsumexp(-1), rtol=1e-4, atol=1e-4)
    assert draws.dims["locs"] == ("components", "locs_dim_0")


def test_predictive_draws_have_the_likelihood_s_moments():
    """x̃ | z ~ N(z + b, s²) of 2,000 draws; 5 standard errors, 1e-6 in all to fail by luck."""
    toy = GaussianToy()
    draws = posterior_draws(toy, {"x": torch.tensor([0.0, 2.0])}, 2000)
    noise = draws.predictive["x"] - draws.local_latents["z"] - toy.b.detach()
    assert float(noise.mean().abs()) < 5 * toy.s / 4000**0.5
    assert float((noise.var() / toy.s**2 - 1).abs()) < 5 * (2 / 4000) ** 0.5


def test_no_side_effects_and_the_same_draws_again():
    vae, batch = tiny_vae().train(), {"x": tiny_images(5)}
    before = torch.get_rng_state()
    state = {k: v.clone() for k, v in vae.state_dict().items()}
    blocks = draw_blocks(vae, batch, 7, max_rows=10, seed=3)
    sizes = []
    for block in blocks:
        assert vae.training
        assert torch.equal(torch.get_rng_state(), before)
        torch.manual_seed(5)  # whoever takes the blocks may draw between them
        before = torch.get_rng_state()
        sizes.append(block.num_samples)
    assert sizes == [1, 2, 2, 2]
    one, two = (posterior_draws(vae, batch, 7, max_rows=10, seed=3) for _ in range(2))
    assert torch.equal(one.log_p, two.log_p)
    assert not torch.equal(one.log_p, posterior_draws(vae, batch, 7, max_rows=10).log_p)
    assert len(pyro.get_param_store()) == 0
    assert all(torch.equal(v, state[k]) for k, v in vae.state_dict().items())
    assert all(p.grad is None for p in vae.parameters())


def test_only_what_is_asked_for_is_drawn():
    assert posterior_draws(tiny_vae(), {"x": tiny_images(3)}, 2, predictive=False).predictive == {}


def test_without_latents_there_is_nothing_to_draw():
    with pytest.raises(CannotTell, match="nothing is latent in WithoutLatents"):
        posterior_draws(WithoutLatents(), {"x": torch.randn(3)}, 2)
    with pytest.raises(PplError, match="num_samples must be a whole number of at least 1, got 0"):
        posterior_draws(tiny_vae(), {"x": tiny_images(3)}, 0)


def test_a_site_that_changes_its_shape_is_named_with_both():
    lengths = iter(range(2, 20))

    def model(x):
        length = next(lengths)
        pyro.sample("w", dist.Normal(torch.zeros(length), 1.0).to_event(1))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x)

    def guide(x):
        nonlocal lengths
        length = next(lengths)
        lengths = iter(range(length, 20))
        pyro.sample("w", dist.Normal(torch.zeros(length), 1.0).to_event(1))

    with pytest.raises(
        ProgramError, match=r"site 'w' .* is \(\d+,\) in the first.*but \(\d+,\) in"
    ):
        posterior_draws(Program(model, guide), {"x": torch.randn(3)}, 6)


@pytest.mark.parametrize(
    ("fn", "value", "dtype"),
    [
        (dist.Bernoulli(torch.full((2,), 0.5)).to_event(1), [0.0, 1.0], torch.int8),
        (dist.Bernoulli(torch.full((2,), 0.5)).to_event(1), [0.3, 1.0], torch.float32),
        (dist.OneHotCategorical(torch.ones(2)), [0.0, 1.0], torch.int8),
        (dist.Poisson(torch.ones(2)), [3.0, 500.0], torch.int64),
        (dist.Normal(torch.zeros(2), 1.0), [3.0, 5.0], torch.float32),
    ],
)
def test_whole_numbers_are_kept_as_such(fn, value, dtype):
    found = as_whole(torch.tensor(value), fn)
    assert found.dtype == dtype
    assert found.tolist() == pytest.approx(value)
