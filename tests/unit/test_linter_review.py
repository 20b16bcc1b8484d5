"""What the linter must not take for something else. Shapes: B data."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from linter_programs import toy
from pyro import poutine

from inference.linter import lint
from ppl_models import Program

NORMAL = dist.Normal(0.0, 1.0)
X = torch.randn(6, generator=torch.Generator().manual_seed(0))
SEEN = torch.tensor([True, True, False, True, False, True])


def shared(event: int) -> Program:
    """Six numbers that all data share, an event or not."""

    def guide(x, *, num_data=None):
        return pyro.sample("w", dist.Normal(torch.zeros(6), 1.0).to_event(event))

    def model(x, *, num_data=None):
        w = guide(x)
        with pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x)), dim=-1):
            pyro.sample("x", dist.Normal(w.sum(), 1.0), obs=x)

    return Program(model, guide)


@pytest.mark.parametrize("num", [1, 5, 6, 7])
def test_a_batch_that_all_data_share_is_in_no_plate_however_many_data_there_are(num):
    x = {"x": torch.ones(num)}
    found = [(f.code, f.role, f.site) for f in lint(shared(0), x)]
    assert found == [("dimension-in-no-plate", role, "w") for role in ("guide", "model")]
    assert lint(shared(1), x) == []


@pytest.mark.parametrize("num", [1, 6])
def test_a_batch_of_data_beside_the_plate_is_told_as_such(num):
    def guide(x):
        pyro.sample("z", dist.Normal(x / 2, 1.0))

    found = lint(Program(toy().model, guide), {"x": X[:num]})
    assert {f.code for f in found} == {"no-data-plate", "plates-differ", "num-data-unknown"}


def observing(name: str, hidden: str | None) -> Program:
    """Data of which a part is observed by ``obs_mask``, or under another name."""

    def model(x, seen=None):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", NORMAL)
            pyro.sample(name, dist.Normal(z, 1.0), obs=x, obs_mask=seen)

    def guide(x, seen=None):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", NORMAL)
            if hidden is not None:
                with poutine.mask(mask=~seen):
                    pyro.sample(hidden, NORMAL)

    return Program(model, guide)


def test_what_pyro_makes_of_an_obs_mask_has_the_name_that_it_must_have():
    batch = {"x": X, "seen": SEEN}
    assert lint(observing("x", "x_unobserved"), batch) == []
    for program, given, site in (
        (observing("y", "y_unobserved"), batch, "y_observed"),
        (observing("x_observed", None), {"x": X}, "x_observed"),
    ):
        (found,) = lint(program, given)
        assert (found.code, found.site) == ("site-named-otherwise", site)
