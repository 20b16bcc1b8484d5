"""The compiled step: the same numbers as the eager one, or the eager one."""

from __future__ import annotations

import logging

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import GlobalMean, tiny_images, tiny_vae
from pyro.infer.autoguide import AutoNormal
from torch import nn
from unit.test_fit_estimators import DISCRETE, TinyBits

from inference import ESTIMATORS, fit
from inference.devices import make_fabric
from inference.elbo import GumbelSoftmax, make_estimator
from inference.handlers import KLWarmup
from inference.priming import prime
from inference.settings import WORTH_COMPILING
from inference.step import SVIStep
from inference.step_graph import NotCompiledError, StepInputs, trace_step
from ppl_models import PplError, Program, as_program


def step_of(program, estimator, x, **options) -> SVIStep:
    """A step of a primed program, ready to be compiled."""
    program = as_program(program)
    estimator.prepare(prime(program, {"x": x}, len(x)))
    warmup = options.pop("kl_warmup", KLWarmup(0))
    optimizer = torch.optim.SGD(program.parameters(), lr=0.1)
    return SVIStep(
        program, estimator, optimizer, make_fabric("cpu"), warmup, len(x), compile_worth=bool
    )


def both(step: SVIStep, x) -> tuple[list, list]:
    """Outputs of the traced graph, run as it is, and of the eager step, same random numbers."""
    inputs = StepInputs(step.compiled.module, step.compiled._up_to_date().schedules)
    traced = trace_step(inputs, {"x": x})
    flat = inputs.flat({"x": x})
    torch.manual_seed(5)
    ours = traced.graph(*flat)
    torch.manual_seed(5)
    with step.program.scope(), pyro.validation_enabled(False):
        eager = inputs.step(["x"])(*flat)
    changed = [n in traced.changed for n in inputs.kept]
    first = len(eager) - len(changed)
    kept = [v for v, new in zip(eager[first:], changed, strict=True) if new]
    return list(ours), [*eager[:first], *kept]


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


def test_buffers_that_a_step_updates_come_out_of_the_graph():
    step = step_of(Normed(), make_estimator("pathwise"), tiny_images(8))
    step.program.train()
    ours, eager = both(step, tiny_images(8))
    assert len(ours) == 1 + 6 + 3  # loss, gradients, the statistics of the batch norm
    for a, b in zip(ours, eager, strict=True):
        torch.testing.assert_close(a, b)


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
    ],
    ids=["schedules", "batch norm", "baseline", "float64"],
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
    warmup = KLWarmup(10)
    step = step_of(tiny_vae(), make_estimator("analytic_kl"), tiny_images(6), kl_warmup=warmup)
    inputs = step.compiled._up_to_date()
    traced = trace_step(inputs, {"x": tiny_images(6)})
    losses = []
    for at in (0, 9):
        warmup.at(at)
        torch.manual_seed(0)
        flat = step.compiled._up_to_date().flat({"x": tiny_images(6)})
        losses.append(float(traced.graph(*flat)[0]))
    assert losses[1] > losses[0]


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
        both(step, torch.randn(5))


def test_the_random_state_is_as_before_tracing():
    step = step_of(tiny_vae(), make_estimator("pathwise"), tiny_images(6))
    before = torch.get_rng_state()
    trace_step(step.compiled._up_to_date(), {"x": tiny_images(6)})
    assert torch.equal(torch.get_rng_state(), before)


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
