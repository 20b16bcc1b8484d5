"""What ``to_arviz`` gives is what ArviZ takes, on both of its lines."""

from __future__ import annotations

import json
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from mixture_helpers import blobs, random_mixture
from posterior_programs import Conjugate, SharedMean
from programs import DiscreteVAE, GaussianToy, WithoutLatents, tiny_images, tiny_vae
from pyro.infer.autoguide import AutoNormal

from inference import fit, from_tensors, to_arviz
from inference.diagnostics.arviz_lines import psis
from inference.diagnostics.check import CannotTell
from inference.diagnostics.draws import posterior_draws
from ppl_models import PplError, Program, as_program
from ppl_models.bayesian_gmm import BayesianGaussianMixture
from ppl_models.cvae import CVAE

pytestmark = pytest.mark.arviz1

OLDER = arviz.__version__.startswith("0.")
K_OF_ONE_LINE = Path(__file__).parents[1] / "golden" / "pareto_k_arviz_0.23.4.json"


def regression(x, y=None, *, size=1):
    """Global latents alone; plain functions."""
    w = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    s = pyro.sample("s", dist.HalfNormal(1.0))
    with pyro.plate("data", len(x), dim=-1):
        pyro.sample("y", dist.Normal(x @ w, s), obs=y)


def of_regression():
    torch.manual_seed(0)
    x = torch.randn(40, 2)
    y = x @ torch.tensor([1.0, -1.0]) + 0.3 * torch.randn(40)
    return Program(regression, AutoNormal(regression)), {"x": x, "y": y}


CASES = {
    "vae": lambda: (tiny_vae("normal"), {"x": tiny_images(6, binary=False)}),
    "mixture": lambda: (BayesianGaussianMixture((2,), 3, "diagonal"), {"x": blobs(30).float()}),
    "regression": of_regression,
    "bits": lambda: (DiscreteVAE(), {"x": tiny_images(6)}),
}


def groups(found) -> set[str]:
    return set(found.groups()) if OLDER else set(found.children)


@pytest.mark.parametrize("name", CASES)
def test_arviz_runs_on_it(name):
    """Summary, predictive plot and LOO, in whatever way the line at hand calls them."""
    program, batch = CASES[name]()
    found = to_arviz(program, batch, 60, prior_samples=10)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ArviZ's own: one chain, constant entries, colours
        table = arviz.summary(found)
        plot = arviz.plot_ppc if OLDER else arviz.plot_ppc_dist
        assert plot(found, num_pp_samples=5) if OLDER else plot(found, num_samples=5)
        if name != "bits":  # a likelihood that takes few values has no tail that could be fitted
            assert np.isfinite(arviz.loo(found).elpd_loo if OLDER else arviz.loo(found).elpd)
    latents = found["posterior"]
    count = sum(latents[v][0, 0].size for v in latents.data_vars)
    assert len(table) == count


def test_a_posterior_that_all_data_share_is_given_the_data_it_was_trained_on():
    x = torch.randn(40, generator=torch.Generator().manual_seed(0))
    data = from_tensors({"x": x}, fractions=(0.1, 0.2))
    shared = to_arviz(SharedMean(x), data, 10, prior_samples=0)
    own = to_arviz(Conjugate(), data, 10, prior_samples=0)
    assert shared["observed_data"]["x"].sizes["data"] == len(data.train) == 28
    assert own["observed_data"]["x"].sizes["data"] == len(data.test) == 8


def test_the_groups_of_a_fit():
    fitted = fit(tiny_vae(), tiny_images(60), epochs=3, progress=False)
    found = to_arviz(fitted, num_samples=20, prior_samples=5)
    assert groups(found) == {
        *("posterior", "posterior_predictive", "prior", "prior_predictive", "observed_data"),
        *("log_likelihood", "sample_stats", "fit"),
    }
    shapes = {
        ("posterior", "z"): {"chain": 1, "draw": 20, "data": 6, "z_dim_0": 3},
        ("posterior_predictive", "x"): {
            **{"chain": 1, "draw": 20, "data": 6},
            **{"x_dim_0": 1, "x_dim_1": 4, "x_dim_2": 4},
        },
        ("prior", "z"): {"chain": 1, "draw": 5, "data": 6, "z_dim_0": 3},
        ("observed_data", "x"): {"data": 6, "x_dim_0": 1, "x_dim_1": 4, "x_dim_2": 4},
        ("log_likelihood", "x"): {"chain": 1, "draw": 20, "data": 6},
        ("sample_stats", "log_q"): {"chain": 1, "draw": 20, "data": 6},
        ("fit", "valid_elbo"): {"epoch": 3},
    }
    for (group, name), sizes in shapes.items():
        assert dict(found[group][name].sizes) == sizes
    assert found["fit"].epoch.values.tolist() == [1, 2, 3]
    history = [row["valid_elbo"] for row in fitted.history]
    assert found["fit"].valid_elbo.values.tolist() == history
    np.testing.assert_array_equal(found["observed_data"].x, fitted.data.test.tensors["x"].numpy())
    assert found["posterior_predictive"].x.dtype == np.int8
    assert found.attrs["program"] == "VAE"
    assert found.attrs["num_data"] == 6


def test_the_draws_are_those_of_posterior_draws():
    vae, batch = tiny_vae(), {"x": tiny_images(5)}
    found = to_arviz(vae, batch, 12, seed=4, prior_samples=0)
    draws = posterior_draws(vae, batch, 12, seed=4)
    np.testing.assert_array_equal(found["posterior"].z[0], draws.local_latents["z"])
    np.testing.assert_array_equal(found["posterior_predictive"].x[0], draws.predictive["x"])
    weights = found["sample_stats"].log_p - found["sample_stats"].log_q
    np.testing.assert_array_equal(weights[0], draws.log_weights)


def test_plates_and_coordinates_have_their_names():
    program, batch = CASES["mixture"]()
    indices = np.arange(100, 130)
    coords = {"data": indices, "components": ["a", "b", "c"]}
    found = to_arviz(program, batch, 4, prior_samples=3, coords=coords)
    locs = found["posterior"].locs
    assert locs.dims == ("chain", "draw", "components", "locs_dim_0")
    assert found["prior"].locs.sel(components="b").shape == (1, 3, 2)
    assert found["posterior"].z.dtype == np.int64
    assert found["observed_data"].x.sel(data=105).shape == (2,)
    stats = found["sample_stats"]
    assert stats.log_p_global.dims == stats.log_q_global.dims == ("chain", "draw")


def test_the_prior_s_data_have_the_moments_of_the_prior():
    """x ~ N(b, 1 + s²) of 400 × 10 independent draws; 5 standard errors, 1e-6 to fail by luck."""
    toy = GaussianToy()
    found = to_arviz(toy, {"x": torch.zeros(10)}, 2, prior_samples=400, max_rows=50)
    x = found["prior_predictive"].x.values
    assert x.shape == (1, 400, 10)
    variance = 1 + toy.s**2
    assert abs(x.mean() - float(toy.b.detach())) < 5 * (variance / x.size) ** 0.5
    assert abs(x.var() / variance - 1) < 5 * (2 / x.size) ** 0.5
    assert abs(np.corrcoef(found["prior"].z.values.ravel(), x.ravel())[0, 1] ** 2 - 0.8) < 0.05


def test_given_fields_are_held_in_the_prior_predictive():
    cvae = CVAE((1, 4, 4), num_classes=3, latent_dim=2, hidden_dims=(4,), likelihood="bernoulli")
    batch = {"x": tiny_images(6), "y": torch.arange(6) % 3}
    found = to_arviz(cvae, batch, 3, prior_samples=4)
    assert found["prior_predictive"].x.shape == (1, 4, 6, 1, 4, 4)


def test_a_model_that_cannot_be_sampled_has_no_prior_and_says_why():
    toy = GaussianToy()

    def without_size(x):
        return toy.model(x)

    found = to_arviz(Program(without_size, toy.guide, toy=toy), {"x": torch.zeros(3)}, 4)
    assert not {"prior", "prior_predictive"} & groups(found)
    assert "no keyword-only option `size`" in found.attrs["prior_left_out"]
    assert "Trace Shapes" not in found.attrs["prior_left_out"]


def test_a_history_of_numbers_is_a_column():
    """As the result of ``fit_em`` has it."""
    program = as_program(random_mixture("full"))
    fitted = SimpleNamespace(program=program, history=[-3.0, -2.5, -2.25])
    found = to_arviz(fitted, blobs(30), 5, prior_samples=2)
    assert found["posterior"].z.dims == ("chain", "draw", "data")
    assert "log_p_global" not in found["sample_stats"]
    assert found["fit"].history.values.tolist() == fitted.history


def test_what_is_left_out_is_not_made():
    found = to_arviz(
        tiny_vae(),
        {"x": tiny_images(4)},
        3,
        leave_out=["posterior_predictive", "prior", "prior_predictive"],
    )
    assert groups(found) == {"posterior", "observed_data", "log_likelihood", "sample_stats"}


@pytest.mark.parametrize("given", ["batch", "array", "split", "data set"])
def test_data_come_in_every_form(given):
    data = from_tensors(tiny_images(50))
    forms = {
        "batch": dict(data.test.tensors),
        "array": data.test.tensors["x"].numpy(),
        "split": data.test,
        "data set": data,
    }
    found = to_arviz(tiny_vae(), forms[given], 2, prior_samples=0)
    np.testing.assert_array_equal(found["observed_data"].x, data.test.tensors["x"].numpy())


def test_a_file_is_written_block_by_block_and_reads_the_same(tmp_path):
    pytest.importorskip("h5netcdf")
    program, batch = CASES["mixture"]()
    path = tmp_path / "draws.nc"
    options = {"num_samples": 7, "prior_samples": 3, "max_rows": 60}
    coords = {"components": ["a", "b", "c"]}
    inside = to_arviz(program, batch, coords=coords, **options)
    written = to_arviz(program, batch, coords=coords, out=path, **options)
    assert groups(written) == groups(inside)
    for group in groups(inside):
        assert (
            written[group].to_dataset().identical(inside[group].to_dataset())
            if not OLDER
            else (written[group].load().equals(inside[group]))
        )
    assert written.attrs["program"] == "BayesianGaussianMixture"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert len(arviz.summary(arviz.from_netcdf(str(path)))) > 0
    with pytest.raises(PplError, match=r"draws.nc exists already; name another.*overwrite=True"):
        to_arviz(program, batch, out=path, **options)
    again = to_arviz(program, batch, out=path, overwrite=True, leave_out=["fit"], **options)
    assert again.attrs["num_data"] == 30
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_that_fails_leaves_the_old_file(tmp_path):
    pytest.importorskip("h5netcdf")
    runs = []

    class Fails(GaussianToy):
        def guide(self, x):
            runs.append(len(x))
            if len(runs) > 12:
                raise RuntimeError("out of luck")
            return super().guide(x)

    path = tmp_path / "draws.nc"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError, match="out of luck"):
        to_arviz(Fails(), torch.zeros(4), 60, max_rows=4, out=path, overwrite=True)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


BAD = {
    "no data": (lambda: (tiny_vae(), None), {}, "which data|needs the data"),
    "empty": (lambda: (tiny_vae(), {"x": tiny_images(0)}), {}, "one or more; got {'x': 0}"),
    "lengths": (
        lambda: (GaussianToy(), {"x": torch.zeros(3), "y": torch.zeros(2)}),
        {"num_samples": 1},
        None,
    ),
    "a number": (lambda: (tiny_vae(), 3), {}, "a split .* or a data set, got int"),
    "group": (lambda: (tiny_vae(), tiny_images(3)), {"leave_out": ["priors"]}, "mean 'prior"),
    "text": (lambda: (tiny_vae(), tiny_images(3)), {"leave_out": "prior"}, r"such as \['prior'\]"),
    "dimension": (lambda: (tiny_vae(), tiny_images(3)), {"coords": {"dat": [1]}}, "mean 'data'"),
    "coords": (
        lambda: (tiny_vae(), tiny_images(3)),
        {"coords": {"data": [1, 2]}},
        r"one entry for each of 3, got shape \(2,\)",
    ),
    "folder": (
        lambda: (tiny_vae(), tiny_images(3)),
        {"out": "nowhere/draws.nc"},
        "the folder nowhere of 'draws.nc' does not exist",
    ),
    "prior": (
        lambda: (tiny_vae(), tiny_images(3)),
        {"prior_samples": -1},
        "prior_samples must be a whole number of at least 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused(name):
    make, options, message = BAD[name]
    program, data = make()
    if message is None:  # a field that the program does not name is none of its business
        assert to_arviz(program, data, **options).attrs["num_data"] == 3
        return
    with pytest.raises(PplError, match=message):
        to_arviz(program, data, **options)


def test_nothing_latent_is_said():
    with pytest.raises(CannotTell, match="nothing is latent"):
        to_arviz(WithoutLatents(), torch.zeros(3))


def test_importing_the_engine_imports_no_arviz():
    code = "import inference, sys; print('arviz' in sys.modules, 'h5netcdf' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


def weights_for_psis() -> np.ndarray:
    """(5, 4000): log weights of N(0, 1) by guides of a third of its scale (k is 8/9) and of 1.2
    times it, and of weights with normal logarithms, light to very heavy ones; by numpy alone."""
    eps = np.random.default_rng(0).normal(size=(5, 4000))
    of_scale = [0.5 * e**2 * (1 - s**2) for e, s in zip(eps[:2], (1 / 3, 1.2), strict=True)]
    return np.concatenate([of_scale, eps[2:] * [[0.3], [1.5], [6.0]]])


def test_both_lines_agree_on_pareto_k():
    """Against what ArviZ 0.23.4 gives, written by ``python tests/unit/test_to_arviz.py``."""
    kept = json.loads(K_OF_ONE_LINE.read_text())
    np.testing.assert_allclose(psis(weights_for_psis())[1], kept["pareto_k"], atol=0.05)
    assert kept["arviz"] == "0.23.4"


if __name__ == "__main__":
    if not OLDER:
        raise SystemExit("the kept numbers are those of ArviZ 0.23")
    found = {"arviz": arviz.__version__, "pareto_k": psis(weights_for_psis())[1].round(6).tolist()}
    K_OF_ONE_LINE.write_text(json.dumps(found, indent=2) + "\n")
    print(found)
