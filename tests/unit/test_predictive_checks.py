"""Posterior predictive checks with known p-values."""

from __future__ import annotations

from contextlib import nullcontext

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from posterior_programs import Conjugate, SharedMean, normal_data
from programs import WithoutLatents, tiny_images, tiny_vae
from pyro import poutine

from inference.diagnostics.check import CannotTell
from inference.diagnostics.predictive import predictive_check, two_sided
from inference.diagnostics.replicates import counted
from ppl_models import PplError, Program, UnknownNameError

X = normal_data(60)
ELEMENTS = torch.rand(60, 4, generator=torch.Generator().manual_seed(1)) < 0.6
ROWS = ELEMENTS[:, 0]


def masked(within=None, around=None, transform=None):
    """x | z ~ N(z, 1)⁴, z ~ N(3, 1), with masks; the guide is the posterior under ELEMENTS."""

    def model(x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(3.0, 1.0))
            fn = dist.Normal(z.unsqueeze(-1).expand(-1, 4), 1.0)
            fn = fn if within is None else fn.mask(within)
            fn = fn if transform is None else dist.TransformedDistribution(fn, [transform])
            with nullcontext() if around is None else poutine.mask(mask=around):
                pyro.sample("x", fn.to_event(1), obs=x)

    def guide(x):
        scale = (1 + ELEMENTS.sum(1)) ** -0.5
        with pyro.plate("data", len(x), dim=-1):
            loc = (3 + torch.where(ELEMENTS, x, 0.0).sum(1)) * scale**2
            pyro.sample("z", dist.Normal(loc, scale))

    return Program(model, guide)


def filled(hidden):
    """Data of the model (60, 4), with zeros where something is hidden."""
    noise = torch.randn(60, 5, generator=torch.Generator().manual_seed(2))
    return torch.where(hidden, 0.0, 3 + noise[:, :1] + noise[:, 1:])


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


def test_one_datum_has_no_spread():
    """Warnings of a spread of one number are errors here."""
    (one,) = predictive_check(Conjugate(), {"x": X[:1]}, num_samples=40).p_values
    assert one == "mean"
    found = predictive_check(tiny_vae("normal"), {"x": torch.rand(1, 1, 4, 4)}, num_samples=40)
    assert set(found.p_values) == {"mean", "sd", "smallest", "largest"}


MASKS = {
    "within": ({"within": ELEMENTS}, ELEMENTS),
    "around": ({"around": ROWS}, ROWS[:, None]),
    "both": ({"within": ELEMENTS[0], "around": ROWS}, ELEMENTS[0] & ROWS[:, None]),
    "neither": ({"within": True}, torch.tensor([[True]])),
}


@pytest.mark.parametrize("case", MASKS)
def test_masks_are_read_element_by_element(case):
    options, expected = MASKS[case]
    trace = poutine.trace(masked(**options).run_model).get_trace({"x": filled(~ELEMENTS)})
    site = trace.nodes["x"]
    found = counted(site)
    assert found.expand(60, 4).equal(expected.expand(60, 4))
    elsewhere = torch.zeros(60, 4, device="meta")
    unmasked = {"mask": None, "fn": dist.Normal(elsewhere, 1.0, validate_args=False)}
    assert counted(unmasked | {"value": elsewhere}).device == elsewhere.device


def test_what_a_mask_hides_is_not_compared():
    """By the exact posterior of what is seen: zeros are where 4 in 10 are hidden."""
    x = filled(~ELEMENTS)
    found = predictive_check(masked(within=ELEMENTS), {"x": x}, num_samples=60)
    assert all(check.verdict == "ok" for check in found.checks())
    as_seen = {"hidden": lambda data: (data[~ELEMENTS] != 0).sum()}
    none = predictive_check(masked(within=ELEMENTS), {"x": x}, statistics=as_seen, num_samples=40)
    assert (none.replicated["hidden"] == 0).all()
    unmasked = predictive_check(masked(), {"x": x}, num_samples=60)
    assert unmasked.p_values["mean"] < 0.05


def test_masks_that_cannot_be_read_or_hide_all_are_no_answer():
    double = dist.transforms.AffineTransform(0.0, 2.0)
    x = {"x": filled(~ELEMENTS)}
    with pytest.raises(CannotTell, match="a mask within TransformedDistribution does not tell"):
        predictive_check(masked(within=ELEMENTS, transform=double), x)
    assert predictive_check(masked(within=True, transform=double), x, num_samples=40)
    with pytest.raises(CannotTell, match="all of 'x' is masked"):
        predictive_check(masked(around=False), x)


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
