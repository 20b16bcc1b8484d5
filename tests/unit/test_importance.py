"""Pareto k and evidence on programs whose posterior is known."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from posterior_programs import Conjugate, SharedMean, normal_data
from programs import (
    BernoulliToy,
    EnumeratedMixture,
    WithoutLatents,
    of_the_catalog,
    tiny_images,
    tiny_vae,
)
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal

from inference import evaluate
from inference.devices import rng_state
from inference.diagnostics.check import CannotTell
from inference.diagnostics.evidence import evidence
from inference.diagnostics.importance import importance_weights, k_threshold, smooth
from inference.diagnostics.weighing import weigh
from ppl_models import PplError, Program
from ppl_models.bayesian_gmm import BayesianGaussianMixture

pytestmark = pytest.mark.arviz1
X = normal_data(100, 1.2)


def test_the_exact_posterior_has_equal_weights_and_no_gap():
    found = importance_weights(Conjugate(), {"x": X}, num_samples=4000)
    assert found.pareto_k.shape == (100,)
    assert (found.pareto_k < 0.5).all()
    [check] = found.checks()
    assert check.verdict == "ok"
    assert "exact posterior" in check.message
    told = evidence(Conjugate(), {"x": X}, num_samples=50)
    torch.testing.assert_close(told.elbo, Conjugate().log_evidence(X).double(), rtol=0, atol=1e-5)
    assert [c.verdict for c in told.checks()] == ["ok", "ok"]


def test_a_guide_with_wider_tails_is_trusted():
    found = importance_weights(Conjugate(width=1.3), {"x": X}, num_samples=1000)
    assert np.isfinite(found.pareto_k).all()
    assert found.highest < 0.5


def test_a_third_of_the_scale_is_found_out():
    """The true k is 8/9; one estimate has a standard error of 0.14, the median of 100 one of 0.02,
    and the shrinkage of the estimator costs 0.1: the chance of failing by luck is below 1e-4."""
    found = importance_weights(Conjugate(width=1 / 3), {"x": X}, num_samples=4000)
    assert found.threshold == 0.7
    assert found.median > 0.7
    [check] = found.checks()
    assert check.verdict == "bad"
    assert check.value > check.threshold
    assert list(found.figures()) == ["pareto_k"]


def test_a_global_latent_is_weighed_jointly_over_all_data():
    x = X[:20]
    exact = SharedMean(x)
    weighed = weigh(exact, {"x": x}, 30)
    assert weighed.local is None
    assert weighed.global_sites == ("mu",)
    expected = exact.log_evidence(x).double().expand(30)
    torch.testing.assert_close(weighed.joint, expected, rtol=0, atol=1e-4)
    [check] = importance_weights(exact, {"x": x}, weighed=weighed).checks()
    assert (check.verdict, check.value) == ("ok", -math.inf)
    away = importance_weights(SharedMean(x, shift=12.0), {"x": x}, num_samples=200)
    assert away.joint
    assert away.pareto_k.shape == (1,)
    assert away.checks()[0].verdict == "bad"
    assert "uncertain" not in away.checks()[0].message
    near = replace(away, pareto_k=np.array([away.threshold + 0.1]))
    assert "k is uncertain by 0.2: give 4,000" in near.checks()[0].message
    assert "uncertain" not in replace(near, num_samples=4000).checks()[0].message
    assert away.figures() == {}


def test_local_latents_beside_a_global_one_are_averaged_out_within():
    """The bound of 200 draws with a guide of 1.2 times the scales is within its error of log p(x):
    5 standard errors; the bias of the inner 32 draws is below a hundredth of a nat a datum."""
    x = X[:10]
    program = SharedMean(x, width=1.2, local=True)
    weighed = weigh(program, {"x": x}, 200)
    assert (weighed.global_sites, weighed.local_sites) == (("mu",), ("z",))
    assert weighed.drawn_within == 32
    found = evidence(program, {"x": x}, weighed=weighed)
    assert found.joint
    off = float(found.iwae - program.log_evidence(x))
    assert abs(off) < 5 * float(found.iwae_se) + 0.1
    assert importance_weights(program, {"x": x}, weighed=weighed).checks()[0].verdict == "ok"


def test_latents_summed_out_beside_global_ones_are_in_the_joint_weight():
    x = torch.randn(15, 2, generator=torch.Generator().manual_seed(1))
    program = BayesianGaussianMixture((2,), 2)
    weighed = weigh(program, {"x": x}, 30)
    assert weighed.global_sites == ("weights", "locs", "scales", "corr")
    assert weighed.local_sites == ("z",)
    assert weighed.drawn_within == 0
    assert weighed.pointwise.shape == (15, 30)
    assert importance_weights(program, {"x": x}, weighed=weighed).pareto_k.shape == (1,)


def global_model(x=None, *, size=1):
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    with pyro.plate("data", size if x is None else len(x), dim=-1):
        return pyro.sample("x", dist.Normal(mu, 1.0), obs=x)


def test_an_autoguide_of_global_latents():
    """Its auxiliary draw, in unconstrained space, counts with the latent that it makes."""
    program = Program(global_model, AutoMultivariateNormal(global_model, init_scale=0.3))
    found = importance_weights(program, {"x": X[:10]}, num_samples=50)
    assert found.joint
    assert found.sites == ("mu",)


def test_the_elbo_is_that_of_evaluate():
    """The same program, other draws: within 5 standard errors of the difference."""
    program = Conjugate(width=1.2, shift=0.2)
    found = evidence(program, {"x": X}, num_samples=500)
    other = evaluate(program, {"x": X}, num_particles=500, seed=1, compile=False)
    assert float(found.elbo.mean()) == pytest.approx(other.elbo, abs=5 * 2**0.5 * other.elbo_se)
    assert float(found.iwae.mean()) == pytest.approx(other.iwae, abs=5 * 2**0.5 * other.iwae_se)
    assert float(found.ess.mean()) == pytest.approx(other.ess, abs=0.05)


def test_a_part_of_the_data_of_a_global_posterior_is_refused():
    x = X[:20]
    with pytest.raises(CannotTell, match="about all 100 data, and 20 were given"):
        importance_weights(SharedMean(X), {"x": x}, num_data=100)


def test_the_bound_is_within_its_error_of_the_evidence():
    """100 data, each within 5 of its standard errors: a chance below 1e-4."""
    program = Conjugate(width=1.3, shift=0.3)
    found = evidence(program, {"x": X}, num_samples=1000)
    off = (found.iwae - program.log_evidence(X)).abs()
    assert (off < 5 * found.iwae_se).all()
    assert (found.gap > 0).all()
    assert ((found.ess > 0) & (found.ess <= 1)).all()
    assert list(found.figures()) == ["evidence"]


def test_a_gap_and_few_draws_that_count_are_told():
    gap, ess = evidence(Conjugate(shift=6.0), {"x": X}, num_samples=100).checks()
    assert (gap.verdict, ess.verdict) == ("warning", "bad")
    assert "a few lucky draws" in ess.message


def test_a_vae_has_a_k_for_every_datum():
    found = importance_weights(tiny_vae(), {"x": tiny_images(12)}, num_samples=200)
    assert found.pareto_k.shape == (12,)
    assert found.sites == ("z",)


def local_model(x=None, *, size=1):
    with pyro.plate("data", size if x is None else len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        return pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def test_a_guide_with_parameters_of_each_datum_is_run_once_a_draw():
    program = Program(local_model, AutoNormal(local_model))
    found = importance_weights(program, {"x": X[:6]}, num_samples=60)
    assert found.pareto_k.shape == (6,)


def test_a_point_guide_has_no_weights():
    program = Program(local_model, AutoDelta(local_model))
    with pytest.raises(CannotTell, match="point at 'z'"):
        importance_weights(program, {"x": X[:6]})


def test_summed_out_latents_are_exact():
    [check] = importance_weights(EnumeratedMixture(), {"x": X}).checks()
    assert check.verdict == "ok"
    assert "sum over all states is exact" in check.message


def test_a_guide_that_is_certain_of_a_state_says_nothing_of_the_others():
    program, batch = of_the_catalog("vqvae")
    with pytest.raises(CannotTell, match="names one state of 'codes', 'z' with certainty"):
        importance_weights(program, batch)


def test_few_states_have_no_tail():
    [check] = importance_weights(BernoulliToy(), {"x": X}, num_samples=500).checks()
    assert check.verdict == "cannot tell"
    assert check.message.startswith("Cannot tell, because the weights take too few values")


def test_too_few_draws_are_refused():
    with pytest.raises(CannotTell, match="24 draws are too few"):
        importance_weights(Conjugate(), {"x": X}, num_samples=24)
    assert k_threshold(100) == pytest.approx(0.5)
    assert k_threshold(10**6) == 0.7


def test_nothing_latent_is_refused():
    with pytest.raises(PplError, match="no latent sites"):
        importance_weights(WithoutLatents(), {"x": X})


def test_weights_that_are_not_finite_are_told():
    normal = np.random.default_rng(0).normal(0.0, 0.3, (4, 400))
    normal[0, 0] = np.nan
    normal[1, :] = -np.inf
    normal[2, :40] = -np.inf  # impossible draws, and a weight of 0
    weights, found = smooth(normal)
    assert np.isposinf(found[:2]).all()
    assert np.isfinite(found[2:]).all()
    np.testing.assert_allclose(np.exp(weights[2:]).sum(1), 1.0)
    equal, k = smooth(np.full((1, 400), -3.0))
    assert k == -np.inf
    np.testing.assert_allclose(equal, -math.log(400))

    class Broken(Conjugate):
        def model(self, x=None, *, size=1):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.factor("odd", torch.where(x > 1, math.inf, 0.0))
                return pyro.sample("x", dist.Normal(z, self.s), obs=x)

    [check] = importance_weights(Broken(), {"x": X}, num_samples=100).checks()
    assert check.verdict == "bad"
    assert "not finite" in check.message
    with pytest.raises(CannotTell, match="not finite"):
        evidence(Broken(), {"x": X}, num_samples=100)


def test_sites_that_change_are_told():
    state = {"calls": 0}

    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", guide_fn(x))
            pyro.sample("x", dist.Normal(z.mean(-1), 1.0), obs=x)

    def guide_fn(x):
        return dist.Normal(torch.zeros(len(x), 1 + state["calls"]), 1.0).to_event(1)

    def guide(x):
        state["calls"] += 1
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", guide_fn(x))

    with pytest.raises(CannotTell, match="change from draw to draw"):
        importance_weights(Program(model, guide), {"x": X[:5]})


@pytest.mark.parametrize("program", [Conjugate(1.2), SharedMean(X[:8], 1.2)])
def test_nothing_is_left_behind(program):
    program.train()
    before = {k: v.clone() for k, v in program.state_dict().items()}
    torch.manual_seed(3)
    state = rng_state()["torch"]
    first = weigh(program, {"x": X[:8]}, 40, seed=1)
    assert torch.equal(rng_state()["torch"], state)
    again = weigh(program, {"x": X[:8]}, 40, seed=1)
    for one, two in ((first.local, again.local), (first.joint, again.joint)):
        assert one is None or torch.equal(one, two)
    assert all(torch.equal(v, before[k]) for k, v in program.state_dict().items())
    assert all(p.grad is None for p in program.parameters())
    assert program.training
    assert len(pyro.get_param_store()) == 0
