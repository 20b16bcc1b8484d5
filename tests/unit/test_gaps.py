"""Amortization gap and approximation gap, against the closed form of the linear VAE."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from posterior_programs import rows_of_parameters
from programs import BernoulliToy, EnumeratedMixture, GlobalMean, LinearVAE, tiny_images
from pyro.nn import PyroModule, pyro_method

from inference.diagnostics.check import CannotTell
from inference.diagnostics.gaps import inference_gaps
from ppl_models import Program
from ppl_models.vae import VAE

# Columns that are not orthogonal: the posterior is correlated, and a diagonal q falls short of it.
W = torch.tensor([[1.0, 0.8], [0.5, 1.0], [-0.5, 0.3], [0.2, -0.4]])


def linear(spoil=0.0, log_d=0.0):
    """W, V = M⁻¹Wᵀ + spoil, D = σ² diag(M)⁻¹ exp(log_d), σ = 1."""
    program = LinearVAE(4, 2)
    m = W.T @ W + torch.eye(2)
    with torch.no_grad():
        program.decoder.weight.copy_(W)
        program.decoder.bias.fill_(0.3)
        program.encoder.weight.copy_(torch.linalg.solve(m, W.T) + spoil)
        program.encoder.bias.copy_(-program.encoder.weight @ program.decoder.bias)
        program.log_d.copy_(log_d - m.diagonal().log())
    return program, m


def exact_elbo(program, x):
    """estimators.md, closed form 2, with σ = 1."""
    w, v, d = program.decoder.weight, program.encoder.weight, program.log_d.exp()
    r = x - program.decoder.bias
    loc = r @ v.T
    kl = 0.5 * (d.sum() + loc.square().sum(1) - 2 - d.log().sum())
    noise = ((w**2) @ d).sum()
    fit = -0.5 * (noise + (r - loc @ w.T).square().sum(1)) - 2 * torch.tensor(torch.pi * 2).log()
    return (fit - kl).detach()


@pytest.mark.parametrize("wrong", [{}, {"spoil": 0.3, "log_d": 1.0}])
def test_both_gaps_of_the_linear_vae_are_the_closed_forms(wrong):
    """Standard errors of the means are below 0.02 nats (asserted), tolerances five of them."""
    program, m = linear(**wrong)
    x = 2 * torch.randn(12, 4)
    found = inference_gaps(program, {"x": x}, num_draws=10_000, steps=200)
    approximation = 0.5 * (m.diagonal().log().sum() - torch.logdet(m))
    optimum, _ = linear()
    amortization = (exact_elbo(optimum, x) - exact_elbo(program, x)).mean()
    assert found.converged
    assert found.limits == ()
    assert max(found.amortization_se, found.approximation_se) < 0.02
    assert float(found.amortization.mean()) == pytest.approx(
        float(amortization), abs=5 * found.amortization_se + 2e-3
    )
    assert float(found.approximation.mean()) == pytest.approx(
        float(approximation), abs=5 * found.approximation_se + 2e-3
    )
    assert torch.allclose(found.log_evidence.float(), program.log_evidence(x).detach(), atol=0.2)
    verdicts = [check.verdict for check in found.checks()]
    assert verdicts == (["warning", "ok"] if wrong else ["ok", "ok"])
    assert set(found.figures()) == {"gaps"}


class TwoLevels(PyroModule):
    """z_1 ~ N(0, 1), z_2 ~ N(z_1, 1), x ~ N(z_2, 1), and the exact posterior, shifted."""

    def __init__(self, shift=0.0):
        super().__init__()
        self.shift = shift

    @pyro_method
    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            top = pyro.sample("z_1", dist.Normal(0.0, 1.0))
            z = pyro.sample("z_2", dist.Normal(top, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    @pyro_method
    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            top = pyro.sample("z_1", dist.Normal(x / 3 + self.shift, (2 / 3) ** 0.5))
            pyro.sample("z_2", dist.Normal((top + x) / 2, 0.5**0.5))


def test_a_hierarchy_keeps_its_dependence_and_says_so():
    x = torch.randn(6)
    found = inference_gaps(TwoLevels(shift=0.8), {"x": x}, num_draws=1000, steps=200)
    assert found.limits == ("'z_2' kept how its parameters depend on the latents before",)
    assert "at least" in found.checks()[0].message
    # The guide is exact but for the shift, whose KL is shift² / (2 · 2/3).
    assert torch.allclose(found.amortization, torch.tensor(0.48).double(), atol=0.35)
    assert float(found.amortization.mean()) == pytest.approx(0.48, abs=0.1)
    assert float(found.approximation.abs().max()) < 0.02


@pytest.mark.parametrize("family", ["diagonal", "full_covariance", "flow"])
def test_every_family_of_the_vae(family):
    program = VAE((1, 4, 4), 2, (8,), "bernoulli", posterior=family).train()
    before = torch.get_rng_state()
    found = inference_gaps(program, {"x": tiny_images(6)}, num_draws=50, steps=30)
    assert float(found.amortization.mean()) > 0
    assert bool(found.limits) == (family == "flow")
    assert torch.equal(torch.get_rng_state(), before)
    assert program.training
    assert all(p.grad is None and p.requires_grad for p in program.parameters())
    assert len(pyro.get_param_store()) == 0


@pytest.mark.parametrize(
    ("program", "message"),
    [
        (GlobalMean(), "outside the data plate"),
        (BernoulliToy(), "not reparameterized"),
        (EnumeratedMixture(), "samples nothing"),
    ],
)
def test_what_it_cannot_tell(program, message):
    with pytest.raises(CannotTell, match=message):
        inference_gaps(program, {"x": torch.randn(5)})


def test_a_point_guide_has_no_gaps():
    program = VAE((1, 4, 4), 2, (8,), "bernoulli", posterior="point")
    with pytest.raises(CannotTell, match="a point"):
        inference_gaps(program, {"x": tiny_images(6)})


@pytest.mark.parametrize("logarithms", [False, True])
def test_a_log_normal_is_refitted_as_well_as_its_logarithm(logarithms):
    """log z ~ N(9, 1), x ~ N(log z, 1), the prior as guide: its gap is KL(prior | posterior)."""
    family = dist.LogNormal if logarithms else dist.Normal

    def model(x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", family(9.0, 1.0))
            return pyro.sample("x", dist.Normal(z.log() if logarithms else z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", family(9 + 0 * x, 1.0))

    x = 9 + torch.linspace(-2, 2, 6)
    found = inference_gaps(Program(model, guide), {"x": x}, num_draws=400, steps=60)
    prior, posterior = dist.Normal(9 + 0 * x, 1.0), dist.Normal((x + 9) / 2, 0.5**0.5)
    exact = torch.distributions.kl_divergence(prior, posterior)
    assert found.converged
    assert float(found.approximation.mean()) == pytest.approx(0, abs=0.05)
    error = 5 * found.amortization_se + 0.02
    assert float(found.amortization.mean()) == pytest.approx(float(exact.mean()), abs=error)


def test_a_guide_without_a_variance_is_refitted():
    def model(x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.StudentT(2.0, 0.0, 1.0))
            return pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.StudentT(2.0, x, 1.0))

    x = torch.linspace(-2, 2, 5)
    found = inference_gaps(Program(model, guide), {"x": x}, num_draws=100, steps=20)
    assert bool(found.refitted.isfinite().all())
    assert float(found.amortization.mean()) > 0


def test_a_guide_with_a_row_of_parameters_for_each_datum_is_not_amortized():
    with pytest.raises(CannotTell, match="parameters of its own for each datum"):
        inference_gaps(rows_of_parameters(), {"x": torch.randn(5)})
