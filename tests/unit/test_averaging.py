"""The running average of the weights: its numbers, what is kept of it, and what goes on below."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
from compiled_helpers import step_of
from programs import WithoutLatents, tiny_images, tiny_vae
from torch import nn
from unit.test_compiled_review import Base, X, adam, graphs_run_as_traced, seed_all, taking

from inference import evaluate, fit
from inference.averaging import WeightAverage
from inference.elbo import make_estimator
from inference.parameters import trainable
from inference.runs import read_metrics
from ppl_models import PplError, as_program


def test_it_is_the_recursion_with_its_start():
    weight = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    average = WeightAverage([weight], decay=0.5)
    expected = weight.detach().clone()
    for t in range(30):
        with torch.no_grad():
            weight += torch.tensor([0.3, 0.1 * t], dtype=torch.float64)
        average.update()
        decay = min((1 + t) / (10 + t), 0.5)  # 0.1, 2/11, ..., then 0.5 from t = 8 on
        expected = decay * expected + (1 - decay) * weight.detach()
    torch.testing.assert_close(average.values[0], expected, rtol=1e-14, atol=0)
    raw = weight.detach().clone()
    with average.in_place():
        assert torch.equal(weight.detach(), average.values[0]) is False
        torch.testing.assert_close(weight.detach(), expected, rtol=1e-14, atol=0)
    assert torch.equal(weight.detach(), raw)


@pytest.mark.parametrize("compiled", [False, True])
def test_every_update_is_taken_in(compiled):
    seed_all(0)
    program = as_program(Base())
    average = WeightAverage(trainable(program), 0.9)
    options = {"compile_worth": bool if compiled else None, "average": average}
    estimator = make_estimator("pathwise")
    step = step_of(program, estimator, X, make_optimizer=adam, **options)
    expected = [p.detach().clone() for p in step.parameters]
    with taking(step), graphs_run_as_traced():
        for t in range(6):
            step({"x": X})
            decay = (1 + t) / (10 + t)
            for mean, parameter in zip(expected, step.parameters, strict=True):
                mean.mul_(decay).add_((1 - decay) * parameter.detach())
    assert not compiled or step.compiled.failure is None
    torch.testing.assert_close(average.values, expected)


class Counting(Base):
    """Counts its runs in training in a buffer."""

    def setup(self):
        self.register_buffer("runs", torch.zeros(()))

    def encode(self, x):
        if self.training:
            self.runs += 1
        return self.encoder(x)


def trained(compile, folder=None, **options):
    torch.manual_seed(0)
    settings = {"epochs": 3, "batch_size": 10, "progress": False, "learning_rate": 0.02}
    data = torch.randn(100, 3, generator=torch.Generator().manual_seed(1))
    with graphs_run_as_traced() if compile else nullcontext():
        return fit(Counting(), data, compile=compile, run_dir=folder, **(settings | options))


def tensors(program):
    return {name: value.clone() for name, value in program.state_dict().items()}


@pytest.mark.parametrize("compile", [False, True])
def test_the_average_is_validated_and_kept_and_training_is_as_without(compile, tmp_path):
    plain = trained(compile, keep="last")
    kept = trained(compile, tmp_path, average_decay=0.95, keep="last")
    in_memory = trained(compile, average_decay=0.95, keep="best")
    for a, b in zip(plain.history, kept.history, strict=True):
        assert (a["train_loss"], a["grad_norm"]) == (b["train_loss"], b["grad_norm"])
        assert a["valid_elbo"] != b["valid_elbo"]
    state = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    names = [name for name, _ in plain.program.named_parameters()]
    raw = dict(zip(names, state["average"]["raw"], strict=True))
    now, without = tensors(kept.program), tensors(plain.program)
    for name, value in now.items():
        assert torch.equal(state["program"][name], value), name
        if name in raw:
            assert torch.equal(raw[name], without[name]), name
            assert not torch.equal(value, without[name]), name
    assert float(now["owner.runs"]) == float(without["owner.runs"]) > 0  # no average: as it is
    for fitted in (kept, in_memory):
        row = fitted.history[-1 if fitted is kept else fitted.best_epoch - 1]
        again = evaluate(fitted.program, fitted.data.valid.batches(100)).elbo
        assert again == pytest.approx(row["valid_elbo"], rel=1e-6)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("keep", ["best", "last"])
def test_a_resumed_run_ends_bit_identical(compile, keep, tmp_path):
    options = {"average_decay": 0.9, "keep": keep}
    whole = trained(compile, tmp_path / "whole", **options)
    trained(compile, tmp_path / "parts", epochs=2, **options)
    parts = trained(compile, tmp_path / "parts", resume=True, **options)
    for ours, theirs in zip(*map(read_metrics, (parts.run_dir, whole.run_dir)), strict=True):
        assert ours | {"seconds": 0} == theirs | {"seconds": 0}
    for name, value in tensors(whole.program).items():
        assert torch.equal(tensors(parts.program)[name], value), name
    with pytest.raises(PplError, match=r"cannot resume .* with average_decay=0\.0: .* 0\.9"):
        trained(compile, tmp_path / "parts", epochs=4, resume=True)


def test_a_checkpoint_of_before_the_option_can_be_resumed(tmp_path):
    trained(False, tmp_path, epochs=1)
    path = tmp_path / "checkpoints" / "last.ckpt"
    state = torch.load(path, weights_only=True)
    for name in ("average_decay", "kl_balance", "max_skipped"):
        del state["settings"][name]
    for name in ("skipped", "skipped_batches", "skipped_data"):
        del state["position"][name]
    del state["average"]
    torch.save(state, path)
    again = trained(False, tmp_path, resume=True)
    assert again.history[-1]["valid_elbo"] == trained(False).history[-1]["valid_elbo"]


@pytest.mark.parametrize("decay", [1.0, -0.1, float("nan")])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(PplError, match=r"average_decay must be at least 0 .* below 1"):
        fit(tiny_vae(), tiny_images(), average_decay=decay)


class Normed(Base):
    def setup(self):
        self.norm = nn.BatchNorm1d(3)

    def encode(self, x):
        return self.encoder(self.norm(x))


@pytest.mark.parametrize(("make", "decay"), [(Normed, 0.9), (Normed, 0.0), (Base, 0.9)])
def test_running_statistics_of_batches_are_warned_of(make, decay, caplog):
    data = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    fit(make(), data, epochs=1, batch_size=10, average_decay=decay, compile=False, progress=False)
    said = [r.message for r in caplog.records if "running statistics of owner.norm" in r.message]
    assert len(said) == (make is Normed and decay > 0)


def test_it_is_nearer_to_the_optimum_than_the_last_weights():
    """SGD at a large rate: the last weights are noisy, their average is not."""
    x = torch.randn(2000, generator=torch.Generator().manual_seed(3))
    data = {"epochs": 6, "batch_size": 10, "optimizer": "SGD", "learning_rate": 0.5}
    distances = []
    for decay in (0.0, 0.98):
        fitted = fit(WithoutLatents(), x, average_decay=decay, keep="last", progress=False, **data)
        best = float(next(iter(fitted.data.train.batches(2000)))["x"].mean())
        distances.append(abs(float(fitted.program.owner.loc.detach()) - best))
    assert distances[1] < 0.5 * distances[0]
