"""What ``to_arviz`` cannot give is left out with a reason, or refused before all draws are made."""

from __future__ import annotations

import importlib

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import GaussianToy

from inference import to_arviz
from inference.diagnostics.groups import MemoryGroups, NetcdfGroups
from ppl_models import PplError, Program

pytestmark = pytest.mark.arviz1

FAR = torch.randn(6, generator=torch.Generator().manual_seed(0)) + 50


def program(latent="z", site="x", plate="data", inner=None, obs=lambda x: x):
    """N(0, 1) twice, with names of choice; its field is always ``x``."""

    def sample(rows, fn, values):
        with pyro.plate(plate, rows, dim=-1):
            z = pyro.sample(latent, fn)
            if values is not False:
                pyro.sample(site, dist.Normal(z, 1.0), obs=values)

    def more():
        if inner is not None:
            with pyro.plate(inner, 2, dim=-2):
                pyro.sample("w", dist.Normal(torch.zeros(3), 1.0).to_event(1))

    def model(x=None, *, size=1):
        more()
        sample(size if x is None else len(x), dist.Normal(0.0, 1.0), obs(x))

    def guide(x):
        more()
        sample(len(x), dist.Normal(x / 2, 0.7), False)

    return Program(model, guide)


def test_the_prior_predictive_of_a_site_named_otherwise_is_no_data():
    """Data about 50 under a prior of variance 2: a draw above 40 would be 28 deviations off."""
    found = to_arviz(program(site="obs"), {"x": FAR}, 3, prior_samples=5)
    drawn = found["prior_predictive"].obs.values
    assert drawn.shape == (1, 5, 6)
    assert np.abs(drawn).max() < 40
    np.testing.assert_array_equal(found["observed_data"].obs, FAR)


def test_a_prior_predictive_that_would_be_the_data_is_left_out_and_says_why():
    shifted = program(site="obs", obs=lambda x: None if x is None else x - 1)
    found = to_arviz(shifted, {"x": FAR}, 3, prior_samples=5)
    assert "prior_predictive" not in found
    assert "observes its site 'obs'" in found.attrs["prior_left_out"]


@pytest.mark.parametrize("kind", [MemoryGroups, NetcdfGroups])
def test_a_prior_that_cannot_be_written_is_no_model_without_a_prior(kind, tmp_path, monkeypatch):
    pytest.importorskip("h5netcdf")
    room = kind.space

    def full(self, group, *args):
        if group == "prior_predictive":
            raise OSError(28, "No space left on device")
        return room(self, group, *args)

    monkeypatch.setattr(kind, "space", full)
    out = tmp_path / "draws.nc" if kind is NetcdfGroups else None
    with pytest.raises(OSError, match="No space left"):
        to_arviz(GaussianToy(), torch.zeros(3), 2, prior_samples=2, out=out)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("failing", [True, False], ids=["failing draws", "whole draws"])
def test_a_file_that_cannot_be_closed_is_removed(failing, tmp_path, monkeypatch):
    h5netcdf = pytest.importorskip("h5netcdf")
    close = h5netcdf.File.close

    def full(self):
        close(self)
        raise OSError(28, "No space left on device")

    groups = NetcdfGroups(tmp_path / "draws.nc", {}, {})
    with pytest.raises(OSError, match="No space left"), groups:  # noqa: PT012
        groups.space("posterior", "z", ("draw",), (2,), np.dtype(float))
        monkeypatch.setattr(h5netcdf.File, "close", full)
        if failing:
            raise RuntimeError("out of luck")
    monkeypatch.undo()
    assert list(tmp_path.iterdir()) == []


NAMES = {
    "site draw": ({"latent": "draw"}, "a site of the program is named 'draw'.*rename the site"),
    "site chain": ({"site": "chain"}, "a site of the program is named 'chain'"),
    "site as dimension": (
        {"latent": "w_dim_0", "inner": "rows"},
        r"a site .* named 'w_dim_0'.*: chain, data, draw, rows, w_dim_0\)",
    ),
    "plate chain": ({"inner": "chain"}, "a plate .* named 'chain'.*rename the plate"),
    "data plate draw": ({"plate": "draw"}, "a plate of the program is named 'draw'"),
    "plate epoch": ({"inner": "epoch"}, "a plate of the program is named 'epoch'"),
}


@pytest.mark.parametrize("case", NAMES)
def test_names_that_dimensions_have_are_refused_after_the_first_draw(case, monkeypatch):
    names, message = NAMES[case]
    module = importlib.import_module("inference.diagnostics.to_arviz")
    monkeypatch.setattr(module, "_put_posterior", None)  # it is not come to
    with pytest.raises(PplError, match=message):
        to_arviz(program(**names), {"x": FAR}, 50)
