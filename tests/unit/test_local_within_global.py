"""Global latents above local ones: what the joint weights tell, and what is chance of local draws.

mu ~ N(0, 10), z_n ~ N(mu, 1), x_n ~ N(z_n, 1); the guide of mu is its exact posterior, that of
z_n is exact given mu but for a factor of its scale.
"""

from __future__ import annotations

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference.diagnostics.evidence import evidence
from inference.diagnostics.importance import importance_weights
from inference.diagnostics.loo import leave_one_out
from inference.diagnostics.weighing import weigh

NUM = 300


def of_scale(factor):
    def model(x):
        mu = pyro.sample("mu", dist.Normal(0.0, 10.0))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(mu, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    def guide(x):
        data = x[:NUM]  # repeated rows are of the same data
        variance = 1 / (1 / 100 + NUM / 2)
        mu = pyro.sample("mu", dist.Normal(variance * data.sum() / 2, variance**0.5))
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal((x + mu) / 2, factor * 0.5**0.5))

    return SimpleNamespace(model=model, guide=guide)


@pytest.fixture(scope="module")
def data():
    return {"x": 1 + 2**0.5 * torch.randn(NUM, generator=torch.Generator().manual_seed(77))}


def log_evidence(x):
    covariance = 2 * torch.eye(NUM) + 100
    normal = torch.distributions.MultivariateNormal(torch.zeros(NUM), covariance)
    return float(normal.log_prob(x))


def test_the_elbo_is_that_of_one_local_draw(data):
    """KL(q(z) ‖ posterior) = N (s² − 1 − 2 log s) / 2, here 24.8 nats of an IWAE bound's 0.3."""
    found = evidence(None, {}, weighed=weigh(of_scale(1.3), data, 200, seed=3))
    kl = NUM * (1.69 - 1 - 2 * torch.tensor(1.3).log()) / 2
    error = NUM**0.5 * 0.69 * 0.5**0.5 / (32 * 200) ** 0.5  # of Σ_n (1 − s²) e_n² / 2
    expected = log_evidence(data["x"]) - float(kl)
    assert float(found.elbo) == pytest.approx(expected, abs=5 * error + 0.02)
    assert float(found.iwae) <= log_evidence(data["x"]) + 0.5


def test_chance_of_local_draws_is_not_laid_to_the_global_guide(data):
    """On so many data it is most of what makes the joint weights differ."""
    weighed = weigh(of_scale(2.2), data, 200, seed=3)
    direct = weighed.joint.var()  # the guide of mu is exact, so all of it is such chance
    assert weighed.noise == pytest.approx(float(direct), rel=0.4)
    checks = [
        *importance_weights(None, {}, weighed=weighed).checks(),
        *leave_one_out(None, {}, weighed=weighed).checks(),
        *evidence(None, {}, weighed=weighed).checks(),
    ]
    verdicts = {c.name: c.verdict for c in checks}
    assert verdicts["pareto_k"] == verdicts["loo"] == "cannot tell", verdicts
    assert "chance of the 32 draws of z" in next(c.message for c in checks if c.name == "pareto_k")
    assert verdicts["evidence_gap"] == "warning"


def test_with_exact_local_posteriors_nothing_is_chance(data):
    weighed = weigh(of_scale(1.0), data, 100, seed=3)
    assert weighed.noise < 1e-3
    assert {c.verdict for c in importance_weights(None, {}, weighed=weighed).checks()} == {"ok"}
