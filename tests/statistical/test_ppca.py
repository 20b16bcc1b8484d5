"""A linear-Gaussian VAE is probabilistic PCA: its optimum and its evidence are known exactly.

References:
    Tipping, Bishop: Probabilistic Principal Component Analysis, 1999.
    Lucas, Tucker, Grosse, Norouzi: Don't Blame the ELBO!, 2019, arXiv:1911.02469.
"""

from __future__ import annotations

import copy
import math

import pytest
import torch
from programs import LinearVAE

from inference import evaluate, fit, from_tensors

D, K = 10, 3


@pytest.fixture(scope="module")
def trained():
    torch.manual_seed(0)
    # Well-separated directions: the guide's axes turn towards nearly equal ones very slowly.
    w = torch.linalg.qr(torch.randn(D, K))[0] * torch.tensor([4.0, 2.0, 1.0])
    x = torch.randn(2000, K) @ w.T + 0.5 * torch.randn(2000, D) + torch.randn(D)
    return fit(
        LinearVAE(D, K),
        from_tensors(x),
        epochs=400,
        batch_size=400,
        learning_rate=0.03,
        lr_schedule="cosine",
        precision="64",
        keep="last",
        progress=False,
    )


def maximum_evidence(x: torch.Tensor) -> float:
    """Nats per datum at the maximum-likelihood solution, from the eigenvalues alone."""
    eigenvalues = torch.linalg.eigvalsh(torch.cov(x.T, correction=0)).flip(0)
    noise = eigenvalues[K:].mean()
    log_det = eigenvalues[:K].log().sum() + (D - K) * noise.log()
    return float(-0.5 * (D * math.log(2 * math.pi) + log_det + D))


@pytest.mark.slow
def test_training_reaches_the_evidence_of_probabilistic_pca(trained):
    """ELBO and evidence within 0.05 nats a datum; 200 draws a datum have se 0.003."""
    x = trained.data.train.tensors["x"]
    best = maximum_evidence(x)
    evidence = float(trained.program.owner.log_evidence(x).detach().mean())
    found = evaluate(trained.program, {"x": x}, num_particles=200)
    assert evidence == pytest.approx(best, abs=0.05)
    assert evidence <= best + 1e-6
    assert found.elbo == pytest.approx(best, abs=0.05)


@pytest.mark.slow
def test_iwae_agrees_with_the_exact_evidence(trained):
    """K = 1000 on held-out data: within four standard errors (luck: p < 7e-5), and se is small."""
    x = trained.data.test.tensors["x"]
    evidence = float(trained.program.owner.log_evidence(x).detach().mean())
    found = evaluate(trained.program, {"x": x}, num_particles=1000, seed=1)
    assert abs(found.iwae - evidence) < 4 * found.iwae_se
    assert found.iwae_se < 0.01
    assert found.elbo <= evidence + 4 * found.elbo_se


@pytest.mark.slow
def test_iwae_agrees_with_the_exact_evidence_under_a_poor_guide(trained):
    """A guide twice too wide: the ELBO is far off, and IWAE-1000 still has the evidence."""
    program = copy.deepcopy(trained.program)
    with torch.no_grad():
        program.owner.log_d += 2 * math.log(2)
    x = trained.data.test.tensors["x"]
    evidence = float(program.owner.log_evidence(x).detach().mean())
    found = evaluate(program, {"x": x}, num_particles=1000, seed=1)
    assert found.elbo < evidence - 1.0
    assert abs(found.iwae - evidence) < 4 * found.iwae_se
