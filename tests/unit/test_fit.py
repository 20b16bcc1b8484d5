"""Training: what it reports, what it leaves alone, and what it refuses by message."""

from __future__ import annotations

import copy
import random

import numpy as np
import pyro.distributions as dist
import pytest
import torch
from programs import BernoulliToy, EnumeratedMixture, GlobalMean, tiny_images, tiny_vae
from pyro.infer import TraceEnum_ELBO, TraceGraph_ELBO

from inference import evaluate, fit, from_tensors
from inference.data import DataSet, StreamSplit
from inference.devices import seed_all
from inference.runs import read_metrics


def quick(program, data, **options):
    return fit(program, data, **({"epochs": 2, "batch_size": 16, "progress": False} | options))


def test_history_holds_unscaled_validation_numbers():
    fitted = quick(tiny_vae(), tiny_images(), kl_warmup=4.0, keep="last", epochs=3)
    assert [row["epoch"] for row in fitted.history] == [1, 2, 3]
    row = fitted.history[-1]
    assert row["kl_weight"] < 1
    direct = evaluate(fitted.program, fitted.data.valid.batches(100))
    assert row["valid_elbo"] == pytest.approx(direct.elbo)
    assert row["valid_elbo"] == pytest.approx(-(row["valid_rate"] + row["valid_distortion"]))
    assert row["grad_norm"] > 0


def test_it_learns():
    fitted = quick(tiny_vae(), tiny_images(200), epochs=30, learning_rate=1e-2)
    assert fitted.history[-1]["train_loss"] < fitted.history[0]["train_loss"] - 0.5


def test_the_best_epoch_is_given_back_or_the_last():
    # So large a learning rate that the last epoch is not the best.
    options = {"epochs": 8, "learning_rate": 1.0}
    best = quick(tiny_vae(), tiny_images(), **options)
    assert best.best_epoch < 8
    for fitted, row in (
        (best, best.history[best.best_epoch - 1]),
        (last := quick(tiny_vae(), tiny_images(), keep="last", **options), last.history[-1]),
    ):
        again = evaluate(fitted.program, fitted.data.valid.batches(100)).elbo
        assert again == pytest.approx(row["valid_elbo"])
    assert best.elbo == max(row["valid_elbo"] for row in best.history)


def test_patience_stops_early():
    fitted = quick(tiny_vae(), tiny_images(), epochs=200, learning_rate=0.3, patience=2)
    assert fitted.stopped_early
    assert len(fitted.history) == fitted.best_epoch + 2


def test_random_states_are_left_alone_and_the_seed_decides():
    vae = tiny_vae()

    def three_draws():
        return (float(torch.rand(())), np.random.rand(), random.random())  # noqa: NPY002

    seed_all(5)
    expected = three_draws()
    seed_all(5)
    runs = [quick(copy.deepcopy(vae), tiny_images(), seed=s).history for s in (1, 1, 2)]
    assert three_draws() == expected
    losses = [run[-1]["train_loss"] for run in runs]
    assert losses[0] == losses[1] != losses[2]


def test_a_stream_trains_as_memory_does():
    data = from_tensors(tiny_images())
    rows = [{"x": x} for x in data.train.tensors["x"]]
    streamed = DataSet(data.info, StreamSplit(rows), data.valid, data.test)
    vae = tiny_vae()
    in_memory = quick(copy.deepcopy(vae), data)
    from_stream = quick(vae, streamed)
    assert in_memory.history[-1]["valid_elbo"] == from_stream.history[-1]["valid_elbo"]


@pytest.mark.parametrize("precision", ["32", "64", "bf16"])
def test_precisions(precision):
    fitted = quick(tiny_vae(), tiny_images(), precision=precision)
    expected = torch.float64 if precision == "64" else torch.float32
    assert all(p.dtype == expected for p in fitted.program.parameters())
    assert np.isfinite(fitted.elbo)


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_schedules_decay_to_zero(schedule):
    fitted = quick(tiny_vae(), tiny_images(), lr_schedule=schedule, epochs=4)
    rates = [row["learning_rate"] for row in fitted.history]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(0.0, abs=1e-9)


def test_optimizers_and_schedules_of_the_users_own():
    fitted = quick(
        tiny_vae(),
        tiny_images(),
        optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3),
        lr_schedule=lambda o: torch.optim.lr_scheduler.ExponentialLR(o, 0.5),
    )
    assert fitted.history[0]["learning_rate"] == pytest.approx(3e-3 * 0.5**3)


def test_clipping_bounds_the_step():
    """With SGD of rate 1 the first step's length is the clipped norm."""
    vae = tiny_vae()
    before = {k: v.clone() for k, v in vae.state_dict().items()}
    x = tiny_images(20)
    quick(vae, x, optimizer="SGD", learning_rate=1.0, clip_grad_norm=1e-3, epochs=1, keep="last")
    moved = sum((vae.state_dict()[k] - v).square().sum() for k, v in before.items()).sqrt()
    assert float(moved) == pytest.approx(1e-3, rel=1e-3)


@pytest.mark.parametrize("estimator", ["pyro.infer.TraceGraph_ELBO", TraceGraph_ELBO()])
def test_discrete_latents_train_with_pyros_estimators(estimator):
    x = torch.randn(60) * 0.3 + 1.0
    fitted = quick(BernoulliToy(), x, estimator=estimator, learning_rate=0.05, epochs=40)
    assert float(fitted.program.owner.logit.detach()) > 0.5


def test_enumerated_latents_train_and_validate():
    x = torch.cat([torch.randn(100) * 0.5 - 2, torch.randn(100) * 0.5 + 2])
    fitted = quick(
        EnumeratedMixture(),
        x,
        estimator=TraceEnum_ELBO(max_plate_nesting=1),
        epochs=60,
        learning_rate=0.05,
    )
    locs = fitted.program.owner.locs.detach()
    torch.testing.assert_close(locs, torch.tensor([-2.0, 2.0]), atol=0.25, rtol=0)
    parts = torch.stack(
        [dist.Normal(loc, 0.5).log_prob(fitted.data.valid.tensors["x"]) for loc in locs]
    )
    evidence = float((parts.logsumexp(0) - np.log(2)).mean())
    assert fitted.elbo == pytest.approx(evidence, rel=1e-5)


def test_metrics_and_tensorboard_are_written(tmp_path):
    fitted = quick(tiny_vae(), tiny_images(), run_dir=tmp_path, tensorboard=True)
    assert read_metrics(tmp_path) == fitted.history
    table = (tmp_path / "metrics.csv").read_text().splitlines()
    assert table[0].startswith("epoch,step,train_loss,valid_elbo")
    assert len(table) == 3
    assert list((tmp_path / "tensorboard").glob("events.*"))


def test_global_latents_train_to_the_posterior():
    """The exact posterior is N(Σx/(N+1), 1/(N+1)); tolerance 0.1 for Adam's last wobble."""
    x = torch.randn(500) + 2
    fitted = quick(
        GlobalMean(),
        x,
        epochs=250,
        batch_size=50,
        learning_rate=0.1,
        lr_schedule="cosine",
        keep="last",
    )
    train = fitted.data.train.tensors["x"]
    n = len(train)
    assert float(fitted.program.param("loc")) == pytest.approx(
        float(train.sum()) / (n + 1), abs=0.05
    )
    assert float(fitted.program.param("scale")) == pytest.approx((n + 1) ** -0.5, rel=0.3)
