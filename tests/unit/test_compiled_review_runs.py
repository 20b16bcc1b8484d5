"""The compiled step beside an eager one: bad steps, machine code; fit and evaluate."""

from __future__ import annotations

import logging
from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_helpers import sgd
from programs import GlobalMean
from pyro.infer import TraceGraph_ELBO
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from unit.test_compiled_review import (
    Base,
    X,
    adam,
    assert_close,
    assert_compiled_alike,
    assert_refused,
    graphs_run_as_traced,
    ready,
    run,
    said,
    seed_all,
    taking,
)
from unit.test_compiled_review_programs import HoldsPrior, Masked

from inference import evaluate, fit
from inference.nonfinite import NonFiniteLossError, Recent
from inference.step import SVIStep
from ppl_models import as_program

# Losses that are not finite


class Rare(Base):
    """Its scale is NaN where the first datum's latent is large, as some draws have it."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            scale = torch.where(z[0, 0] > 0.5, torch.nan, 1.0)
            pyro.sample("x", dist.Normal(self.mean(z), scale).to_event(1), obs=x)


def until_bad(step: SVIStep) -> tuple[int, str, list[Tensor]]:
    """Steps until one raises: how many, what it said, the parameters then."""
    seed_all(3)
    with taking(step):
        for i in range(40):
            try:
                step({"x": X})
            except NonFiniteLossError as error:
                return i, str(error), [p.detach().clone() for p in step.parameters]
    raise AssertionError("no step was bad")


@pytest.mark.parametrize("every", [1, 4])
def test_a_bad_step_is_told_as_it_was_however_late(every):
    when, theirs, before = until_bad(ready(Rare, compile=None))
    step = ready(Rare)
    step._recent = Recent(every=every)
    with graphs_run_as_traced():
        told, ours, now = until_bad(step)
    assert when > 3
    assert step.compiled.failure is None
    assert when <= told < when + every
    assert ours == theirs
    assert "the loss became nan: log density is not finite at site 'x' of the model" in ours
    torch.testing.assert_close(now, before, rtol=1e-4, atol=1e-6)


def assert_training_goes_on_after_a_bad_step(make_optimizer):
    steps = [ready(Base, compile=c, make_optimizer=make_optimizer) for c in (None, bool)]
    for step in steps:
        seed_all(1)
        with taking(step), graphs_run_as_traced():
            for batch in (X, X, X):
                step({"x": batch})
            with pytest.raises(NonFiniteLossError):
                step({"x": X * torch.nan})
            for batch in (X, X, X):
                step({"x": batch})
    eager, compiled = steps
    assert compiled.compiled.failure is None
    for ours, theirs in zip(compiled.parameters, eager.parameters, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    return steps


def test_training_goes_on_after_a_bad_step_that_was_caught():
    assert_training_goes_on_after_a_bad_step(sgd)


def test_a_bad_step_that_was_caught_is_not_counted():
    steps = assert_training_goes_on_after_a_bad_step(adam)
    mine, its = (step.optimizer.state_dict()["state"] for step in steps)
    torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)


class Normed(Base):
    def setup(self):
        self.norm = nn.BatchNorm1d(3)

    def encode(self, x):
        return self.encoder(self.norm(x))


def test_a_layer_that_is_set_to_evaluate_midway_is_followed(caplog):
    def evaluate_it(step, i):
        if i == 2:
            step.program.owner.norm.eval()

    assert_compiled_alike(Normed, caplog, each=evaluate_it)


class Averaging(Normed):
    def setup(self):
        self.norm = nn.BatchNorm1d(3, momentum=None)


def test_a_layer_that_reads_its_count_is_refused_with_the_reason(caplog):
    assert_refused(Averaging, caplog, "a tensor's value decides what is run")


class Recurrent(Base):
    def setup(self):
        self.lstm = nn.LSTM(1, 3, batch_first=True)

    def encode(self, x):
        return self.encoder(self.lstm(x[..., None])[0][:, -1])


@pytest.mark.slow
def test_an_lstm_trains_as_machine_code(caplog):
    assert_close(run(Recurrent), run(Recurrent, compile=None))
    assert said(caplog) == []


@pytest.mark.slow
def test_a_batch_with_other_strides_is_taken_as_machine_code(caplog):
    other = X.t().contiguous().t()
    batches = [X, X, other, X, other]
    steps = [ready(Base, compile=c) for c in (None, bool)]
    for step in steps:
        torch.manual_seed(1)
        with taking(step):
            for batch in batches:
                step({"x": batch})
    for ours, theirs in zip(*(step.parameters for step in steps), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    assert said(caplog) == []


# fit and evaluate


def test_an_estimator_of_pyros_that_cannot_be_compiled_is_told(caplog):
    options = {"estimator": TraceGraph_ELBO(), "epochs": 1, "batch_size": 8, "progress": False}
    with caplog.at_level(logging.WARNING):
        fitted = fit(Base(), X.repeat(2, 1), compile=True, **options)
    assert [r.message for r in caplog.records] == ["TraceGraph_ELBO cannot be compiled"]
    assert len(fitted.history) == 1


@pytest.mark.parametrize("make", [GlobalMean, HoldsPrior, Masked])
def test_evaluation_of_such_programs_agrees_too(make, caplog):
    """GlobalMean's ``pyro.param``s come into being at its first run, which is the compiled one."""
    x, found, buffers = {"x": X if make is not GlobalMean else X[:, 0]}, [], []
    for compile in (False, True):
        torch.manual_seed(0)
        program = as_program(make())
        with graphs_run_as_traced() if compile else nullcontext():
            options = {"num_particles": 6, "max_rows": 16, "compile": compile}
            found.append(evaluate(program, x, **options).to_dict())
        buffers.append({n: b.clone() for n, b in program.named_buffers()})
        assert not any(isinstance(p.data, FakeTensor) for p in program.parameters())
    for name, value in found[0].items():
        assert found[1][name] == (value if value is None else pytest.approx(value, rel=1e-5)), name
    torch.testing.assert_close(*buffers)
    assert said(caplog) == []
