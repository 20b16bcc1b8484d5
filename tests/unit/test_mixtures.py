"""Mixtures in one call, by three methods; their pictures; the command line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from mixture_helpers import blobs, random_mixture, started
from programs import tiny_vae
from sklearn.datasets import load_digits, load_iris, load_wine

from inference import fit, fit_em, fit_mixture
from inference.cli import main
from inference.mixture_pictures import mixture_figures
from inference.mixtures import default_prior
from inference.plotting.mixtures import normal_density
from inference.runs import load_run
from inference.sampling import sample
from ppl_models import PplError, UnknownNameError, as_program
from ppl_models.gmm import GaussianMixture

IRIS = load_iris().data
DIGITS = ("train", "gmm", "--data", "digits", "--model.covariance", "diagonal")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("load", "num", "options"),
    [
        (load_iris, 3, {}),
        (load_iris, 3, {"covariance": "diagonal"}),
        (load_wine, 3, {}),
        (load_digits, 10, {"covariance": "diagonal", "min_scale": 1.0}),
    ],
)
def test_gradient_descent_by_its_defaults_reaches_em_s_log_likelihood(load, num, options):
    """Within 0.5 % of it, or above, from the same start, in minibatches."""
    x = load().data
    em = fit_mixture(x, num, tolerance=1e-6, max_iterations=1000, **options)
    svi = fit_mixture(x, num, method="svi", **options)
    assert svi.converged is None
    assert svi.log_likelihood > em.log_likelihood - 0.005 * abs(em.log_likelihood)
    assert svi.log_prob(x).mean() == pytest.approx(svi.log_likelihood, rel=1e-6)
    assert em.converged
    assert max(em.history) == em.log_likelihood > em.history[0]


def test_gradient_descent_does_not_leave_the_optimum_of_em():
    mixture = started(blobs(200), 3, "full")
    em = fit_em(mixture, blobs(200), start="current", tolerance=1e-10)
    before = mixture.moments()
    fit(mixture, blobs(200), epochs=1, learning_rate=1e-5, precision="64", progress=False)
    torch.testing.assert_close(mixture.moments().locs, before.locs, rtol=0, atol=1e-3)
    assert em.converged


def test_map_is_em_with_a_weak_prior_in_the_units_of_the_data():
    x = 1000 * blobs(200).numpy()
    em, weak = (fit_mixture(x, 3, method=method) for method in ("em", "map"))
    assert weak.log_likelihood < em.log_likelihood
    assert weak.log_likelihood == pytest.approx(em.log_likelihood, abs=0.2)
    prior = default_prior(torch.as_tensor(x), 3)
    assert prior["df"] == 4.0
    assert prior["scale"] == pytest.approx(x.var(0) / 3)


def test_what_it_gives_is_of_the_kind_that_it_was_given():
    x = blobs(100)
    found = fit_mixture(x.numpy(), 3)
    assert isinstance(found.responsibilities(x.numpy()), np.ndarray)
    assert isinstance(found.responsibilities(x), torch.Tensor)
    np.testing.assert_allclose(found.responsibilities(x.numpy()).sum(-1), 1)
    np.testing.assert_array_equal(found.predict(x.numpy()), found.predict(x).numpy())
    assert found.log_prob(x).mean() == pytest.approx(found.log_likelihood)
    assert found.bic(x) > found.aic(x) > -2 * 100 * found.log_likelihood
    assert found.weights.shape == (3,)
    assert found.locs.shape == (3, 2)
    assert found.covariances.shape == (3, 2, 2)
    assert found.sample(5).shape == (5, 2)
    assert "3 components, full covariance" in repr(found)


@pytest.mark.parametrize("shape", [(60,), (60, 1, 2, 2), (60, 4)])
def test_numbers_images_and_integers_are_taken(shape):
    x = np.random.default_rng(0).integers(0, 50, shape)
    found = fit_mixture(x, 2, covariance="diagonal")
    assert found.sample(3).shape == (3, *shape[1:])
    assert found.predict(x).shape == (60,)


def test_one_component_is_the_gaussian_of_the_data():
    x = blobs(100)
    found = fit_mixture(x, 1)
    torch.testing.assert_close(found.locs[0], x.mean(0))
    assert found.converged


@pytest.mark.parametrize(
    ("x", "options", "message"),
    [
        (np.zeros((10, 2)), {}, "all 10 data are the same point"),
        (np.eye(3), {"num_components": 5}, "5 component.s. from 3 data"),
        (np.repeat(np.eye(3), 5, 0), {"num_components": 4}, "4 components from 3 distinct"),
        (np.full((9, 2), np.nan), {}, "field 'x' holds nan"),
        (np.empty((0, 2)), {}, "there are no data"),
        (np.zeros(()), {}, "single number"),
        (IRIS, {"num_components": 0}, "at least 1"),
        (IRIS, {"covariance": "diag"}, "Did you mean 'diagonal'"),
        (IRIS, {"method": "variational"}, "unknown method"),
        (IRIS, {"method": "em", "max_iterations": 0}, "max_iterations must be a whole number"),
    ],
)
def test_what_cannot_be_fitted_is_refused(x, options, message):
    with pytest.raises((PplError, UnknownNameError), match=message):
        fit_mixture(x, **options)


def test_a_normal_density_integrates_to_one():
    grid = np.linspace(-30, 30, 6001)[:, None]
    total = normal_density(grid, np.array([1.0]), np.array([[2.5]])).sum() * 0.01
    assert total == pytest.approx(1)


@pytest.mark.parametrize(
    ("x_shape", "covariance", "names"),
    [
        ((), "full", {"mixture"}),
        ((1,), "spherical", {"mixture"}),
        ((2,), "tied", {"mixture"}),
        ((5,), "diagonal", {"mixture"}),
        ((1, 3, 3), "full", {"mixture", "components", "draws"}),
    ],
)
def test_every_mixture_has_its_picture(x_shape, covariance, names):
    mixture = random_mixture(covariance, x_shape=x_shape)
    x = torch.randn(50, *x_shape).double()
    figures = mixture_figures(as_program(mixture), {"x": x})
    assert set(figures) == names
    (axes,) = figures["mixture"].axes
    if len(x_shape) == 0 or x_shape == (1,):
        lines = [line.get_label() for line in axes.get_lines()]
        assert len(lines) == 4  # three components and their sum
        total = axes.get_lines()[-1]
        grid, density = total.get_xdata(), total.get_ydata()
        parts = [np.interp(grid, *line.get_data()) for line in axes.get_lines()[:-1]]
        np.testing.assert_allclose(sum(parts), density)
        step = torch.as_tensor(grid).reshape(-1, *x_shape)
        np.testing.assert_allclose(density, mixture.log_prob(step).exp().detach(), rtol=1e-6)
    else:
        assert len(axes.patches) == 3  # an ellipse a component
        assert len(axes.collections[0].get_offsets()) == 50


def test_another_program_has_no_picture_of_a_mixture():
    assert mixture_figures(as_program(tiny_vae()), {"x": torch.zeros(2, 1, 4, 4)}) == {}


def test_a_run_by_em_ends_as_a_resumed_one_and_has_its_report(tmp_path, capsys):
    whole, parts = str(tmp_path / "whole"), str(tmp_path / "parts")
    assert main([*DIGITS, "--method", "em", "--epochs", "6", "--out", whole]) == 0
    assert main([*DIGITS, "--method", "em", "--epochs", "3", "--out", parts]) == 0
    assert main(["train", "--resume", parts, "--epochs", "6"]) == 0
    capsys.readouterr()
    one, other = (load_run(folder, checkpoint="last") for folder in (whole, parts))
    for name, value in one.program.state_dict().items():
        assert torch.equal(value, other.program.state_dict()[name]), name
    rows = [
        [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        for name in ("whole", "parts")
    ]
    assert [r["valid_elbo"] for r in rows[0]] == [r["valid_elbo"] for r in rows[1]]
    assert len(rows[0]) == 6
    pictures = {path.stem for path in (tmp_path / "whole").glob("*.png")}
    assert {"mixture", "components", "draws", "learning_curves", "reconstructions"} <= pictures
    assert sample(one.program, 3)["x"].shape == (3, 1, 8, 8)
    assert main(["evaluate", whole, "--num_particles", "5", "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    best = load_run(whole).program.owner
    expected = float(best.log_prob(one.data.test.tensors["x"]).mean().detach())
    assert numbers["elbo"] == pytest.approx(expected, abs=1e-3)


def test_a_run_by_gradient_descent_starts_from_the_data(tmp_path, capsys):
    words = [*DIGITS, "--epochs", "2", "--out", str(tmp_path / "run"), "--json"]
    assert main(words) == 0
    numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert numbers["elbo"] > 0  # a start that knew nothing of the data is at about −70
    assert numbers["kl"]["z"] == pytest.approx(numbers["rate"])


def test_em_tells_how_it_ended_and_what_scikit_learn_s_users_ask_for(tmp_path, capsys, caplog):
    np.save(tmp_path / "x.npy", blobs(200).numpy())
    words = ("train", "gmm", "--data", str(tmp_path / "x.npy"), "--model.num_components", "3")
    options = ("--method", "em", "--epochs", "200", "--precision", "64", "--json")
    with caplog.at_level("INFO", "inference"):
        assert main([*words, *options, "--out", str(tmp_path / "run")]) == 0
    assert re.search(
        r"EM converged after \d+ iterations: log-likelihood -\d+\.\d{4} nats a datum in training, "
        r"-\d+\.\d{4} in validation \(best -\d+\.\d{4} after iteration \d+",
        caplog.text,
    )
    assert "overfits" not in caplog.text
    numbers = json.loads(capsys.readouterr().out.splitlines()[-1])
    run = load_run(tmp_path / "run")
    x = run.data.train.tensors["x"]
    assert numbers["converged"] is True
    assert numbers["iterations"] < 200
    assert numbers["repairs"] == 0
    assert numbers["free_parameters"] == 2 + 3 * 2 + 3 * 3
    assert numbers["bic"] == pytest.approx(run.program.owner.bic(x))
    assert numbers["aic"] == pytest.approx(run.program.owner.aic(x))
    assert numbers["log_likelihood"]["test"] == pytest.approx(numbers["elbo"])


def test_a_mixture_that_overfits_is_told(tmp_path, caplog):
    np.save(tmp_path / "x.npy", np.random.default_rng(0).normal(size=(60, 8)))
    words = ("train", "gmm", "--data", str(tmp_path / "x.npy"), "--model.num_components", "5")
    with caplog.at_level("INFO", "inference"):
        assert main([*words, "--method", "em", "--epochs", "2", "--out", str(tmp_path / "r")]) == 0
    assert "the mixture overfits" in caplog.text
    assert "covariance diagonal or spherical, a prior" in caplog.text
    assert re.search(r"has not converged after 2 iterations.*--resume \S+ --epochs", caplog.text)


def test_em_of_another_program_or_a_run_of_another_method_is_refused(tmp_path, capsys):
    words = ["train", "vae", "--data", "digits", "--method", "em", "--out", str(tmp_path / "a")]
    assert main(words) == 2
    assert "EM in closed form is for Gaussian mixtures, and VAE is none" in capsys.readouterr().err
    words = [*DIGITS, "--method", "em", "--learning_rate", "0.1", "--out", str(tmp_path / "a")]
    assert main(words) == 2
    assert "method 'em' takes no learning_rate (got 0.1)" in capsys.readouterr().err
    folder = tmp_path / "run"
    assert main([*DIGITS, "--epochs", "1", "--out", str(folder)]) == 0
    config = (folder / "config.yaml").read_text()
    (folder / "config.yaml").write_text(config.replace("method: svi", "method: em"))
    assert main(["train", "--resume", str(folder), "--epochs", "2"]) == 2
    assert "of a run by gradient descent" in capsys.readouterr().err


@pytest.mark.slow
def test_the_page_s_example_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = Path(__file__).parents[2] / "docs" / "gmm.md"
    for code in re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL):
        exec(compile(code, "gmm.md", "exec"), {"__name__": "page"})
    assert (tmp_path / "density.png").is_file()
    assert (tmp_path / "contours.png").is_file()
    assert "nats a datum" in capsys.readouterr().out


@pytest.mark.cuda
def test_one_call_on_cuda():
    found = fit_mixture(blobs(300).float(), 3)
    assert found.locs.device.type == "cuda"
    assert found.responsibilities(blobs(10).float()).shape == (10, 3)
    assert isinstance(found.program.owner, GaussianMixture)
