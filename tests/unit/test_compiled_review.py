"""The compiled step beside an eager one: optimizers, hooks, and what changes between steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from unittest.mock import patch

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_helpers import sgd, step_of
from torch import Tensor, nn

from inference.devices import rng_state, seed_all
from inference.elbo import make_estimator
from inference.step import SVIStep

X = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))


class Base(nn.Module):
    """z ~ N(0, I), x | z ~ N(mean(z), I), q = N(encode(x), ½² I)."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(3))
        self.encoder = nn.Linear(3, 3)
        self.setup()

    def setup(self):
        pass

    def mean(self, z):
        return z + self.loc

    def encode(self, x):
        return self.encoder(x)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(self.mean(z), 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encode(x), 0.5).to_event(1))


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


@contextmanager
def graphs_run_as_traced() -> Iterator[None]:
    """Within, no graph is made machine code, which takes seconds."""

    def compile_graph(graph, flat):
        return lambda values: graph(*values)

    with (
        patch("inference.compiled.compile_graph", compile_graph),
        patch("inference.compiled_weights.compile_graph", compile_graph),
    ):
        yield


@contextmanager
def taking(step: SVIStep) -> Iterator[None]:
    """Within, steps are taken as ``fit`` takes them."""
    step.program.train()
    with step.program.scope(), pyro.validation_enabled(False):
        step.program.sealed = True
        yield


@dataclass
class Run:
    """What is left after some steps."""

    step: SVIStep
    losses: list[float]
    state: dict[str, Tensor]
    generators: list

    @property
    def owner(self):
        return self.step.program.owner

    @property
    def update(self):
        """Of the graph; None: it is left to torch."""
        return self.step.compiled._step.update

    def counters(self) -> list[float]:
        states = self.step.optimizer.state_dict()["state"].values()
        return [float(state["step"]) for state in states]


def ready(make, *, compile=bool, make_optimizer=adam, clip=None) -> SVIStep:
    seed_all(0)
    options = {"compile_worth": compile, "clip_grad_norm": clip}
    program, estimator = make(), make_estimator("pathwise")
    return step_of(program, estimator, X, make_optimizer=make_optimizer, **options)


def run(make, *, batches=(X,) * 6, each: Callable | None = None, **options) -> Run:
    """Some steps; ``each`` is called after every one, with the step and its index."""
    step = ready(make, **options)
    losses = []
    seed_all(1)
    with taking(step):
        for i, batch in enumerate(batches):
            losses.append(float(step({"x": batch.clone()})[0]))
            if each is not None:
                each(step, i)
    state = {name: value.detach().clone() for name, value in step.program.state_dict().items()}
    return Run(step, losses, state, generators())


def generators() -> list:
    """States of torch's, numpy's and Python's."""
    state = rng_state()
    _, keys, *rest = state["numpy"]
    return [state["torch"].tolist(), keys.tolist(), rest, state["python"]]


def eager_and_compiled(make, *, compile=bool, **options) -> tuple[Run, Run]:
    eager = run(make, compile=None, **options)
    with graphs_run_as_traced():
        return eager, run(make, compile=compile, **options)


def said(caplog) -> list[str]:
    """What the log tells of a compiled form that was given up."""
    records = [r for r in caplog.records if r.name == "inference.graphs"]
    return [r.message for r in records if "goes on without compiling: " in r.message]


def assert_close(ours: Run, theirs: Run):
    assert ours.losses == pytest.approx(theirs.losses, rel=1e-5)
    assert list(ours.state) == list(theirs.state)
    for name, value in theirs.state.items():
        torch.testing.assert_close(ours.state[name], value, rtol=1e-4, atol=1e-6, msg=name)


def assert_compiled_alike(make, caplog, **options) -> Run:
    """Compiled to the end, with the numbers of eager steps, and moving."""
    eager, compiled = eager_and_compiled(make, **options)
    assert said(caplog) == []
    assert compiled.step.compiled.failure is None
    assert compiled.step.compiled._taken > 0
    assert_close(compiled, eager)
    return compiled


def assert_refused(make, caplog, *words: str, **options) -> Run:
    """Refused once, in these words, and from then on eager to the last bit."""
    eager, compiled = eager_and_compiled(make, **options)
    (message,) = said(caplog)
    assert message.startswith("training goes on without compiling: ")
    assert all(word in message for word in words), message
    assert compiled.losses == eager.losses
    for name, value in eager.state.items():
        assert torch.equal(compiled.state[name], value), name
    assert compiled.generators == eager.generators
    return compiled


def drop_gradient(parameter):
    parameter.grad.zero_()


HOOKS = {
    "hook": lambda p: p.register_hook(torch.zeros_like),
    "post hook": lambda p: p.register_post_accumulate_grad_hook(drop_gradient),
}


@pytest.mark.parametrize("kind", HOOKS)
def test_a_hook_on_a_gradient_is_refused(kind, caplog):
    class Hooked(Base):
        def setup(self):
            HOOKS[kind](self.loc)

    refused = assert_refused(Hooked, caplog, "a hook on the gradient of program.owner.loc")
    assert torch.equal(refused.owner.loc, torch.zeros(3))


def clamp(optimizer, *args):
    with torch.no_grad():
        for parameter in optimizer.param_groups[0]["params"]:
            parameter.clamp_(-0.05, 0.05)


def with_post_hook(parameters):
    optimizer = adam(parameters)
    optimizer.register_step_post_hook(clamp)
    return optimizer


def with_wrapped_step(parameters):
    optimizer = adam(parameters)
    take = optimizer.step

    def step():
        take()
        clamp(optimizer)

    optimizer.step = step
    return optimizer


@pytest.mark.parametrize("make_optimizer", [with_post_hook, with_wrapped_step])
def test_what_a_user_adds_to_an_optimizers_step_is_done(make_optimizer, caplog):
    compiled = assert_compiled_alike(Base, caplog, make_optimizer=make_optimizer)
    assert compiled.update is None
    assert max(float(p.detach().abs().max()) for p in compiled.step.parameters) <= 0.0501


class Added(Base):
    """Two parameters that enter as a sum have one gradient."""

    def setup(self):
        self.shift = nn.Parameter(torch.zeros(3))

    def mean(self, z):
        return z + (self.loc + self.shift)


@pytest.mark.parametrize("make_optimizer", [torch.optim.RMSprop, adam, sgd])
def test_a_gradient_that_two_parameters_share_is_clipped_once(make_optimizer, caplog):
    options = {"make_optimizer": make_optimizer, "clip": 0.1, "batches": (X + 3,) * 6}
    assert_compiled_alike(Added, caplog, **options)


def test_adam_with_unequal_counters_is_left_to_torch(caplog):
    def unequal(parameters):
        optimizer = adam(parameters)
        for i, p in enumerate(parameters):
            moments = {"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}
            optimizer.state[p] = {"step": torch.tensor(50.0 * i), **moments}
        return optimizer

    compiled = assert_compiled_alike(Base, caplog, make_optimizer=unequal)
    assert compiled.update is None
    assert compiled.counters() == [6.0, 56.0, 106.0]


def test_a_momentum_that_a_schedule_raises_from_zero_is_used(caplog):
    def raise_it(step, i):
        step.optimizer.param_groups[0]["momentum"] = 0.0 if i < 2 else 0.9

    assert_compiled_alike(Base, caplog, make_optimizer=sgd, each=raise_it)


def test_an_optimizer_with_a_parameter_of_another_program_is_refused(caplog):
    def foreign(parameters):
        return sgd([*parameters, nn.Parameter(torch.zeros(2))])

    assert_refused(Base, caplog, "parameter that is not the program's", make_optimizer=foreign)


def test_an_optimizers_state_may_be_loaded_midway(caplog):
    def load(step, i):
        if i == 2:
            step.optimizer.load_state_dict(copy.deepcopy(step.optimizer.state_dict()))

    compiled = assert_compiled_alike(Base, caplog, each=load)
    assert compiled.update is not None
    assert compiled.counters() == [6.0] * 3


def test_a_parameter_that_is_frozen_midway_stays(caplog):
    def freeze(step, i):
        if i == 2:
            step.program.owner.encoder.weight.requires_grad_(False)

    assert_compiled_alike(Base, caplog, each=freeze, make_optimizer=sgd)


@pytest.mark.parametrize("turns", [1, 6])
def test_a_parameter_whose_data_are_replaced_is_followed(turns, caplog):
    """Or, if that happens often, the step is given up, without a step lost."""

    def replace(step, i):
        if i >= 6 - turns:
            loc = step.program.owner.loc
            loc.data = loc.data.clamp(-0.015, 0.015)

    eager, compiled = eager_and_compiled(
        Base, each=replace, make_optimizer=sgd, batches=(X + 1,) * 7
    )
    assert_close(compiled, eager)
    assert ["parameters are replaced" in message for message in said(caplog)] == [True] * (
        turns > 3
    )
