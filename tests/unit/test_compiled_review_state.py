"""State beside the parameters: attributes, counters, what an optimizer loads, copies or freezes."""

from __future__ import annotations

import copy
from contextlib import nullcontext

import pytest
import torch
from compiled_helpers import traced
from unit.test_compiled_review import (
    Base,
    X,
    assert_close,
    assert_compiled_alike,
    assert_refused,
    eager_and_compiled,
    graphs_run_as_traced,
    ready,
    run,
    said,
)

from inference import evaluate
from inference.graphs import NotCompiledError
from ppl_models import as_program


class SetsAttribute(Base):
    def setup(self):
        self.average = torch.zeros(3)

    def encode(self, x):
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        return self.encoder(x - self.average)


def test_an_attribute_that_is_set_anew_is_refused_when_traced():
    with pytest.raises(NotCompiledError, match=r"owner\.average"):
        traced(ready(SetsAttribute), X)


def test_training_goes_on_with_an_attribute_that_is_set_anew(caplog):
    words = ("changes the attribute(s)", "average")
    refused = assert_refused(SetsAttribute, caplog, *words, batches=(X + 2,) * 6)
    assert refused.owner.average.abs().sum() > 0


class CountsInBuffer(Base):
    def setup(self):
        self.register_buffer("runs", torch.zeros(()))

    def encode(self, x):
        self.runs += 1
        return self.encoder(x) + self.runs


class SetsCount(CountsInBuffer):
    def encode(self, x):
        self.runs = self.runs + 1
        return self.encoder(x) + self.runs


@pytest.mark.parametrize("make", [CountsInBuffer, SetsCount, SetsAttribute])
def test_evaluation_of_a_program_that_counts_agrees(make, caplog):
    found, buffers, owners = [], [], []
    for compile in (False, True):
        torch.manual_seed(0)
        program = as_program(make())
        with graphs_run_as_traced() if compile else nullcontext():
            options = {"num_particles": 6, "max_rows": 16, "compile": compile}
            found.append(evaluate(program, {"x": X}, **options).to_dict())
        buffers.append({n: b.clone() for n, b in program.named_buffers()})
        owners.append(program.owner)
    torch.testing.assert_close(*buffers)
    for name, value in found[0].items():
        assert found[1][name] == (value if value is None else pytest.approx(value, rel=1e-5)), name
    assert len(said(caplog)) == (make is SetsAttribute)
    if make is SetsAttribute:
        assert torch.equal(owners[0].average, owners[1].average)


@pytest.mark.parametrize("then", ["eager", "saved"])
def test_an_optimizers_earlier_state_may_be_loaded(then, caplog):
    """Its counters are then those that were loaded, whatever comes next."""
    batches, saved = [X] * 7, {}
    if then == "eager":
        batches[5] = X[:5]

    def go_back(step, i):
        if i == 1:
            saved[step] = copy.deepcopy(step.optimizer.state_dict())
        if i == 4:
            step.optimizer.load_state_dict(saved[step])
        if i == 4 and then == "saved":
            step.optimizer.state_dict()

    compiled = assert_compiled_alike(
        Base, caplog, each=go_back, batches=batches, compile=lambda rows: rows == 8
    )
    assert compiled.counters() == [4.0] * 3


def test_unequal_counters_that_are_loaded_are_kept(caplog):
    def load(step, i):
        if i == 2:
            saved = copy.deepcopy(step.optimizer.state_dict())
            saved["state"][0]["step"] += 50
            step.optimizer.load_state_dict(saved)

    compiled = assert_compiled_alike(Base, caplog, each=load)
    assert compiled.counters() == [56.0, 6.0, 6.0]


def test_a_copied_optimizer_has_counted_all_steps():
    with graphs_run_as_traced():
        compiled = run(Base)
    assert compiled.update is not None
    twin = copy.deepcopy(compiled.step.optimizer)
    assert [float(state["step"]) for state in twin.state.values()] == [6.0] * 3
    assert [float(s["step"]) for s in twin.state_dict()["state"].values()] == [6.0] * 3


def test_a_parameter_that_is_frozen_midway_stays(caplog):
    def freeze(step, i):
        if i == 2:
            step.program.owner.encoder.weight.requires_grad_(False)

    assert_compiled_alike(Base, caplog, each=freeze)


@pytest.mark.parametrize("often", [False, True])
def test_a_parameter_whose_data_are_replaced_is_followed(often, caplog):
    def replace(step, i):
        if often or i == 2:
            loc = step.program.owner.loc
            loc.data = loc.data.clamp(-0.015, 0.015)

    if not often:
        assert_compiled_alike(Base, caplog, each=replace)
        return
    eager, compiled = eager_and_compiled(Base, each=replace, batches=(X + 3,) * 8)
    assert_close(compiled, eager)
    (message,) = said(caplog)
    assert "parameters are replaced" in message
