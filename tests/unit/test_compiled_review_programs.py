"""The compiled step and evaluation beside eager ones: programs that set, count, draw or hook."""

from __future__ import annotations

import logging
import random

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_helpers import traced
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint
from unit.test_compiled_review import (
    Base,
    X,
    assert_close,
    assert_compiled_alike,
    assert_refused,
    eager_and_compiled,
    generators,
    graphs_run_as_traced,
    ready,
    run,
    said,
    sgd,
)

from inference.graphs import NotCompiledError

SHORT = X[:5]


def by_eight(rows):
    """Whether a batch is to be compiled: short ones are not."""
    return rows == 8


# Buffers, frozen parameters and attributes that a program sets


class SetsBuffer(Base):
    def setup(self):
        self.register_buffer("average", torch.zeros(3))

    def encode(self, x):
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        return self.encoder(x - self.average)


class SetsParameter(Base):
    def setup(self):
        self.code = nn.Parameter(torch.zeros(3), requires_grad=False)

    def encode(self, x):
        code = 0.9 * self.code + 0.1 * x.detach().mean(0)
        self.code = nn.Parameter(code, requires_grad=False)
        return self.encoder(x - self.code)


@pytest.mark.parametrize("make", [SetsBuffer, SetsParameter])
def test_what_a_program_sets_anew_is_kept(make, caplog):
    assert_compiled_alike(make, caplog, batches=(X + 2,) * 6)


@pytest.mark.parametrize("make", [SetsBuffer, SetsParameter])
def test_what_a_program_sets_in_eager_steps_in_between_is_kept(make, caplog):
    options = {"compile": by_eight, "make_optimizer": sgd}
    assert_compiled_alike(make, caplog, batches=[X, X, SHORT, X, X, SHORT, X], **options)
    alternating = [X, SHORT] * 6
    eager, compiled = eager_and_compiled(make, batches=alternating, **options)
    assert_close(compiled, eager)


class Counts(Base):
    """Weighs its prior by how often it has run."""

    def setup(self):
        self.runs = 0

    def mean(self, z):
        self.runs += 1
        return z * (1 + self.runs / 100_000) + self.loc


def test_a_counter_is_refused_by_name(caplog):
    refused = assert_refused(Counts, caplog, "changes the attribute(s)", "runs", "register_buffer")
    assert refused.owner.runs == run(Counts, compile=None).owner.runs


class DrawsFromNumpy(Base):
    def encode(self, x):
        shift = np.random.randn(3)  # noqa: NPY002
        return self.encoder(x + torch.as_tensor(shift, dtype=x.dtype))


class DrawsFromPython(Base):
    def encode(self, x):
        return self.encoder(x) * (0.0 if random.random() < 0.1 else 1.0)


@pytest.mark.parametrize(("make", "name"), [(DrawsFromNumpy, "numpy"), (DrawsFromPython, "random")])
def test_draws_that_are_not_torchs_are_refused(make, name, caplog):
    assert_refused(make, caplog, f"it draws from {name}", "draw from torch")


class RunsAgain(Base):
    """The backward pass runs its encoder anew, with the module's own parameters."""

    def setup(self):
        self.encoder = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))

    def encode(self, x):
        return checkpoint(self.encoder, x, use_reentrant=False)


def test_a_graph_that_holds_a_trained_parameter_as_a_constant_is_refused(caplog):
    words = ("the graph holds", "owner.encoder.2.weight", "torch.utils.checkpoint")
    assert_refused(RunsAgain, caplog, *words)


class HandsParameters(RunsAgain):
    """Its twin, whose second run takes the parameters of the first."""

    def encode(self, x):
        names, parameters = zip(*self.encoder.named_parameters(), strict=True)

        def again(x, *values):
            return functional_call(self.encoder, dict(zip(names, values, strict=True)), x)

        return checkpoint(again, x, *parameters, use_reentrant=False)


def test_its_twin_that_hands_them_over_is_compiled(caplog):
    assert_compiled_alike(HandsParameters, caplog)


DRIFT = {"by": 0.0}


class Drifts(Base):
    def mean(self, z):
        return z + self.loc + DRIFT["by"]


def test_a_slow_drift_through_a_global_is_found_in_the_end(caplog, monkeypatch):
    failures = []

    def drift(step, i):
        DRIFT["by"] += 2e-5
        failures.append(step.compiled.failure)

    monkeypatch.setitem(DRIFT, "by", 0.0)
    with graphs_run_as_traced():
        run(Drifts, each=drift, batches=(X,) * 40)
    found = next(i for i, failure in enumerate(failures) if failure is not None)
    assert found in (4, 8, 16, 32)  # the first step is eager
    assert "compiled and eager differ at" in failures[-1]
    assert len(said(caplog)) == 1


class SteepWithBuffer(Base):
    """Gradients of millions beside a buffer of about one, which depends on a global."""

    def setup(self):
        self.register_buffer("mark", torch.zeros(()))

    def mean(self, z):
        DRIFT["by"] += 1.0
        self.mark.fill_(DRIFT["by"])
        return 30_000 * super().mean(z)


def test_a_buffer_that_differs_is_found_beside_large_gradients(caplog, monkeypatch):
    monkeypatch.setitem(DRIFT, "by", 0.0)
    with graphs_run_as_traced():
        steep = run(SteepWithBuffer, make_optimizer=lambda ps: torch.optim.SGD(ps, lr=0.0))
    assert max(float(p.grad.abs().max()) for p in steep.step.parameters) > 1e7
    (message,) = said(caplog)
    assert "compiled and eager differ at" in message
    assert "mark by 1 " in message


class Views(Base):
    def setup(self):
        self.register_buffer("whole", torch.zeros(6))
        self.register_buffer("part", self.whole[:3])

    def encode(self, x):
        self.whole.add_(0.5)
        return self.encoder(x) + self.part


class ViewsParameter(Base):
    def setup(self):
        self.register_buffer("part", self.loc.detach())

    def encode(self, x):
        return self.encoder(x) + self.part


@pytest.mark.parametrize(("make", "names"), [(Views, "whole"), (ViewsParameter, "loc")])
def test_views_of_one_memory_are_refused(make, names, caplog):
    assert_refused(make, caplog, "are views of one memory", names, "part")


# What a refused trace leaves behind


class WritesAttribute(Base):
    def setup(self):
        self.average = torch.zeros(3)

    def encode(self, x):
        self.average.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return self.encoder(x - self.average)


class SetsAndBranches(Base):
    def setup(self):
        self.average = torch.zeros(3)

    def encode(self, x):
        self.average = 0.9 * self.average + 0.1 * x.detach().mean(0)
        np.random.rand()  # noqa: NPY002
        random.random()
        hidden = self.encoder(x - self.average)
        return 2 * hidden if float(x.sum()) > 1e9 else hidden


class HoldsPrior(Base):
    """Its distribution works out logits when first asked, and keeps them."""

    def setup(self):
        self.prior = dist.Categorical(probs=torch.ones(3) / 3)

    def encode(self, x):
        return self.encoder(x) + self.prior.logits


def fakes(thing) -> list[str]:
    """Names of what tracing has left in an object."""
    return [name for name, value in vars(thing).items() if isinstance(value, FakeTensor)]


@pytest.mark.parametrize("make", [WritesAttribute, SetsAndBranches, Counts])
def test_a_refused_trace_leaves_program_and_generators_as_they_were(make):
    step = ready(make)
    owner, before, drawn = step.program.owner, vars(step.program.owner).copy(), generators()
    values = {k: v.clone() for k, v in before.items() if isinstance(v, Tensor)}
    with pytest.raises(NotCompiledError):
        traced(step, X)
    assert generators() == drawn
    assert fakes(owner) == []
    assert all(vars(owner)[name] is value for name, value in before.items())
    assert all(torch.equal(vars(owner)[name], value) for name, value in values.items())


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (WritesAttribute, "changes the attribute(s) owner.average"),
        (SetsAndBranches, "a tensor's value"),
    ],
)
def test_training_goes_on_with_an_attribute_that_was_traced(make, reason, caplog):
    refused = assert_refused(make, caplog, reason, batches=(X + 2,) * 6)
    assert refused.owner.average.abs().sum() > 0


def test_a_distribution_that_a_program_holds_keeps_real_numbers(caplog):
    compiled = assert_compiled_alike(HoldsPrior, caplog)
    assert fakes(compiled.owner.prior) == []
    step = ready(HoldsPrior)
    traced(step, X)
    assert fakes(step.program.owner.prior) == []
    torch.testing.assert_close(step.program.owner.prior.logits, torch.full((3,), 1 / 3).log())


# Kinds of tensors


class Complex(Base):
    def setup(self):
        self.turn = nn.Parameter(torch.full((3,), 1 + 2j))

    def encode(self, x):
        return self.encoder(x) + self.turn.abs() + self.turn.imag


class Empty(Base):
    def setup(self):
        self.nothing = nn.Parameter(torch.zeros(0))
        self.register_buffer("none", torch.zeros(0))

    def encode(self, x):
        return self.encoder(x) + self.nothing.sum()


class Masked(Base):
    """A causal mask: a buffer with -inf, which nothing changes."""

    def setup(self):
        self.register_buffer("mask", torch.triu(torch.full((3, 3), -torch.inf), 1))

    def encode(self, x):
        return self.encoder(torch.softmax(x[:, None, :] + self.mask, -1)[:, 0])


class Registers(Base):
    """As Pyro's tutorials do."""

    def model(self, x):
        pyro.module("encoder", self.encoder)
        super().model(x)

    def guide(self, x):
        pyro.module("encoder", self.encoder)
        super().guide(x)


@pytest.mark.parametrize("make_optimizer", [torch.optim.Adam, sgd], ids=["Adam", "SGD"])
@pytest.mark.parametrize("make", [Complex, Empty, Masked, Registers])
def test_unusual_tensors_and_registered_modules_train_compiled(make, make_optimizer, caplog):
    assert_compiled_alike(make, caplog, make_optimizer=make_optimizer, batches=(X + 3,) * 5)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []
