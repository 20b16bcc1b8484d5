"""Leave-one-out against its closed form in a Normal model."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from posterior_programs import Conjugate, SharedMean, normal_data
from programs import EnumeratedMixture, tiny_images, tiny_vae

from inference.diagnostics.check import CannotTell
from inference.diagnostics.loo import leave_one_out
from inference.diagnostics.weighing import weigh

pytestmark = pytest.mark.arviz1
X = normal_data(20, 1.2)


def off_by_errors(found, program):
    exact = program.leave_one_out(X).detach().double().numpy()
    return np.abs(found.elpd_of_data - exact) / found.error_of_data


def test_it_is_the_analytic_density_within_its_error():
    """20 data within 5 of their standard errors: a chance below 1e-4."""
    program = SharedMean(X)
    found = leave_one_out(program, {"x": X}, num_samples=1500)
    assert (off_by_errors(found, program) < 5).all()
    assert found.elpd == pytest.approx(float(program.leave_one_out(X).sum()), abs=0.1)
    [check] = found.checks()
    assert check.verdict == "ok"
    gained = float((program.given_all(X) - program.leave_one_out(X)).sum())
    assert found.effective_parameters == pytest.approx(gained, abs=0.1)
    assert list(found.figures()) == ["loo"]


def test_an_approximate_posterior_is_corrected():
    """A guide half a scale off and 1.3 times as wide gives the same densities; uncorrected weights
    would be off by many errors."""
    program = SharedMean(X, width=1.3, shift=0.8)
    found = leave_one_out(program, {"x": X}, num_samples=1500)
    assert (off_by_errors(found, program) < 5).all()
    weighed = weigh(program, {"x": X}, 500)
    as_if_exact = replace(weighed, joint=torch.zeros_like(weighed.joint))
    uncorrected = leave_one_out(program, {"x": X}, weighed=as_if_exact)
    assert (off_by_errors(uncorrected, program) > 5).any()


def test_local_latents_are_averaged_out_first():
    """With 32 inner draws from the exact conditional nothing is lost: as in the first test."""
    program = SharedMean(X, local=True)
    found = leave_one_out(program, {"x": X}, num_samples=300)
    assert (off_by_errors(found, program) < 5).all()
    assert "averaged out by 32 draws" in found.checks()[0].message


def test_an_outlier_is_told():
    x = torch.cat([X, torch.tensor([12.0])])
    [check] = leave_one_out(SharedMean(x), {"x": x}, num_samples=200).checks()
    assert check.verdict in ("warning", "bad")
    assert check.value > check.threshold


@pytest.mark.parametrize(
    ("program", "batch", "reason"),
    [
        (tiny_vae(), {"x": tiny_images(5)}, "the guide read them off that datum"),
        (Conjugate(), {"x": X}, "the guide read them off that datum"),
        (EnumeratedMixture(), {"x": X}, "leaving one out changes nothing"),
    ],
)
def test_local_latents_are_refused_with_the_reason(program, batch, reason):
    with pytest.raises(CannotTell, match=reason):
        leave_one_out(program, batch, num_samples=30)


def test_what_is_too_little_is_refused():
    with pytest.raises(CannotTell, match="too few"):
        leave_one_out(SharedMean(X), {"x": X}, num_samples=10)
    with pytest.raises(CannotTell, match="no others"):
        leave_one_out(SharedMean(X[:1]), {"x": X[:1]}, num_samples=30)
