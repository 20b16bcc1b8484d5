"""The compiled step: the same numbers as the eager one, or the eager one."""

from __future__ import annotations

import logging

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_helpers import both, outcome, step_of, traced
from programs import GaussianToy, GlobalMean, tiny_images, tiny_vae
from pyro.infer.autoguide import AutoNormal
from torch import nn
from unit.test_fit_estimators import DISCRETE, TinyBits

from inference import ESTIMATORS, fit
from inference.elbo import GumbelSoftmax, make_estimator
from inference.graphs import NotCompiledError
from inference.handlers import KLWarmup
from inference.nonfinite import NonFiniteLossError, Recent, Step
from inference.settings import WORTH_COMPILING
from ppl_models import PplError, Program


@pytest.mark.parametrize("vectorize", [False, True])
@pytest.mark.parametrize("name", ESTIMATORS)
def test_the_graph_of_every_estimator_gives_the_eager_numbers(name, vectorize):
    program = TinyBits() if name in DISCRETE else tiny_vae()
    estimator = make_estimator(name, 2, vectorize_particles=vectorize)
    ours, eager = both(step_of(program, estimator, tiny_images(6)), tiny_images(6))
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


class Normed(nn.Module):
    """Batch norm in the encoder, a frozen parameter, a pyro.param with a constraint."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 2, bias=False), nn.BatchNorm1d(2))
        self.decoder = nn.Linear(2, 16)
        self.frozen = nn.Parameter(torch.ones(()), requires_grad=False)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), self.frozen).to_event(1))
            logits = self.decoder(z).unflatten(-1, (1, 4, 4))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(self, x):
        scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x.flatten(1)), scale).to_event(1))


def test_buffers_that_a_step_updates_are_written_back():
    x = tiny_images(8)
    step = step_of(Normed(), make_estimator("pathwise"), x)
    step.program.train()
    before = [b.clone() for b in step.program.buffers()]
    ours, eager = both(step, x)
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b)
    held = step.compiled.step_graph().held
    first = len(ours) - len(step.compiled.step_graph().flat({"x": x})) + len(held.trained)
    frozen = len(held.kept) - len(before)
    for old, new in zip(before, ours[first + frozen :], strict=False):
        assert not torch.equal(old, new)


def train(make, *, compile, data=None, **options):
    torch.manual_seed(0)
    defaults = {"epochs": 3, "batch_size": 16, "keep": "last", "progress": False}
    return fit(
        make(), tiny_images(100) if data is None else data, compile=compile, **(defaults | options)
    )


def assert_same_training(make, **options):
    eager, compiled = (train(make, compile=c, **options) for c in (False, True))
    theirs = eager.program.state_dict()
    for name, value in compiled.program.state_dict().items():
        torch.testing.assert_close(value, theirs[name], rtol=1e-4, atol=1e-5)
    assert compiled.elbo == pytest.approx(eager.elbo, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "options"),
    [
        (tiny_vae, {"kl_warmup": 2.0, "lr_schedule": "cosine", "clip_grad_norm": 1.0}),
        (Normed, {"estimator": "leave_one_out", "num_particles": 2}),
        (tiny_vae, {"estimator": "decaying_average"}),
        (TinyBits, {"estimator": "enumerate", "precision": "64"}),
        (tiny_vae, {"optimizer": "RMSprop", "clip_grad_norm": 0.5}),
        (tiny_vae, {"precision": "bf16", "optimizer": "AdamW"}),
    ],
    ids=["schedules", "batch norm", "baseline", "float64", "torch's own update", "bf16"],
)
def test_compiled_and_eager_training_end_alike(make, options, caplog):
    with caplog.at_level(logging.WARNING):
        assert_same_training(make, **options)
    assert "without compiling" not in caplog.text


@pytest.mark.slow
def test_global_latents_an_autoguide_and_a_temperature():
    class Auto:
        def __init__(self):
            self.model = GlobalMean().model
            self.guide = AutoNormal(self.model)

    assert_same_training(Auto, data=torch.randn(60), estimator="pathwise")
    assert_same_training(TinyBits, estimator=GumbelSoftmax(temperature=0.7), epochs=2)


def test_a_schedule_is_no_constant_of_the_graph():
    warmup, x = KLWarmup(10), tiny_images(6)
    step = step_of(tiny_vae(), make_estimator("analytic_kl"), x, kl_warmup=warmup)
    graph, losses = traced(step, x), []
    for at in (0, 9):
        warmup.at(at)
        losses.append(float(outcome(step, graph, x)[0]))
    assert losses[1] > losses[0]


def test_a_minibatch_that_the_plate_draws_is_another_at_every_step():
    class Subsampled(GaussianToy):
        def model(self, x):
            with pyro.plate("data", len(x), subsample_size=3, dim=-1) as index:
                z = pyro.sample("z", dist.Normal(torch.zeros(3), 1.0))
                pyro.sample("x", dist.Normal(z + self.b, self.s), obs=x[index])

        def guide(self, x):
            with pyro.plate("data", len(x), subsample_size=3, dim=-1):
                pyro.sample("z", dist.Normal(self.m, self.log_sigma.exp()))

    x = torch.randn(7)
    step = step_of(Subsampled(), make_estimator("pathwise"), x)
    ours, eager = both(step, x)
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b)
    graph = traced(step, x)
    assert len({float(outcome(step, graph, x, seed)[0]) for seed in range(5)}) == 5


def branching(x):
    with pyro.plate("data", len(x), dim=-1):
        z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
        if z.sum() > 0:
            z = 2 * z
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


class Branching(nn.Module):
    """Reads a tensor's value."""

    def __init__(self):
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(()))

    def model(self, x):
        branching(x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.loc.expand(len(x)), 1.0))


def test_what_cannot_be_traced_trains_eagerly_and_says_where(caplog):
    with caplog.at_level(logging.WARNING):
        compiled = train(Branching, compile=True, data=torch.randn(100))
    said = [r.message for r in caplog.records if "without compiling" in r.message]
    assert len(said) == 1
    assert "test_compiled.py, line" in said[0]
    eager = train(Branching, compile=False, data=torch.randn(100))
    assert compiled.history[-1]["epoch"] == eager.history[-1]["epoch"] == 3


def test_networks_that_functions_hold_are_refused_by_name():
    net = nn.Linear(1, 1)

    def model(x):
        pyro.module("net", net)
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(net(z[:, None])[:, 0], 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(x, 1.0))

    step = step_of(Program(model, guide), make_estimator("pathwise"), torch.randn(5))
    with pytest.raises(NotCompiledError, match="a function holds the network itself"):
        traced(step, torch.randn(5))


def test_the_random_state_is_as_before_tracing():
    step = step_of(tiny_vae(), make_estimator("pathwise"), tiny_images(6))
    before = torch.get_rng_state()
    traced(step, tiny_images(6))
    assert torch.equal(torch.get_rng_state(), before)


class Counting(GaussianToy):
    """What it computes depends on how often it has run: on no tensor that a graph could take."""

    runs = 0

    def model(self, x):
        type(self).runs += 1
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
            pyro.sample("x", dist.Normal(z + self.b, 1.0 + self.runs), obs=x)


@pytest.mark.slow
def test_a_program_that_is_no_function_of_its_inputs_is_not_compiled(caplog):
    """The check before the first compiled step finds it out, and training goes on eagerly."""
    with caplog.at_level(logging.WARNING):
        fitted = train(Counting, compile=True, data=torch.randn(100))
    said = [r.message for r in caplog.records if "without compiling" in r.message]
    assert len(said) == 1
    assert "compiled and eager differ at the loss" in said[0]
    assert len(fitted.history) == 3


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_a_compiled_run_unchanged(caplog):
    """At the third step, after the graph is made; the message names the site."""

    class Breaking(GaussianToy):
        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
                scale = torch.where(x.max() > 50, torch.nan, 1.0)
                pyro.sample("x", dist.Normal(z + self.b, scale), obs=x)

    x = torch.randn(20)
    step = step_of(Breaking(), make_estimator("pathwise"), x)
    with step.program.scope(), pyro.validation_enabled(False):
        step({"x": x})
        step({"x": x})
        assert step.compiled.failure is None
        before = [p.detach().clone() for p in step.parameters]
        with pytest.raises(NonFiniteLossError, match="not finite at site 'x' of the model"):
            step({"x": x + 100})
    for a, b in zip(before, step.parameters, strict=True):
        assert torch.equal(a, b)


def test_the_first_of_the_bad_steps_is_found():
    recent = Recent(every=4)
    steps = [Step({}, [], torch.tensor(float(i))) for i in range(4)]
    for step in steps[:3]:
        recent.add(step)
        assert not recent.due
    recent.add(steps[3])
    assert recent.due
    assert recent.first_bad(torch.tensor(2)) is steps[2]
    recent.add(steps[0])
    assert not recent.due
    assert recent.first_bad(torch.tensor(0)) is None


def test_auto_compiles_long_runs_alone():
    from inference.settings import Settings

    def worth(compile, epochs):
        settings = dict.fromkeys(Settings.__dataclass_fields__, None) | {
            "estimator": "pathwise",
            "num_particles": 1,
            "optimizer": "Adam",
            "learning_rate": 1e-3,
            "lr_schedule": "constant",
            "epochs": epochs,
            "batch_size": 10,
            "kl_warmup": 0.0,
            "max_skipped": 0,
            "average_decay": 0.0,
            "precision": "32",
            "compile": compile,
        }
        return Settings(**settings).compile_worth(105)

    assert worth(False, 10**6) is None
    assert worth("auto", 5) is None
    long = worth("auto", WORTH_COMPILING // 10)
    assert long(10)
    assert not long(5)
    assert worth(True, 1)(10)
    assert not worth(True, 1)(5)
    assert worth(True, WORTH_COMPILING)(5)
    with pytest.raises(PplError, match="compile must be"):
        worth("yes", 1)
