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
from inference.nonfinite import NonFiniteLossError, Recent
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
    generators: dict

    @property
    def owner(self):
        return self.step.program.owner

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
    return Run(step, losses, state, rng_state())


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
    for word in words:
        assert word in message
    assert compiled.losses == eager.losses
    for name, value in eager.state.items():
        assert torch.equal(compiled.state[name], value), name
    torch.testing.assert_close(compiled.generators, eager.generators, rtol=0, atol=0)
    return compiled


def assert_left_to_torch(compiled: Run):
    assert compiled.step.compiled._step.update is None


def assert_in_the_graph(compiled: Run):
    assert compiled.step.compiled._step.update is not None


# Hooks


def test_a_hook_on_a_gradient_is_refused(caplog):
    class Hooked(Base):
        def setup(self):
            self.encoder.weight.register_hook(lambda gradient: 0 * gradient)

    refused = assert_refused(Hooked, caplog, "hook on the gradient of", "encoder.weight")
    assert torch.equal(refused.owner.encoder.weight, ready(Hooked).program.owner.encoder.weight)


def test_a_hook_after_a_gradient_is_accumulated_is_refused(caplog):
    class Hooked(Base):
        def setup(self):
            self.loc.register_post_accumulate_grad_hook(lambda p: p.grad.zero_())

    refused = assert_refused(Hooked, caplog, "hook on the gradient of", "loc")
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
    assert_left_to_torch(compiled)
    assert max(float(p.detach().abs().max()) for p in compiled.step.parameters) <= 0.05


def test_a_schedule_of_torchs_leaves_the_update_in_the_graph(caplog):
    """It wraps the optimizer's step too, to count."""

    def one_cycle(parameters):
        optimizer = adam(parameters)
        optimizer.schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=20)
        return optimizer

    compiled = assert_compiled_alike(
        Base, caplog, make_optimizer=one_cycle, each=lambda s, i: s.optimizer.schedule.step()
    )
    assert_in_the_graph(compiled)


# Gradients, state and options of optimizers


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
    assert_left_to_torch(compiled)
    assert compiled.counters() == [6.0, 56.0, 106.0]


def test_a_momentum_that_a_schedule_raises_from_zero_is_used(caplog):
    def raise_it(step, i):
        step.optimizer.param_groups[0]["momentum"] = 0.0 if i < 2 else 0.9

    assert_compiled_alike(Base, caplog, make_optimizer=sgd, each=raise_it)


def test_an_optimizer_with_a_parameter_of_another_program_is_refused(caplog):
    def foreign(parameters):
        return sgd([*parameters, nn.Parameter(torch.zeros(2))])

    words = "the optimizer holds a parameter that is not the program's"
    assert_refused(Base, caplog, words, make_optimizer=foreign)


def test_an_optimizers_state_may_be_loaded_midway(caplog):
    def load(step, i):
        if i == 2:
            saved = copy.deepcopy(step.optimizer.state_dict())
            step.optimizer.load_state_dict(saved)

    compiled = assert_compiled_alike(Base, caplog, each=load)
    assert_in_the_graph(compiled)
    assert compiled.counters() == [6.0] * 3


@pytest.mark.parametrize("then", ["compiled", "eager", "saved"])
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
    assert_in_the_graph(compiled)
    twin = copy.deepcopy(compiled.step.optimizer)
    assert [float(state["step"]) for state in twin.state.values()] == [6.0] * 3
    assert [float(s["step"]) for s in twin.state_dict()["state"].values()] == [6.0] * 3


# Parameters that change between steps


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


# Losses that are not finite


class Rare(Base):
    """Its scale is NaN where the first datum's latent is large, as some draws have it."""

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0).to_event(1))
            scale = torch.where(z[0, 0] > 1.0, torch.nan, 1.0)
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


@pytest.mark.parametrize("make_optimizer", [sgd, adam])
def test_training_goes_on_after_a_bad_step_that_was_caught(make_optimizer):
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
    mine, its = (step.optimizer.state_dict()["state"] for step in steps)
    torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)
