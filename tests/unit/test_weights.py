"""Log weights of any program: per datum, unscaled, masked, whatever its plates and latents."""

from __future__ import annotations

from unittest.mock import patch

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import GaussianToy, GlobalMean, LinearVAE, tiny_images, tiny_vae
from pyro import poutine

from inference import evaluate, from_tensors, lint, log_weights
from inference.testing import check_program
from inference.weights import repeat, rows_at_once, site_densities
from ppl_models import PplError, Program, ProgramError, auxiliary_loss


def perfect_guide(toy: GaussianToy):
    """The exact posterior as the guide: every log weight is then the log evidence."""
    s2 = toy.s**2

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal((x - toy.b) / (1 + s2), (s2 / (1 + s2)) ** 0.5))

    return guide


def test_with_the_exact_posterior_every_weight_is_the_evidence():
    toy = GaussianToy()
    x = torch.tensor([-2.0, 0.1, 3.0])
    weights = log_weights(Program(toy.model, perfect_guide(toy)), {"x": x}, 5)
    assert weights.shape == (5, 3)
    torch.testing.assert_close(weights, toy.log_evidence(x).detach().expand(5, 3))


def test_scales_do_not_count_and_masks_do():
    toy = GaussianToy()
    x = torch.tensor([-2.0, 0.1, 3.0])
    guide = perfect_guide(toy)
    scaled = Program(poutine.scale(toy.model, 7.0), poutine.scale(guide, 0.1))
    torch.testing.assert_close(log_weights(scaled, {"x": x})[0], toy.log_evidence(x).detach())
    kept = torch.tensor([True, False, True])
    masked = Program(
        lambda x: poutine.mask(toy.model, kept)(x), lambda x: poutine.mask(guide, kept)(x)
    )
    expected = torch.where(kept, toy.log_evidence(x).detach(), torch.tensor(0.0))
    torch.testing.assert_close(log_weights(masked, {"x": x})[0], expected)


def test_chunks_hold_as_many_particles():
    vae, batch = tiny_vae(), {"x": tiny_images(7)}
    assert log_weights(vae, batch, 11, max_rows=20).shape == (11, 7)
    assert log_weights(vae, batch, 11, max_rows=3).shape == (11, 7)
    assert not log_weights(vae, batch, 2).requires_grad


def test_repeated_rows_are_particle_by_particle():
    rows = repeat({"x": torch.tensor([[1.0], [2.0]])}, 3)["x"]
    assert rows.flatten().tolist() == [1, 2, 1, 2, 1, 2]


def test_particles_of_one_datum_differ():
    weights = log_weights(tiny_vae(), {"x": tiny_images(4)}, 6)
    assert bool((weights.std(0) > 1e-3).all())


def test_global_latents_are_kept_apart():
    mean = GlobalMean()
    found = site_densities(mean, {"x": torch.tensor([1.0, 2.0])}, 4, num_data=100)
    assert found.global_sites == ["mu"]
    assert found.kl["mu"].shape == (4,)
    assert found.observed["x"].shape == (4, 2)
    assert len(found.observed["x"][:, 0].unique()) == 4  # each particle has its own draw
    torch.testing.assert_close(found.log_weights, found.observed["x"])


def nested(data_dim: int):
    """Three repeated measurements a datum, with the data plate on either side."""

    def plates(x):
        data = pyro.plate("data", len(x), dim=data_dim)
        return data, pyro.plate("repeats", 3, dim=-3 - data_dim)

    def model(x):
        data, repeats = plates(x)
        with data, repeats:
            obs = x if data_dim == -2 else x.T
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=obs)

    def guide(x):
        data, repeats = plates(x)
        with data, repeats:
            pyro.sample("z", dist.Normal(0.0, 1.0))

    return Program(model, guide)


@pytest.mark.parametrize("data_dim", [-1, -2])
def test_nested_plates_are_summed_to_the_datum(data_dim):
    x = torch.zeros(4, 3)
    x[2] = 10.0  # an outlier in the third datum alone
    weights = log_weights(nested(data_dim), {"x": x}, 2)
    assert weights.shape == (2, 4)
    assert weights.argmin(dim=1).tolist() == [2, 2]


def test_another_plate_name_is_found_by_its_size():
    toy = GaussianToy()

    def model(x):
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("rows", len(x), dim=-1):
            pyro.sample("z", dist.Normal(toy.m, 1.0))

    assert log_weights(Program(model, guide), {"x": torch.zeros(3)}, 2).shape == (2, 3)


def test_no_data_plate_is_an_error_that_shows_the_plate():
    def model(x):
        pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0).to_event(0))

    with pytest.raises(ProgramError, match=r"which plate holds the 3 data.*pyro.plate\('data'"):
        log_weights(
            Program(model, lambda x: pyro.sample("z", dist.Normal(0.0, 1.0))),
            {"x": torch.zeros(3)},
        )


def test_a_model_that_observes_nothing_is_refused():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ProgramError, match="observes nothing"):
        log_weights(Program(model, model), {"x": torch.zeros(3)})


def test_auxiliary_losses_are_no_part_of_the_weights():
    vae = tiny_vae()

    def model(x):
        with pyro.plate("penalized", len(x), dim=-1):
            auxiliary_loss("penalty", torch.full((len(x),), 2.5))
        return vae.model(x)

    program = Program(model, vae.guide, vae=vae)
    batch = {"x": tiny_images(5)}
    torch.manual_seed(0)
    with_penalty = site_densities(program, batch)
    torch.manual_seed(0)
    plain = site_densities(vae, batch)
    torch.testing.assert_close(with_penalty.log_weights, plain.log_weights)
    assert set(with_penalty.auxiliary) == {"penalty"}


def test_linear_vae_weights_equal_the_densities_written_out():
    vae = LinearVAE(5, 2)
    x = torch.randn(6, 5)
    torch.manual_seed(0)
    found = log_weights(vae, {"x": x})[0]
    torch.manual_seed(0)
    q = dist.Normal(vae.encoder(x), (0.5 * vae.log_d).exp()).to_event(1)
    z = q.sample()
    expected = (
        dist.Normal(torch.zeros(2), 1.0).to_event(1).log_prob(z)
        + dist.Normal(vae.decoder(z), vae.log_sigma.exp()).to_event(1).log_prob(x)
        - q.log_prob(z)
    )
    torch.testing.assert_close(found, expected.detach())


def test_large_data_are_run_in_smaller_blocks():
    """A row of a large image takes more memory: as many numbers at a time, not as many rows."""
    assert rows_at_once({"x": torch.zeros(2, 1, 28, 28)}) == 16_384
    assert rows_at_once({"y": torch.zeros(2), "x": torch.zeros(2, 3, 64, 64)}) == 2**24 // 12_288
    vae, x, rows = tiny_vae(), tiny_images(7), []
    vae.encoder.register_forward_hook(lambda module, inputs, output: rows.append(len(inputs[0])))
    with patch("inference.weights.MOST_NUMBERS", 5 * x[0].numel()):
        assert log_weights(vae, {"x": x[:2]}, 6).shape == (6, 2)
        assert evaluate(vae, {"x": x}, num_particles=6, compile=False).num_data == 7
    assert max(rows) == 5


@pytest.mark.parametrize("ask", [lint, check_program])
def test_a_data_set_is_no_batch(ask):
    with pytest.raises(PplError, match="got DataSet; of a data set it is next"):
        ask(tiny_vae(), from_tensors(tiny_images(20)))
