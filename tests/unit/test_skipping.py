"""Updates that are not finite: left out, counted, limited; eager and compiled."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from unittest.mock import patch

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_helpers import sgd, step_of
from programs import tiny_images, tiny_vae
from torch import nn
from unit.test_compiled_review import Base, X, adam, graphs_run_as_traced, seed_all, taking

from inference import fit
from inference.averaging import WeightAverage
from inference.elbo import make_estimator
from inference.nonfinite import NonFiniteLossError
from inference.parameters import trainable
from inference.runs import read_metrics
from inference.step import SVIStep
from ppl_models import PplError, as_program

BAD = X * torch.nan


class Normed(Base):
    """Has buffers that a bad batch spoils: batch norm's."""

    def setup(self):
        self.norm = nn.BatchNorm1d(3)

    def encode(self, x):
        return self.encoder(self.norm(x))


def rmsprop(parameters):
    return torch.optim.RMSprop(parameters, lr=0.01)


OPTIMIZERS = {"adam": adam, "sgd": sgd, "left to torch": rmsprop}


def ready(compiled, make_optimizer=adam, max_skipped=3, make=Normed):
    seed_all(0)
    program = as_program(make())
    options = {
        "compile_worth": bool if compiled else None,
        "max_skipped": max_skipped,
        "average": WeightAverage(trainable(program), 0.9),
    }
    estimator = make_estimator("decaying_average")  # keeps buffers of its own
    return step_of(program, estimator, X, make_optimizer=make_optimizer, **options)


def everything(step):
    """Copies of all that an update may change."""
    slots = step.optimizer.state_dict()["state"]
    return {
        **{n: v.detach().clone() for n, v in step.program.state_dict().items()},
        **{f"state.{n}": v.clone() for n, v in step.estimator.state.state_dict().items()},
        **{f"{i}.{k}": v.clone() for i, slot in slots.items() for k, v in slot.items()},
        **{f"average {i}": v.clone() for i, v in enumerate(step.average.values)},
        "count": torch.tensor(step.average.count),
    }


def assert_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("make_optimizer", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_bad_update_changes_nothing_but_the_draws(make_optimizer, caplog):
    ends = []
    for compiled in (False, True):
        step = ready(compiled, make_optimizer)
        seed_all(1)
        with taking(step), graphs_run_as_traced():
            for batch in (X, X, BAD, X, BAD, X):
                before, drawn = everything(step), torch.get_rng_state()
                loss, norm = step({"x": batch})
                assert not torch.equal(torch.get_rng_state(), drawn)
                if batch is BAD:
                    assert not torch.isfinite(loss + norm)
                    assert_equal(everything(step), before)
                else:
                    assert torch.isfinite(loss + norm)
                    assert not torch.equal(everything(step)["owner.loc"], before["owner.loc"])
        assert step.skips.count == 2
        assert not compiled or step.compiled.failure is None
        ends.append(everything(step))
    eager, compiled = ends
    assert float(eager["count"]) == 4
    for name, value in eager.items():
        torch.testing.assert_close(compiled[name], value, rtol=1e-4, atol=1e-6, msg=name)
    assert len([r for r in caplog.records if "is skipped" in r.message]) == 2  # one a run


@pytest.mark.parametrize("compiled", [False, True])
def test_one_more_than_the_limit_is_an_error(compiled, caplog):
    step = ready(compiled, max_skipped=2)
    with taking(step), graphs_run_as_traced():
        for batch in (X, BAD, X, BAD, X):
            step({"x": batch})
        before = [p.detach().clone() for p in step.parameters]
        with pytest.raises(NonFiniteLossError) as error:
            step({"x": BAD})
    (record,) = (r for r in caplog.records if r.levelno == logging.WARNING)
    said = "the loss became nan: log density is not finite at site"
    assert record.message.startswith(said)
    assert "up to max_skipped=2" in record.message
    assert str(error.value).startswith(said)
    assert "2 updates before it were skipped" in str(error.value)
    for ours, theirs in zip(step.parameters, before, strict=True):
        assert torch.equal(ours.detach(), theirs)


@pytest.mark.parametrize("compiled", [False, True])
def test_the_first_update_may_be_skipped(compiled):
    step = ready(compiled)
    with taking(step), graphs_run_as_traced():
        for batch in (BAD, BAD, X, X, X):
            step({"x": batch})
            assert step.started == (batch is X)
    assert step.skips.count == 2
    assert not compiled or step.compiled.failure is None
    assert [float(s["step"]) for s in step.optimizer.state_dict()["state"].values()] == [3.0] * 5


class Rare(nn.Module):
    """Its scale is NaN, in training, where the first latent of the batch is large."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(()), 1.0))
            bad = (z[0] > 1.0) if self.training else torch.tensor(False)
            scale = torch.where(bad, torch.nan, 1.0)
            pyro.sample("x", dist.Normal(z + self.loc, scale), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(0.4 * (x - self.loc), 0.7))


def trained(compile, **options):
    x = torch.randn(200, generator=torch.Generator().manual_seed(2))
    settings = {"epochs": 3, "batch_size": 10, "progress": False, "seed": 1, "learning_rate": 0.01}
    with graphs_run_as_traced() if compile else nullcontext():
        return fit(Rare(), x, compile=compile, **(settings | options))


def test_a_run_counts_them_by_epoch_eager_and_compiled():
    eager, compiled = (trained(c, max_skipped=40, average_decay=0.9) for c in (False, True))
    counts = [row["skipped"] for row in eager.history]
    assert counts == [row["skipped"] for row in compiled.history]
    assert 3 <= sum(counts) < 20
    for ours, theirs in zip(compiled.history, eager.history, strict=True):
        assert ours["step"] == theirs["step"] == 16 * ours["epoch"]
        for name in ("train_loss", "grad_norm", "valid_elbo"):
            assert ours[name] == pytest.approx(theirs[name], rel=1e-5), name
    with pytest.raises(NonFiniteLossError, match=r"the loss became nan: log density .* site 'x'"):
        trained(False)
    with pytest.raises(NonFiniteLossError, match=r"; 2 updates before it were skipped"):
        trained(False, max_skipped=2)


@pytest.mark.parametrize("compile", [False, True])
def test_a_resumed_run_counts_on(compile, tmp_path):
    options = {"max_skipped": 40, "checkpoint_every": 0.0, "average_decay": 0.9, "keep": "last"}
    whole = trained(compile, run_dir=tmp_path / "whole", **options)
    total = sum(row["skipped"] for row in whole.history)
    with pytest.raises(NonFiniteLossError, match=rf"; {total - 1} updates before it were skipped"):
        trained(compile, run_dir=tmp_path / "parts", **(options | {"max_skipped": total - 1}))
    parts = trained(compile, run_dir=tmp_path / "parts", resume=True, **options)
    for ours, theirs in zip(*map(read_metrics, (parts.run_dir, whole.run_dir)), strict=True):
        assert ours | {"seconds": 0} == theirs | {"seconds": 0}
    assert torch.equal(parts.program.owner.loc, whole.program.owner.loc)


def test_without_the_option_there_is_no_column_and_no_copy():
    fitted = fit(tiny_vae(), tiny_images(), epochs=1, progress=False)
    assert "skipped" not in fitted.history[0]
    with pytest.raises(PplError, match="max_skipped must not be negative, got -1"):
        fit(tiny_vae(), tiny_images(), max_skipped=-1)


def test_a_schedule_may_begin_with_a_skipped_update_and_an_epoch_be_all_skipped():
    whole = SVIStep.backward
    calls = []

    def spoilt(step, batch):
        calls.append(0)
        return whole(step, batch) * (torch.nan if len(calls) <= 3 else 1.0)

    with patch.object(SVIStep, "backward", spoilt):
        options = {"max_skipped": 3, "lr_schedule": "cosine", "epochs": 2, "batch_size": 16}
        fitted = fit(tiny_vae(), tiny_images(60), progress=False, **options)
    assert [row["skipped"] for row in fitted.history] == [3, 0]
    assert fitted.history[0]["train_loss"] != fitted.history[0]["train_loss"]
    assert fitted.history[1]["train_loss"] > 0
