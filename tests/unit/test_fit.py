"""Training: what it reports, what it leaves alone, and what it refuses by message."""

from __future__ import annotations

import copy
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import BernoulliToy, GaussianToy, GlobalMean, tiny_images, tiny_vae
from pyro.infer import TraceEnum_ELBO, TraceGraph_ELBO
from torch import nn

from inference import evaluate, fit, from_tensors
from inference.data import DataSet, StreamSplit
from inference.devices import seed_all
from inference.metrics import read_metrics
from inference.step import NonFiniteLossError
from ppl_models import PplError, Program, ProgramError


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
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.locs = nn.Parameter(torch.tensor([-0.5, 0.5]))

        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                parallel = {"enumerate": "parallel"}
                z = pyro.sample("z", dist.Categorical(torch.ones(2) / 2), infer=parallel)
                pyro.sample("x", dist.Normal(self.locs[z], 0.5), obs=x)

        def guide(self, x):
            pass

    x = torch.cat([torch.randn(100) * 0.5 - 2, torch.randn(100) * 0.5 + 2])
    fitted = quick(
        Mixture(), x, estimator=TraceEnum_ELBO(max_plate_nesting=1), epochs=60, learning_rate=0.05
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


class Ungraded(GaussianToy):
    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(2))


class Detached(GaussianToy):
    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            return pyro.sample("z", dist.Normal(self.m.detach(), self.log_sigma.exp()))


@pytest.mark.parametrize(("program", "name"), [(Ungraded(), "unused"), (Detached(), "m")])
def test_a_parameter_without_gradient_is_named(program, name):
    with pytest.raises(ProgramError, match=rf"no gradient reached parameter\(s\) owner.{name}\b"):
        quick(program, torch.randn(40))


def test_a_parameter_that_is_not_to_be_trained_may_go_without():
    program = Ungraded()
    program.unused.requires_grad_(False)
    quick(program, torch.randn(40))


def test_a_network_that_the_program_does_not_hold_is_found():
    """Stock Pyro trains such a program without a word and without its network."""
    hidden = nn.Linear(1, 1)

    class Closure(GaussianToy):
        def guide(self, x):
            with pyro.plate("data", len(x), dim=-1):
                shift = hidden(x.unsqueeze(-1)).squeeze(-1)
                return pyro.sample("z", dist.Normal(self.m + shift, self.log_sigma.exp()))

    with pytest.raises(ProgramError, match=r"belong to no module.*decoder=decoder.*pyro.module"):
        quick(Closure(), torch.randn(40))


def test_nothing_to_train():
    def model(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("x", dist.Normal(pyro.sample("z", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.0, 1.0))

    with pytest.raises(ProgramError, match="nothing to train"):
        quick(Program(model, guide), torch.randn(40))


class Exploding(GaussianToy):
    """Fine at first; after some steps the site x has log density −inf or NaN."""

    def __init__(self, how: str):
        super().__init__()
        self.how, self.calls = how, 0

    def model(self, x=None, *, size=1):
        self.calls += self.training
        late = self.calls > 6
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.b), 1.0))
            mean = z + self.b
            if late and self.how == "density":
                mean = mean / 0.0
            if late and self.how == "gradient":
                mean = mean + (self.b - self.b.detach()).abs().sqrt()  # 0, with slope inf
            return pyro.sample("x", dist.Normal(mean, self.s), obs=x)


@pytest.mark.parametrize(
    ("how", "cause"),
    [
        ("density", r"log density is not finite at site 'x' of the model \(Normal\)"),
        ("gradient", r"the gradient is not finite at parameter\(s\) owner.b"),
    ],
)
def test_nan_stops_before_the_parameters_are_spoilt(tmp_path, how, cause):
    program = Exploding(how)
    with pytest.raises(NonFiniteLossError, match=rf"the loss became .*{cause}.*clip_grad_norm"):
        quick(program, torch.randn(100), run_dir=tmp_path, epochs=10)
    assert all(bool(torch.isfinite(p).all()) for p in program.parameters())
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert all(bool(torch.isfinite(v).all()) for v in state["program"].values())
    assert state["position"]["step"] > 0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (
            lambda: {"y": torch.zeros(30).long()},
            r"names the field\(s\) 'x', which the data lack.*: y\.",
        ),
        (lambda: tiny_images(30, binary=False), r"outside the support.*Bernoulli.*--binarize"),
        (lambda: torch.zeros(0, 1, 4, 4), "there are no data"),
        (lambda: torch.zeros(2, 1, 4, 4), "no validation data"),
        (lambda: torch.zeros(30, 1, 5, 5), r"VAE fails on a batch with fields \{'x': \(8, 1, 5, 5"),
        (
            lambda: torch.zeros(30, 1, 4, 4).index_fill(0, torch.tensor([17]), torch.nan),
            r"holds nan at index \(17, 0, 0, 0\) \(16 such",
        ),
        (
            lambda: {"x": torch.zeros(30, 1, 4, 4), "y": torch.full((30,), -1)},
            "label -1 at index 0 is out of range",
        ),
    ],
)
def test_data_that_do_not_fit_are_refused(data, message):
    with pytest.raises(PplError, match=message):
        quick(tiny_vae(), data())


def test_one_grey_pixel_far_down_the_data_is_found():
    x = tiny_images(6000)
    data = from_tensors(x)
    data.test.tensors["x"][300, 0, 2, 1] = 0.5
    with pytest.raises(PplError, match=r"\(test\): field 'x' at index 300 is outside the support"):
        quick(tiny_vae(), data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"estimator": "pathwize"}, "unknown estimator 'pathwize'. Did you mean 'pathwise'"),
        ({"optimizer": "adam"}, "unknown optimizer 'adam'. Did you mean 'Adam'"),
        ({"lr_schedule": "cosin"}, "unknown learning-rate schedule 'cosin'. Did you mean 'cosine'"),
        ({"precision": "16"}, "unknown precision '16'"),
        ({"device": "gpu"}, "unknown device 'gpu'"),
        ({"epochs": 0}, "epochs must be positive, got 0"),
        ({"batch_size": -5}, "batch_size must be positive"),
        ({"learning_rate": 0.0}, "learning_rate must be positive"),
        ({"kl_warmup": -1.0}, "kl_warmup must not be negative"),
        ({"keep": "all"}, "keep must be 'best' or 'last'"),
        ({"tensorboard": True}, "tensorboard needs a run_dir"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(PplError, match=message):
        quick(tiny_vae(), tiny_images(), **options)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has CUDA")
def test_cuda_where_there_is_none():
    with pytest.raises(PplError, match=r"'cuda' was asked for.*no CUDA device.*--device cpu"):
        quick(tiny_vae(), tiny_images(), device="cuda")


def test_a_model_that_fails_is_shown_with_its_line():
    class Broken(GaussianToy):
        def model(self, x=None, *, size=1):
            raise KeyError("oops")

    with pytest.raises(ProgramError, match=r"Broken fails on a batch.*KeyError.*test_fit.py, line"):
        quick(Broken(), torch.randn(40))


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
