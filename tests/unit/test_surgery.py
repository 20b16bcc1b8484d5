"""ELBO surgery on a program whose live and dead dimensions are known."""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from posterior_programs import SharedMean, TwoCodes, normal_data
from programs import DiscreteVAE, EnumeratedMixture, of_the_catalog, tiny_images
from pyro.infer.autoguide import AutoNormal

from inference import evaluate
from inference.diagnostics.check import CannotTell
from inference.diagnostics.surgery import elbo_surgery
from ppl_models import PplError, Program

X = normal_data(300, math.sqrt(1.25))


def test_dead_dimensions_and_collapsed_sites_are_named():
    found = elbo_surgery(TwoCodes(), {"x": X})
    z, w = found.sites["z"], found.sites["w"]
    live = 0.5 * (0.2 + 0.64 * float(X.square().mean()) - 1 - math.log(0.2))
    np.testing.assert_allclose(z.kl, [live, 0, 0], atol=1e-5)
    np.testing.assert_array_equal(z.dead, [False, True, True])
    assert z.rate == pytest.approx(live, abs=1e-4)
    assert not z.collapsed
    assert w.collapsed
    checks = {c.name: c for c in found.checks()}
    assert checks["posterior_collapse[z]"].verdict == "warning"
    assert "2 of its 3 dimensions are dead" in checks["posterior_collapse[z]"].message
    assert checks["posterior_collapse[z]"].numbers["active_units"] == 1
    assert checks["posterior_collapse[w]"].verdict == "bad"
    assert checks["posterior_collapse[w]"].message.startswith("Posterior collapse: w has a rate of")
    assert "mutual_information[w]" not in checks
    (name, figure), *others = found.figures().items()
    assert (name, others) == ("latent_dimensions", [])
    collapsed = figure.axes[[axes.get_title()[0] for axes in figure.axes].index("w")]
    assert collapsed.get_ylim() == (0, 0.1)  # its bars do not fill the panel


def test_the_rate_is_mutual_information_and_the_aggregate():
    """q(z) is the prior here, so all of the rate is mutual information, ½ log 5 = 0.80."""
    found = elbo_surgery(TwoCodes(), {"x": X})
    checks = {c.name: c for c in found.checks()}
    told = checks["mutual_information[z]"]
    assert told.verdict == "ok"
    assert told.value == pytest.approx(0.5 * math.log(5), abs=0.25)
    assert checks["aggregated_posterior[z]"].verdict == "ok"


def test_a_mutual_information_at_its_cap_cannot_tell():
    class Sharp(TwoCodes):
        def __init__(self):
            super().__init__()
            self.scale.data.fill_(1e-3)

    checks = {c.name: c for c in elbo_surgery(Sharp(), {"x": X[:50]}).checks()}
    told = checks["mutual_information[z]"]
    assert told.verdict == "cannot tell"
    assert told.value == pytest.approx(math.log(50), abs=0.1)
    assert checks["aggregated_posterior[z]"].verdict == "warning"


def test_discrete_and_summed_out_latents():
    bits = elbo_surgery(DiscreteVAE(), {"x": tiny_images(40)}).sites["b"]
    assert bits.kl.shape == (3,)
    assert bits.rate == pytest.approx(bits.kl.sum())
    assert bits.aggregated is None
    assert "discrete" in bits.why_not
    one_hot = elbo_surgery(DiscreteVAE(one_hot=True), {"x": tiny_images(40)}).sites["b"]
    assert one_hot.kl is None
    summed = elbo_surgery(EnumeratedMixture(), {"x": X}).sites["c"]
    assert summed.kl is None
    assert summed.dead is None
    assert 0 < summed.rate < math.log(2)


def test_a_function_of_other_latents_has_not_collapsed():
    program, batch = of_the_catalog("vqvae")
    found = elbo_surgery(program, batch)
    assert list(found.sites) == ["codes"]
    assert not found.sites["codes"].collapsed


def test_a_guide_with_parameters_of_each_datum():
    def model(x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    found = elbo_surgery(Program(model, AutoNormal(model)), {"x": X[:9]})
    assert found.sites["z"].kl is None  # its density is that of an auxiliary draw
    assert found.checks()[0].name == "posterior_collapse[z]"


def test_levels_of_a_hierarchy():
    program, batch = of_the_catalog("ladder_vae")
    found = elbo_surgery(program, batch)
    by_draws = evaluate(program, batch, num_particles=200, compile=False).kl
    assert list(found.sites) == list(by_draws)
    for name, site in found.sites.items():
        assert site.kl is not None
        assert site.rate == pytest.approx(by_draws[name], abs=0.1)


def test_global_latents_have_no_codes():
    x = X[:10]
    with pytest.raises(CannotTell, match="global"):
        elbo_surgery(SharedMean(x), {"x": x})
    assert list(elbo_surgery(SharedMean(x, local=True), {"x": x}).sites) == ["z"]
    with pytest.raises(PplError, match="at least 3 data"):
        elbo_surgery(TwoCodes(), {"x": X[:2]})


def test_nothing_is_left_behind():
    program = TwoCodes()
    state = torch.get_rng_state()
    one, two = (elbo_surgery(program, {"x": X[:30]}, seed=4).sites["z"].rate for _ in range(2))
    assert one == two
    assert torch.equal(torch.get_rng_state(), state)
    assert program.scale.grad is None
    assert program.training


class Levels(torch.nn.Module):
    """x = z_1[0] + noise; in the other dimensions q(z_1 | z_2, x) is p(z_1 | z_2)."""

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z2 = pyro.sample("z_2", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            z1 = pyro.sample("z_1", dist.Normal(z2.expand(-1, 4), 0.5).to_event(1))
            return pyro.sample("x", dist.Normal(z1[:, 0], 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z2 = pyro.sample("z_2", dist.Normal(torch.zeros(len(x), 1), 1.0).to_event(1))
            seen = torch.cat([x.unsqueeze(-1), torch.zeros(len(x), 3)], -1)
            pyro.sample("z_1", dist.Normal(z2 + 0.5 * seen, 0.5).to_event(1))


def test_chance_of_the_level_above_is_no_activity():
    """KL is 0 in three dimensions, though their means move with z_2 from draw to draw."""
    found = elbo_surgery(Levels(), {"x": X}).sites["z_1"]
    np.testing.assert_allclose(found.kl[1:], 0.0, atol=1e-6)
    np.testing.assert_array_equal(found.dead, [False, True, True, True])
