"""Training curves of several estimators, and the pictures of a comparison."""

from __future__ import annotations

import copy
import io

import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from PIL import Image
from programs import BernoulliToy, GaussianToy, tiny_images, tiny_vae

from inference import compare_estimators, fit, train_compare
from inference.compare.files import markdown, netcdf
from inference.elbo import Pathwise
from inference.plotting import (
    cost_frontier,
    estimator_bias,
    estimator_snr,
    estimator_variance,
    training_curves,
)
from inference.report import png
from ppl_models import PplError


class Unwilling(Pathwise):
    name = "unwilling"

    def differentiable_loss(self, *args, **kwargs):
        raise PplError("it does not want to")


def scalars(count: int = 40) -> torch.Tensor:
    return torch.randn(count, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def curves() -> xr.Dataset:
    return train_compare(
        tiny_vae,
        tiny_images(60),
        estimators={"pathwise": "pathwise", "K = 3": Pathwise(3), "unwilling": Unwilling()},
        seeds=(0, 5),
        epochs=3,
        batch_size=16,
    )


@pytest.fixture(scope="module")
def table() -> xr.Dataset:
    toy = GaussianToy()
    points = {"start": toy.state_dict(), "end": toy.state_dict()}
    return compare_estimators(
        toy,
        scalars(5),
        estimators=["pathwise", "analytic_kl", Unwilling()],
        num_reps=10,
        checkpoints={k: {f"owner.{n}": p for n, p in v.items()} for k, v in points.items()},
    )


def test_curves_are_those_of_fit(curves):
    assert curves["valid_elbo"].dims == ("estimator", "seed", "epoch")
    assert curves["seed"].values.tolist() == [0, 5]
    assert curves["step"].values.tolist() == [3, 6, 9]
    torch.manual_seed(5)
    alone = fit(
        tiny_vae(),
        tiny_images(60),
        estimator="pathwise",
        seed=5,
        epochs=3,
        batch_size=16,
        progress=False,
    )
    row = curves.sel(estimator="pathwise", seed=5)
    for name in ("valid_elbo", "train_loss"):
        assert row[name].values.tolist() == [r[name] for r in alone.history]
    seconds = curves["seconds"].sel(estimator="K = 3").values
    assert (np.diff(seconds) >= 0).all()


def test_what_cannot_be_trained_is_a_note(curves):
    assert curves["note"].values.tolist() == ["", "", "not applicable: it does not want to"]
    assert curves["valid_elbo"].sel(estimator="unwilling").isnull().all()
    assert np.isfinite(curves["valid_elbo"].sel(estimator=["pathwise", "K = 3"])).all()


def test_a_program_stays_as_it_is_and_starts_every_run():
    toy, draws = GaussianToy(), torch.get_rng_state()
    before = copy.deepcopy(toy.state_dict())
    found = train_compare(
        toy, scalars(), estimators=["pathwise"], seeds=[1, 2], epochs=2, keep="last"
    )
    assert all(torch.equal(v, before[k]) for k, v in toy.state_dict().items())
    assert toy.m.grad is None
    assert torch.equal(torch.get_rng_state(), draws)
    one, two = found["train_loss"].isel(estimator=0).values
    assert (one != two).all()  # other draws


def test_patience_leaves_nan_behind():
    found = train_compare(
        GaussianToy, scalars(), estimators=["pathwise"], epochs=6, patience=1, seeds=[0, 1, 2, 3]
    )
    alive = np.isfinite(found["valid_elbo"].isel(estimator=0).values)
    assert alive[:, 0].all()
    assert (np.diff(alive.astype(int), axis=1) <= 0).all()  # never again after the stop


@pytest.mark.parametrize(
    ("program", "options", "message"),
    [
        (GaussianToy, {"seeds": []}, "seeds is empty"),
        (GaussianToy, {"run_dir": "x"}, "cannot pass run_dir"),
        (GaussianToy, {"estimators": ["pathwize"]}, "unknown estimator"),
        (GaussianToy, {"epochs": 0}, "no estimator trains this program: pathwise: epochs must"),
        (BernoulliToy, {}, "no estimator trains this program: pathwise: .*Bernoulli"),
        (3, {}, "has no `model`"),
    ],
)
def test_what_cannot_be_compared_is_refused(program, options, message):
    with pytest.raises(PplError, match=message):
        train_compare(program, scalars(), **({"estimators": ["pathwise"], "epochs": 1} | options))


def test_unknown_options_are_errors_of_the_call():
    with pytest.raises(TypeError, match="epoch"):
        train_compare(GaussianToy, scalars(), estimators=["pathwise"], epoch=1)


def test_curves_go_to_netcdf_and_back(curves, tmp_path):
    path = tmp_path / "curves.nc"
    path.write_bytes(netcdf(curves))
    with xr.open_dataset(path, engine="h5netcdf") as again:
        xr.testing.assert_allclose(again.load(), curves)


def drawn(figure: Figure) -> str:
    """All that is written in a figure, which is drawn and not empty."""
    with Image.open(io.BytesIO(png(figure))) as image:
        assert np.asarray(image.convert("L")).std() > 1
    texts = [t.get_text() for t in figure.findobj(lambda a: hasattr(a, "get_text"))]
    return "\n".join(texts)


@pytest.mark.parametrize(
    ("draw", "label"),
    [
        (estimator_variance, "variance of the gradient (trace of the covariance)"),
        (estimator_snr, "signal-to-noise ratio ‖E g‖ / sd(g)"),
        (estimator_bias, "bias of the gradient ± 2 standard errors"),
        (cost_frontier, "milliseconds per gradient (median)"),
    ],
)
def test_figures_of_a_comparison(table, draw, label):
    figure = draw(table)
    assert isinstance(figure, Figure)
    text = drawn(figure)
    for expected in (label, "pathwise", "analytic_kl", "start", "end"):
        assert expected in text
    assert len(figure.axes) == 2
    assert "Not applicable, left out: unwilling." in text
    assert "unwilling" not in text.replace("left out: unwilling", "")


def test_figures_of_estimators_without_noise():
    table = compare_estimators(
        BernoulliToy(), scalars(4), estimators=["enumerate", "leave_one_out"], num_reps=6
    )
    assert "0 (all)" in drawn(estimator_variance(table))
    assert "∞ (all)" in drawn(estimator_snr(table))
    assert "Without variance, so not on the axes: enumerate." in drawn(cost_frontier(table))
    drawn(estimator_bias(table))
    alone = table.sel(estimator=["enumerate"])
    for draw in (estimator_variance, estimator_snr, estimator_bias, cost_frontier):
        drawn(draw(alone))


def test_figure_of_training(curves):
    text = drawn(training_curves(curves))
    for expected in ("steps", "seconds of training", "validation ELBO", "over 2 seeds", "K = 3"):
        assert expected in text
    assert "left out: unwilling." in text


def test_the_table_for_people(table, curves):
    text = markdown(table, curves)
    assert "## start" in text
    assert "## end" in text
    assert text.count("| pathwise |") == 3
    assert "- unwilling: not applicable: it does not want to" in text
    assert "- pathwise, analytic_kl: large sample: 100 draws of analytic_kl" in text
    assert "## Training, seeds 0, 5" in text
    assert "nan" not in text
