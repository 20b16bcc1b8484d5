"""Posterior predictive checks with known p-values."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from posterior_programs import Conjugate, SharedMean, normal_data
from programs import WithoutLatents, tiny_images, tiny_vae

from inference.diagnostics.check import CannotTell
from inference.diagnostics.predictive import predictive_check, two_sided
from ppl_models import PplError, UnknownNameError

X = normal_data(60)


def test_the_p_value_is_twice_the_smaller_tail():
    drawn = np.arange(99.0)
    assert two_sided(drawn, -1.0) == pytest.approx(2 / 100)
    assert two_sided(drawn, 9.0) == pytest.approx(2 * 11 / 100)  # 0 ... 9, and itself
    assert two_sided(drawn, 49.0) == 1.0
    assert two_sided(np.ones(99), 1.0) == 1.0


def test_data_of_the_model_pass_and_others_do_not():
    """A check of the data's own replicates has p-values about ½; 30 is 25 standard errors off."""
    program = SharedMean(X)
    passed = predictive_check(program, {"x": X}, num_samples=200)
    assert set(passed.p_values) == {"mean", "sd", "smallest", "largest"}
    assert all(check.verdict != "bad" for check in passed.checks())
    wild = torch.cat([X[1:], torch.tensor([30.0])])
    found = predictive_check(SharedMean(wild), {"x": wild}, num_samples=200)
    checks = {c.name: c for c in found.checks()}
    assert checks["predictive[largest]"].verdict == "bad"
    assert checks["predictive[largest]"].value == pytest.approx(2 / 201)
    assert checks["predictive[largest]"].numbers["observed"] == pytest.approx(30.0)
    assert list(found.figures()) == ["predictive"]


def test_a_users_statistic_is_asked():
    skew = {"skewness": lambda x: ((x - x.mean()) / x.std()).pow(3).mean()}
    lopsided = X.exp()
    program = Conjugate(s=1.0)
    found = predictive_check(program, {"x": lopsided}, statistics=skew, num_samples=100)
    assert list(found.p_values) == ["skewness"]
    assert found.replicated["skewness"].shape == (100,)
    expected = float(skew["skewness"](lopsided.double()))
    assert found.observed["skewness"] == pytest.approx(expected, rel=1e-4)


def test_bits_are_asked_what_makes_sense_of_them():
    found = predictive_check(tiny_vae(), {"x": tiny_images(20)}, num_samples=40)
    assert set(found.p_values) == {"mean", "sd", "sd of data's means"}


def test_what_cannot_be_asked_is_told():
    program = Conjugate()
    with pytest.raises(PplError, match=r"'odd' must be a function of a data set \(60,\)"):
        predictive_check(program, {"x": X}, statistics={"odd": lambda x: x})
    with pytest.raises(PplError, match="gave nan"):
        predictive_check(program, {"x": X}, statistics={"odd": lambda x: float("nan")})
    with pytest.raises(PplError, match="statistics is empty"):
        predictive_check(program, {"x": X}, statistics={})
    with pytest.raises(UnknownNameError, match="unknown observed field 'y'"):
        predictive_check(program, {"x": X}, field="y")
    with pytest.raises(PplError, match="num_samples must be a whole number of at least 40"):
        predictive_check(program, {"x": X}, num_samples=39)
    with pytest.raises(CannotTell, match="nothing can be replicated"):
        predictive_check(WithoutLatents(), {"x": X})


def test_nothing_is_left_behind():
    program = Conjugate()
    state = torch.get_rng_state()
    one, two = (predictive_check(program, {"x": X}, num_samples=40, seed=1) for _ in range(2))
    assert one.p_values == two.p_values
    assert torch.equal(torch.get_rng_state(), state)
