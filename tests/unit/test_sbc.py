"""Simulation-based calibration: exact posteriors pass, wrong ones are named.

The chance that an exact posterior fails a test at 1e-4 is 1e-4 by construction (exact bands); the
seeds are fixed.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import DiscreteVAE, GaussianToy, GlobalMean, LinearVAE, WithoutLatents, tiny_vae
from pyro.infer.autoguide import AutoNormal
from torch import nn

from inference.diagnostics.check import CannotTell
from inference.diagnostics.sbc import LOG_JOINT, simulation_based_calibration
from inference.diagnostics.uniformity import (
    chi_square_p_value,
    ecdf_band,
    ecdf_p_value,
    holm,
    shape_of,
    symmetry_p_value,
)
from ppl_models import Program
from ppl_models.cvae import CVAE
from ppl_models.errors import PplError
from ppl_models.program import as_program
from ppl_models.vae import VAE


class Conjugate(nn.Module):
    """z ~ N(0, 1), x | z ~ N(z, ½²), with the exact posterior shifted and scaled."""

    def __init__(self, shift=0.0, scale=1.0, *, prior=False):
        super().__init__()
        self.shift, self.scale, self.prior = shift, scale, prior
        self.anchor = nn.Parameter(torch.zeros(()))

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(self.anchor, 1.0))
            return pyro.sample("x", dist.Normal(z, 0.5), obs=x)

    def guide(self, x):
        sd = math.sqrt(0.2)
        with pyro.plate("data", len(x), dim=-1):
            if self.prior:
                pyro.sample("z", dist.Normal(1e-4 * x, 1.0))
            else:
                pyro.sample("z", dist.Normal(0.8 * x + self.shift * sd, self.scale * sd))


def p_values(program, **options):
    found = simulation_based_calibration(program, 500, 49, **options)
    return found, dict(zip(found.names, found.adjusted(), strict=True))


def verdicts(found):
    return {check.name: check.verdict for check in found.checks()}


def test_the_exact_posterior_has_uniform_ranks():
    found, adjusted = p_values(Conjugate())
    assert found.names == ("z", LOG_JOINT)
    assert found.ranks.shape == (500, 2)
    assert min(adjusted.values()) > 1e-4
    assert min(test.chi_square for test in found.tests) > 1e-4
    assert min(test.symmetry for test in found.tests) > 1e-4
    assert all(test.shapes == () for test in found.tests)
    assert set(verdicts(found).values()) == {"ok"}


@pytest.mark.parametrize(
    ("wrong", "shape"),
    [
        ({"shift": 0.7}, "low"),
        ({"shift": -0.7}, "high"),
        ({"scale": 0.5}, "U"),
        ({"scale": 2.0}, "hump"),
    ],
)
def test_a_wrong_posterior_is_rejected_and_its_shape_named(wrong, shape):
    found, adjusted = p_values(Conjugate(**wrong))
    assert adjusted["z"] < 1e-6
    assert found.tests[0].shapes[0] == shape
    symmetric = found.tests[0].symmetry
    assert symmetric < 1e-6 if "shift" in wrong else symmetric > 1e-4
    check = found.checks()[0]
    assert (check.name, check.verdict) == ("sbc[z]", "bad")
    assert "Holm over 2" in check.message
    assert ("too narrow" in check.message) == (shape == "U")


def test_the_prior_in_the_place_of_the_posterior_is_seen_by_the_log_joint_alone():
    _, adjusted = p_values(Conjugate(prior=True))
    assert adjusted["z"] > 1e-4
    assert adjusted[LOG_JOINT] < 1e-6


def linear(spoil=0.0):
    """Its exact posterior is diagonal: the columns of W are orthogonal."""
    program = LinearVAE(4, 2)
    with torch.no_grad():
        w = torch.tensor([[1.0, 0.5], [1.0, -0.5], [-1.0, 0.5], [-1.0, -0.5]])
        program.decoder.weight.copy_(w)
        program.decoder.bias.copy_(torch.arange(4.0))
        m = w.T @ w + torch.eye(2)
        v = torch.linalg.solve(m, w.T)
        v[1] += spoil
        program.encoder.weight.copy_(v)
        program.encoder.bias.copy_(-v @ torch.arange(4.0))
        program.log_d.copy_(-m.diagonal().log())
    return program


def test_dimensions_are_ranked_one_by_one():
    found, adjusted = p_values(linear())
    assert found.names == ("z[0]", "z[1]", LOG_JOINT)
    assert min(adjusted.values()) > 1e-4
    _, spoiled = p_values(linear(0.5))
    assert spoiled["z[0]"] > 1e-4
    assert spoiled["z[1]"] < 1e-6


def test_statistics_and_the_cap_on_dimensions():
    found, adjusted = p_values(
        linear(), statistics={"length": lambda z, batch: z["z"].norm(dim=-1)}, max_dims=1
    )
    assert found.names == ("z[0]", LOG_JOINT, "length")
    assert found.left_out == 1
    assert adjusted["length"] > 1e-4
    with pytest.raises(PplError, match="one number a row"):
        p_values(linear(), statistics={"wrong": lambda z, batch: z["z"]})
    with pytest.raises(PplError, match="another name"):
        p_values(linear(), statistics={LOG_JOINT: lambda z, batch: z["z"]})


class Bits(nn.Module):
    """b ~ Bernoulli(0.3), x | b ~ N(b, 1), with its exact posterior (or one of half the logit)."""

    def __init__(self, power=1.0):
        super().__init__()
        self.power = power

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            b = pyro.sample("b", dist.Bernoulli(0.3))
            return pyro.sample("x", dist.Normal(b, 1.0), obs=x)

    def guide(self, x):
        logits = self.power * (math.log(0.3 / 0.7) + x - 0.5)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("b", dist.Bernoulli(logits=logits))


def test_ties_of_discrete_latents_are_broken_at_random():
    found, adjusted = p_values(Bits())
    assert min(adjusted.values()) > 1e-4
    assert found.ranks[:, 0].max() > 40
    _, wrong = p_values(Bits(power=0.1))
    assert wrong["b"] < 1e-4


def test_labels_are_given_or_drawn():
    program = CVAE((1, 4, 4), 3, 2, (8,), "bernoulli")
    by_class = simulation_based_calibration(program, 60, 9, given={"y": torch.tensor([0, 1])})
    assert by_class.names == ("z[0]", "z[1]", LOG_JOINT)
    assert simulation_based_calibration(program, 60, 9).names == by_class.names


class Optional(Conjugate):
    """With Pyro's usual signature of a guide."""

    def guide(self, x=None):
        super().guide(x)


def test_a_field_with_a_default_is_given_to_a_guide_that_cannot_do_without():
    found, adjusted = p_values(Optional())
    assert found.names == ("z", LOG_JOINT)
    assert min(adjusted.values()) > 1e-4
    shifted, _ = p_values(Optional(shift=0.7))
    assert verdicts(shifted)["sbc[z]"] == "bad"


class Labelled(nn.Module):
    """y ~ Bernoulli(½), z ~ N(y, 1), x | z ~ N(z, 1), y known or not: sampled, or summed out."""

    def __init__(self, *, summed=False):
        super().__init__()
        self.summed = summed

    def model(self, x=None, y=None, *, size=1):
        infer = {"enumerate": "parallel"} if self.summed and y is None else {}
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            y = pyro.sample("y", dist.Bernoulli(0.5), obs=y, infer=infer)
            z = pyro.sample("z", dist.Normal(y, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(self, x=None, y=None):
        with pyro.plate("data", len(x), dim=-1):
            if y is None:
                probs = torch.sigmoid((x - 0.5) / 2)
                if self.summed:
                    locs = torch.stack([x / 2, (x + 1) / 2], -1)
                    weights = dist.Categorical(torch.stack([1 - probs, probs], -1))
                    both = dist.Normal(locs, 0.5**0.5)
                    pyro.sample("z", dist.MixtureSameFamily(weights, both))
                    return
                y = pyro.sample("y", dist.Bernoulli(probs))
            pyro.sample("z", dist.Normal((x + y) / 2, 0.5**0.5))


@pytest.mark.parametrize(
    ("summed", "ranked"), [(False, ("y", "z", LOG_JOINT)), (True, ("z", LOG_JOINT))]
)
def test_a_label_that_is_a_latent_where_it_is_not_given(summed, ranked):
    found, adjusted = p_values(Labelled(summed=summed))
    assert found.names == ranked
    assert min(adjusted.values()) > 1e-4


def test_a_vae_and_a_discrete_vae_run():
    assert simulation_based_calibration(tiny_vae(), 60, 9).ranks.max() <= 9
    assert simulation_based_calibration(DiscreteVAE(one_hot=True), 60, 9).names[:1] == ("b[0]",)


def auto():
    def model(x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    return Program(model, AutoNormal(model))


def fitted_rows():
    """A row of parameters for each of 12 data."""

    class Rows(Conjugate):
        def guide(self, x):
            loc = pyro.param("loc", lambda: 0.8 * x)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("z", dist.Normal(loc, 0.4))

    program = as_program(Rows())
    with program.scope():
        program.run_guide({"x": torch.zeros(12)})
    return program


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (fitted_rows, "Shape mismatch.*not amortized"),
        (GlobalMean, "outside the data plate.*NUTS"),
        (GaussianToy, "whatever the data"),
        (auto, "autoguide"),
        (lambda: VAE((1, 4, 4), 2, (8,), "bernoulli", posterior="point"), "a point"),
    ],
)
def test_what_it_cannot_tell(program, message):
    with pytest.raises(CannotTell, match=message):
        simulation_based_calibration(program(), 60, 9)


def test_bad_input():
    with pytest.raises(PplError, match="num_simulations"):
        simulation_based_calibration(Conjugate(), 10)
    with pytest.raises(PplError, match="size"):
        simulation_based_calibration(WithoutLatents(), 60)


def test_no_side_effects():
    program = tiny_vae().train()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in program.state_dict().items()}
    first = simulation_based_calibration(program, 60, 9, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    assert program.training
    assert all(torch.equal(v, state[k]) for k, v in program.state_dict().items())
    assert all(p.grad is None for p in program.parameters())
    assert len(pyro.get_param_store()) == 0
    again = simulation_based_calibration(program, 60, 9, seed=3)
    assert np.array_equal(first.ranks, again.ranks)


def test_figures():
    found, _ = p_values(Conjugate(scale=0.5))
    assert set(found.figures()) == {"sbc_ranks", "sbc_ecdf"}


def test_the_chance_to_leave_the_band_is_exact():
    """Against 4,000 simulations; the binomial standard error is 0.0034, so 5 of them 0.017."""
    rng = np.random.default_rng(0)
    num, draws, alpha = 60, 9, 0.05
    band = ecdf_band(num, draws, alpha)
    p, left = [], 0
    for _ in range(4000):
        ranks = rng.integers(0, draws + 1, num)
        share = np.cumsum(np.bincount(ranks, minlength=draws + 1))[:-1] / num
        out = bool(((share < band.low) | (share > band.high)).any())
        left += out
        if len(p) < 400:
            p.append(ecdf_p_value(ranks, draws))
            assert (p[-1] <= alpha) == out
    assert 0.02 < left / 4000 <= alpha + 0.017
    for level in (0.1, 0.3, 0.5):
        assert np.mean(np.array(p) <= level) <= level + 5 * math.sqrt(level * (1 - level) / 400)


def test_symmetry_is_tested_whatever_the_width():
    rng = np.random.default_rng(0)
    u = rng.beta(0.5, 0.5, 2000)
    ranks = (u * 50).astype(int)
    assert symmetry_p_value(ranks, 49) > 1e-4
    assert chi_square_p_value(ranks, 49) < 1e-6
    assert shape_of(ranks, 49) == ("U",)
    assert symmetry_p_value((rng.beta(1, 1.3, 2000) * 50).astype(int), 49) < 1e-4
    uniform = [symmetry_p_value(rng.integers(0, 50, 300), 49) for _ in range(300)]
    assert np.mean(np.array(uniform) < 0.1) < 0.1 + 5 * math.sqrt(0.09 / 300)


def test_holm():
    assert np.allclose(holm(np.array([0.01, 0.04, 0.03])), [0.03, 0.06, 0.06])
