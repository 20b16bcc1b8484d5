"""The guide against NUTS, where the posterior is known in closed form.

Seeds are fixed; tolerances are five Monte-Carlo standard errors or more.
"""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from posterior_programs import rows_of_parameters
from programs import BernoulliToy, EnumeratedMixture, GlobalMean
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from torch import nn
from torch.distributions import CorrCholeskyTransform

from inference import diagnose
from inference.diagnostics import nuts, potential
from inference.diagnostics.agreement import AgainstNuts, compare
from inference.diagnostics.check import CannotTell
from inference.diagnostics.nuts import FEW, against_nuts
from inference.diagnostics.potential import traced
from ppl_models import Program
from ppl_models.errors import PplError, UnknownNameError
from ppl_models.program import as_program

COVARIANCE = torch.tensor([[1.0, 0.8], [0.8, 1.0]])
FAST = {"num_samples": 150, "warmup": 60, "num_draws": 500}
LONGER = {"num_samples": 300, "warmup": 150, "num_draws": 2000}


class Correlated(nn.Module):
    """z ~ N(0, 2C), x | z ~ N(z, 2C): the posterior is N(x/2, C), correlated by 0.8."""

    def __init__(self, sd=None, beta=1.0):
        super().__init__()
        self.sd, self.beta = sd, beta
        self.anchor = nn.Parameter(torch.zeros(2))

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            with poutine.scale(scale=self.beta):
                z = pyro.sample("z", dist.MultivariateNormal(self.anchor, 2 * COVARIANCE))
            return pyro.sample("x", dist.MultivariateNormal(z, 2 * COVARIANCE), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1), poutine.scale(scale=self.beta):
            if self.sd is None:
                pyro.sample("z", dist.MultivariateNormal(x / 2, COVARIANCE))
            else:
                pyro.sample("z", dist.Normal(x / 2, self.sd).to_event(1))


def verdicts(found):
    return {check.name: check.verdict for check in found.checks()}


@pytest.mark.slow
def test_the_exact_posterior_agrees_and_beta_is_no_part_of_it():
    program = Correlated(beta=0.1).train()
    x = torch.randn(9, 2)
    before = torch.get_rng_state()
    found = against_nuts(program, {"x": x}, max_data=2, **LONGER)
    assert found.names == ("z[0, 0]", "z[0, 1]", "z[1, 0]", "z[1, 1]")
    se = float((1 / found.ess.min()).sqrt())
    assert torch.allclose(found.nuts_mean.float(), x[:2].flatten() / 2, atol=5 * se)
    assert torch.allclose(found.nuts_sd, torch.ones(4).double(), atol=5 * se)
    assert verdicts(found) == dict.fromkeys(("nuts_mean", "nuts_sd", "nuts_wasserstein"), "ok")
    assert torch.equal(torch.get_rng_state(), before)
    assert program.training
    assert all(p.grad is None and p.requires_grad for p in program.parameters())
    assert len(pyro.get_param_store()) == 0


@pytest.mark.slow
def test_mean_field_is_too_narrow():
    """Its optimum has the precision's diagonal: sd √(1 − 0.8²) = 0.6."""
    narrow = math.sqrt(1 - 0.8**2)
    found = against_nuts(Correlated(narrow), {"x": torch.randn(1, 2)}, **LONGER)
    assert torch.allclose(found.sd_ratio, torch.full((2,), narrow).double(), atol=0.12)
    # Of N(0, 1) and N(0, s²) the 1-Wasserstein distance is (1 − s) √(2/π).
    exact = (1 - narrow) * math.sqrt(2 / math.pi)
    assert torch.allclose(found.wasserstein, torch.full((2,), exact).double(), atol=0.2)
    assert verdicts(found)["nuts_sd"] != "ok"
    assert verdicts(found)["nuts_mean"] == "ok"
    assert "too narrow" in found.checks()[1].message
    assert set(found.figures()) == {"nuts"}


def test_a_global_latent_of_the_whole_batch():
    x = torch.randn(20) + 1
    program = Program(GlobalMean().model, GlobalMean().guide)
    found = against_nuts(program, {"x": x}, **FAST)
    assert found.names == ("mu",)
    assert float(found.nuts_mean) == pytest.approx(float(x.sum()) / 21, abs=0.1)
    assert float(found.nuts_sd) == pytest.approx(math.sqrt(1 / 21), rel=0.3)
    assert verdicts(found)["nuts_sd"] == "bad"  # the guide is where it starts, N(0, 1)
    with pytest.raises(PplError, match="Leave max_data out"):
        against_nuts(program, {"x": x}, max_data=3)
    with pytest.raises(CannotTell, match="about all 50 data, and 20 were given"):
        against_nuts(program, {"x": x}, num_data=50)


def test_the_size_of_the_data_set_says_nothing_of_how_many_data_are_compared():
    few = {"num_samples": 20, "warmup": 5, "num_draws": 20}
    data = {"x": torch.randn(12, 2)}
    found = diagnose(Correlated(), data, num_data=1000, checks="nuts", nuts=few)
    assert len(found.findings["nuts"].names) == 5 * 2


def mixture(x):
    loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
    with pyro.plate("data", len(x), dim=-1):
        c = pyro.sample("c", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
        pyro.sample("x", dist.Normal(loc + 4 * c, 1.0), obs=x)


def test_discrete_latents_are_summed_out():
    def guide(x):
        pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(0.3)), 0.5))

    x = torch.tensor([0.3, 4.1, -0.2, 3.8])
    found = against_nuts(Program(mixture, guide), {"x": x}, **FAST)
    grid = torch.linspace(-3, 4, 4001)
    parts = [dist.Normal(grid + 4 * c, 1.0).log_prob(x[:, None]) for c in (0.0, 1.0)]
    log_p = torch.logaddexp(*parts).sum(0) - grid**2 / 2
    p = (log_p - log_p.logsumexp(0)).exp()
    mean = float((p * grid).sum())
    assert float(found.nuts_mean) == pytest.approx(mean, abs=0.15)
    sd = float((p * (grid - mean) ** 2).sum().sqrt())
    assert float(found.nuts_sd) == pytest.approx(sd, rel=0.3)


def correlated_pair(x):
    """A Cholesky factor (continuous, without rsample) and the signs of two modes."""
    corr = pyro.sample("corr", dist.LKJCholesky(2, torch.tensor(1.0)))
    loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
    with pyro.plate("data", len(x), dim=-1):
        there = torch.stack([loc.abs(), loc.abs()], -1)
        pyro.sample("x", dist.MultivariateNormal(there, scale_tril=corr), obs=x)


def near_one_mode(x):
    free = dist.Normal(torch.zeros(1), 0.3).to_event(1)
    pyro.sample("corr", dist.TransformedDistribution(free, [CorrCholeskyTransform()]))
    pyro.sample("loc", dist.Normal(pyro.param("m", torch.tensor(3.0)), 0.2))


def test_correlations_are_moved_too_and_starts_choose_the_mode():
    x = dist.MultivariateNormal(torch.full((2,), 3.0), COVARIANCE).sample((30,))
    program = Program(correlated_pair, near_one_mode)
    found = against_nuts(program, {"x": x}, **FAST, starts="guide")
    # The first row of a Cholesky factor of correlations is (1, 0): nothing to compare.
    assert found.names == ("corr[1, 0]", "corr[1, 1]", "loc")
    assert float(found.nuts_mean[0]) == pytest.approx(0.8, abs=0.25)
    assert float(found.nuts_mean[2]) == pytest.approx(3.0, abs=0.9)  # five of its sd, 0.17
    assert bool(found.r_hat.isfinite().all())
    with pytest.raises(UnknownNameError, match="starts"):
        against_nuts(program, {"x": x}, starts="gide")


def test_an_autoguide_is_of_all_its_data():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    program = Program(model, AutoNormal(model))
    assert len(against_nuts(program, {"x": torch.randn(3)}, **FAST).names) == 3


def test_a_guide_with_a_row_of_parameters_for_each_datum_is_of_all_its_data():
    for size in (FEW + 1, 2 * FEW, FEW):  # a part, half, and all of which would do else
        program, data = rows_of_parameters(), {"x": torch.linspace(-3, 3, size)}
        found = against_nuts(program, data, num_samples=20, warmup=5, num_draws=200)
        assert len(found.names) == size
        # Five standard errors of 200 draws with sd √½.
        assert torch.allclose(found.guide_mean.float(), data["x"] / 2, atol=0.25)
        assert len(program.param("loc")) == size
    with pytest.raises(PplError, match="parameters for each of them"):
        against_nuts(program, data, max_data=2)


def test_the_guide_is_drawn_in_blocks(monkeypatch):
    monkeypatch.setattr(nuts, "rows_at_once", lambda batch: 9)
    program, rows = Correlated(), []
    guide = program.guide

    def watched(x):
        rows.append(len(x))
        guide(x)

    monkeypatch.setattr(program, "guide", watched)
    few = {"num_samples": 20, "warmup": 5, "num_draws": 50}
    found = against_nuts(program, {"x": torch.tensor([[-9.0, 9.0], [2.0, -2.0]])}, **few)
    assert max(rows) == 8
    assert found.guide_draws.shape == (50, 4)
    # Five standard errors of 50 draws with sd 1.
    means = torch.tensor([-4.5, 4.5, 1.0, -1.0]).double()
    assert torch.allclose(found.guide_mean, means, atol=0.71)


@pytest.mark.parametrize("program", [BernoulliToy(), EnumeratedMixture()])
def test_discrete_latents_alone_cannot_be_compared(program):
    with pytest.raises(CannotTell, match="no real-valued latent"):
        against_nuts(program, {"x": torch.randn(3)})


@pytest.mark.parametrize("of_site", [True, False])
def test_latents_that_a_mask_takes_out_cannot_be_drawn(of_site):
    def latent(loc, there):
        fn = dist.Normal(loc, 1.0)
        with poutine.mask(mask=there if of_site else True):
            return pyro.sample("z", fn if of_site else fn.mask(there))

    def model(x, there):
        with pyro.plate("data", len(x), dim=-1):
            z = latent(torch.zeros(len(x)), there)
            pyro.sample("x", dist.Normal(z, 1.0).mask(there), obs=x)

    def guide(x, there):
        with pyro.plate("data", len(x), dim=-1):
            latent(x / 2, there)

    data = {"x": torch.randn(3), "there": torch.tensor([True, True, False])}
    few = {"num_samples": 20, "warmup": 5, "num_draws": 20}
    with pytest.raises(CannotTell, match="a mask takes entries of the latent 'z' out"):
        against_nuts(Program(model, guide), data, **few)
    assert len(against_nuts(Program(model, guide), data, max_data=2, **few).names) == 2


def test_chains_that_disagree_cannot_tell():
    apart = torch.randn(2, 100, 1) + torch.tensor([0.0, 5.0]).reshape(2, 1, 1)
    found = compare(("z",), apart.double(), torch.randn(100, 1).double(), 0)
    assert isinstance(found, AgainstNuts)
    assert set(verdicts(found).values()) == {"cannot tell"}
    assert "R-hat" in found.checks()[0].message
    fine = torch.randn(2, 400, 1).double()
    assert compare(("z",), fine, torch.randn(100, 1).double(), 0).trouble is None
    assert "diverged" in compare(("z",), fine, torch.randn(100, 1).double(), 50).trouble


class WithParameters(nn.Module):
    """A parameter of a module and one of Pyro's, with a constraint, in model and guide."""

    def __init__(self):
        super().__init__()
        self.anchor = nn.Parameter(torch.tensor(0.7))

    def model(self, x):
        width = pyro.param("width", torch.tensor(1.5), constraint=dist.constraints.positive)
        mu = pyro.sample("mu", dist.Normal(self.anchor, width))
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(mu + 2 * c, 1.0), obs=x)

    def guide(self, x):
        pyro.sample("mu", dist.Normal(self.anchor, 0.4))


def traces_kept(monkeypatch):
    """Whether each chain's trace was taken, in order."""
    kept = []

    def watched(fn, start):
        found = traced(fn, start)
        kept.append(found is not fn)
        return found

    monkeypatch.setattr(potential, "traced", watched)
    return kept


def test_traced_chains_are_those_of_the_model_itself(monkeypatch):
    kept = traces_kept(monkeypatch)
    program, x = as_program(WithParameters()), torch.tensor([0.3, 2.1, -0.2, 1.8])
    few = {"num_samples": 20, "warmup": 4, "num_draws": 20, "starts": "guide"}
    found = {c: against_nuts(program, {"x": x}, **few, compile=c) for c in (True, False)}
    assert kept == [True, True]  # each chain traces for itself
    # A few steps: rounding grows along a trajectory, and is still small.
    assert torch.allclose(found[True].nuts_draws, found[False].nuts_draws, atol=1e-3)
    other = against_nuts(program, {"x": x + 1}, **few)  # nothing is left of the data before
    plain = against_nuts(program, {"x": x + 1}, **few, compile=False)
    assert torch.allclose(other.nuts_draws, plain.nuts_draws, atol=1e-3)
    assert not torch.allclose(other.nuts_mean, found[True].nuts_mean, atol=0.1)
    assert all(p.requires_grad for p in program.parameters())


def test_a_model_that_a_trace_would_change_is_left_as_it_is():
    def branching(point):
        return (point["a"] ** 2).sum() if float(point["a"][0]) > 1 else point["a"].exp().sum()

    def chance(point):
        return (point["a"] * torch.rand(2)).sum()

    def smooth(point):
        return (point["a"] ** 2).sum()

    start = {"a": torch.tensor([1.01, 2.0])}
    assert traced(branching, start) is branching
    assert traced(chance, start) is chance
    assert traced(smooth, start) is not smooth
