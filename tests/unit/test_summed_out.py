"""Latents that the guide leaves out: exact weights, rate and distortion per datum."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from mixture_helpers import STRUCTURES, blobs, closed_form, random_mixture
from programs import EnumeratedMixture
from pyro import poutine
from torch import nn

from inference import evaluate, fit, log_weights
from inference.sampling import reconstruct
from inference.weights import site_densities
from ppl_models import Program, ProgramError, auxiliary_loss
from ppl_models.gmm import GaussianMixture

X = blobs(30)
PARALLEL = {"enumerate": "parallel"}


@pytest.mark.parametrize("num", [1, 3])
@pytest.mark.parametrize("covariance", STRUCTURES)
def test_the_weight_is_the_evidence_and_splits_under_the_exact_posterior(covariance, num):
    mixture = random_mixture(covariance, num)
    found = site_densities(mixture, {"x": X}, 4)
    evidence = closed_form(mixture, X)
    torch.testing.assert_close(found.log_weights, evidence.expand(4, -1))
    resp = mixture.responsibilities(X).detach()
    log_prior = mixture.logits.detach().log_softmax(0)
    rate = (resp * (resp.clamp_min(1e-300).log() - log_prior)).sum(-1)
    torch.testing.assert_close(found.kl["z"], rate.expand(4, -1))
    torch.testing.assert_close(found.distortion, (-evidence - rate).expand(4, -1))


def test_the_evaluation_is_exact_whatever_the_particles_and_chunks():
    mixture = random_mixture("full")
    one = evaluate(mixture, {"x": X})
    many = evaluate(mixture, {"x": X}, num_particles=7, max_rows=40)
    evidence = float(closed_form(mixture, X).mean())
    for found in (one, many):
        assert found.elbo == pytest.approx(evidence)
        assert found.iwae == pytest.approx(evidence)
        assert found.ess == pytest.approx(1.0)
        assert found.elbo == pytest.approx(-(found.rate + found.distortion))
    assert many.elbo_se == pytest.approx(0.0, abs=1e-9)


class Two(nn.Module):
    """a, b summed out (b depends on a), z drawn by the guide, x in three copies a datum."""

    p_a = torch.tensor([0.2, 0.8])
    p_b = torch.tensor([0.3, 0.6])

    def __init__(self):
        super().__init__()
        self.m = nn.Parameter(torch.tensor(0.3))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            a = pyro.sample("a", dist.Categorical(self.p_a), infer=PARALLEL)
            b = pyro.sample("b", dist.Bernoulli(self.p_b[a]), infer=PARALLEL)
            z = pyro.sample("z", dist.Normal(a.float(), 1.0))
            with pyro.plate("copies", 3, dim=-2):
                pyro.sample("x", dist.Normal(z + 2 * b, 0.5), obs=x.T)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.m * x.sum(-1), 1.0))

    def written_out(self, x, z):
        """log Σ_ab p(a, b, z, x) − log q(z)."""
        terms = []
        for a in (0, 1):
            for b in (0.0, 1.0):
                joint = self.p_a[a].log() + dist.Bernoulli(self.p_b[a]).log_prob(torch.tensor(b))
                joint = joint + dist.Normal(float(a), 1.0).log_prob(z)
                joint = joint + dist.Normal(z + 2 * b, 0.5).log_prob(x.T).sum(0)
                terms.append(joint)
        q = dist.Normal(self.m.detach() * x.sum(-1), 1.0)
        return torch.stack(terms).logsumexp(0) - q.log_prob(z)


@pytest.mark.parametrize("rows", [1, 6, 20])
def test_two_latents_a_nested_plate_and_a_drawn_one(rows):
    program, x = Two(), torch.randn(rows, 3)
    torch.manual_seed(4)
    found = log_weights(program, {"x": x})[0]
    torch.manual_seed(4)
    z = dist.Normal(program.m.detach() * x.sum(-1), 1.0).sample()
    torch.testing.assert_close(found, program.written_out(x, z), rtol=1e-4, atol=1e-4)


def test_the_bound_over_what_is_drawn_orders_as_it_must():
    """ELBO < IWAE ≤ evidence by quadrature over z; margins of many standard errors."""
    program, x = Two(), torch.randn(4, 3)
    found = evaluate(program, {"x": x}, num_particles=300)
    assert set(found.kl) == {"joint"}
    grid = torch.linspace(-12, 12, 4801)
    q = dist.Normal(program.m.detach() * x.sum(-1, keepdim=True), 1.0).log_prob(grid)  # (4, G)
    rows = [program.written_out(row.expand(len(grid), 3), grid) for row in x]
    evidence = (torch.stack(rows) + q).logsumexp(-1) + torch.log(grid[1] - grid[0])
    assert found.elbo + 5 * found.elbo_se < found.iwae
    assert found.iwae < float(evidence.mean()) + 5 * found.iwae_se
    assert found.iwae > float(evidence.mean()) - 0.2


def test_masks_count_and_scales_do_not():
    mixture = EnumeratedMixture()
    x, kept = torch.randn(5), torch.tensor([True, False, True, True, False])
    plain = log_weights(mixture, {"x": x})[0]
    scaled = Program(poutine.scale(mixture.model, 7.0), mixture.guide)
    torch.testing.assert_close(log_weights(scaled, {"x": x})[0], plain)
    masked = Program(lambda x: poutine.mask(mixture.model, kept)(x), lambda x: None)
    expected = torch.where(kept, plain, torch.tensor(0.0))
    torch.testing.assert_close(log_weights(masked, {"x": x})[0], expected)


def test_an_impossible_state_is_no_nan():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(torch.ones(2) / 2), infer=PARALLEL)
            pyro.sample("x", dist.Uniform(2.0 * c, 2.0 * c + 1, validate_args=False), obs=x)

    found = evaluate(Program(model, lambda x: None), {"x": torch.tensor([0.5, 2.5])})
    assert found.elbo == pytest.approx(-0.6931, abs=1e-3)
    assert found.rate == pytest.approx(0.6931, abs=1e-3)
    assert found.distortion == pytest.approx(0.0, abs=1e-3)


def test_a_latent_that_data_share_has_no_number_per_datum_but_trains():
    class Shared(nn.Module):
        def __init__(self):
            super().__init__()
            self.locs = nn.Parameter(torch.tensor([-0.5, 0.5]))

        def model(self, x):
            c = pyro.sample("c", dist.Categorical(torch.ones(2) / 2), infer=PARALLEL)
            with pyro.plate("data", len(x), dim=-1):
                pyro.sample("x", dist.Normal(self.locs[c], 1.0), obs=x)

        def guide(self, x): ...

    with pytest.raises(ProgramError, match="'c' stand outside the data plate 'data'"):
        evaluate(Shared(), {"x": torch.randn(5)})
    fitted = fit(Shared(), {"x": torch.randn(40)}, epochs=2, batch_size=40, progress=False)
    assert set(fitted.history[0]) & {"valid_rate"} == set()


def test_an_auxiliary_loss_over_the_states_is_refused():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            c = pyro.sample("c", dist.Categorical(torch.ones(2) / 2), infer=PARALLEL)
            auxiliary_loss("penalty", c.float())
            pyro.sample("x", dist.Normal(c.float(), 1.0), obs=x)

    with pytest.raises(ProgramError, match="'penalty' depends on the summed-out latent"):
        evaluate(Program(model, lambda x: None), {"x": torch.randn(5)})


def test_estimator_auto_sums_out_and_reports_the_split():
    fitted = fit(EnumeratedMixture(), {"x": torch.randn(100)}, epochs=2, progress=False)
    row = fitted.history[-1]
    assert row["valid_elbo"] == pytest.approx(-(row["valid_rate"] + row["valid_distortion"]))
    test = fitted.data.test.tensors["x"]
    exact = torch.stack([dist.Normal(m, 0.5).log_prob(test) for m in fitted.program.owner.locs])
    expected = float((exact.logsumexp(0) - torch.log(torch.tensor(2.0))).mean().detach())
    assert evaluate(fitted.program, {"x": test}).elbo == pytest.approx(expected, abs=1e-5)


def test_reconstructions_come_from_the_exact_posterior():
    """Components so far apart that the posterior is certain."""
    mixture = GaussianMixture((1, 1, 2), 2, "spherical")
    locs = torch.tensor([[10.0, 10.0], [-10.0, -10.0]])
    mixture.set_moments(torch.tensor([0.5, 0.5]), locs, torch.ones(2))
    x = torch.tensor([9.0, 11.0, -10.0, -9.0, 10.0, 10.0]).reshape(3, 1, 1, 2)
    again = reconstruct(mixture, {"x": x})["x"]
    torch.testing.assert_close(again, locs[torch.tensor([0, 1, 0])].reshape(3, 1, 1, 2))
