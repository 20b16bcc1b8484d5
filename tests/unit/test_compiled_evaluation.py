"""Evaluation by a compiled graph: the numbers of the eager one."""

from __future__ import annotations

import logging
import math
from dataclasses import MISSING, fields

import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import GaussianToy, GlobalMean, tiny_images, tiny_vae
from pyro.infer.autoguide import AutoNormal
from torch import nn

from inference import compiled_weights, evaluate, fit
from inference.compiled_weights import CompiledDensities
from inference.settings import Settings
from inference.weights import evaluation_mode, particle_blocks, run_densities
from ppl_models import PplError, as_program


class Auto:
    def __init__(self):
        self.model = GlobalMean().model
        self.guide = AutoNormal(self.model)


class Normed(nn.Module):
    """Batch norm and dropout, which evaluation leaves as they are."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(16, 2), nn.BatchNorm1d(2), nn.Dropout(0.5))
        self.decoder = nn.Linear(2, 16)

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            logits = self.decoder(z).unflatten(-1, (1, 4, 4))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", dist.Normal(self.encoder(x.flatten(1)), 0.5).to_event(1))


PROGRAMS = {
    "vae": (tiny_vae, lambda: tiny_images(12)),
    "global": (Auto, lambda: torch.randn(12)),
    "batch norm": (Normed, lambda: tiny_images(12)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", PROGRAMS)
def test_compiled_and_eager_evaluation_agree(name, caplog):
    make, data = PROGRAMS[name]
    program, x = make(), data()
    if name == "global":
        fit(program, x, estimator="pathwise", epochs=1, progress=False)
    batches = [{"x": x[:6]}, {"x": x[6:]}]
    options = {"num_particles": 7, "max_rows": 18, "num_data": 12}
    with caplog.at_level(logging.WARNING):
        ours, eager = (evaluate(program, batches, compile=c, **options) for c in (True, False))
    assert "without compiling" not in caplog.text
    theirs = eager.to_dict()
    for key, value in ours.to_dict().items():
        expected = theirs[key]
        assert value == (expected if expected is None else pytest.approx(expected, rel=1e-5)), key


@pytest.mark.slow
def test_the_graph_follows_the_parameters():
    program = as_program(GaussianToy())
    take, x = CompiledDensities(after=0), {"x": torch.randn(5)}
    with evaluation_mode(program), torch.no_grad():
        take(program, x, 1, None)  # the first is eager
        first = take(program, x, 1, None).log_weights
        program.owner.b += 3.0
        torch.manual_seed(1)
        ours = take(program, x, 1, None)
        torch.manual_seed(1)
        theirs = run_densities(program, x, 1, None)
    assert take.graphs.failure is None
    assert not torch.allclose(first, ours.log_weights)
    torch.testing.assert_close(ours.log_weights, theirs.log_weights)
    assert (ours.dims, ours.discrete) == (theirs.dims, theirs.discrete)


def test_auto_compiles_shapes_that_come_often(monkeypatch):
    """By rows; asked for, at the second run; asked not to, never."""
    by_graph = []

    class Graph:
        def __init__(self, *asked):
            self.asked = asked

        def run(self, batch):
            by_graph.append(len(batch["x"]))
            return run_densities(*self.asked)

    monkeypatch.setattr(compiled_weights, "MANY_ROWS", 10)
    monkeypatch.setattr(compiled_weights, "_Graph", Graph)
    program, x = as_program(GaussianToy()), {"x": torch.randn(4)}
    for asked, eager in [("auto", 3), (True, 1), (False, 6)]:
        by_graph.clear()
        take = CompiledDensities.asked(asked)
        for _ in range(6):
            take(program, x, 1, None)
        assert len(by_graph) == 6 - eager
    with pytest.raises(PplError, match="compile must be"):
        evaluate(GaussianToy(), x, compile="maybe")


def test_what_cannot_be_traced_is_evaluated_eagerly_and_says_where(caplog):
    class Branching(GaussianToy):
        def model(self, x):
            with pyro.plate("data", len(x), dim=-1):
                z = pyro.sample("z", dist.Normal(torch.zeros(len(x)), 1.0))
                if z.sum() > 0:
                    z = 2 * z
                pyro.sample("x", dist.Normal(z, self.s), obs=x)

    options = {"num_particles": 3, "max_rows": 4}
    x = {"x": torch.randn(4)}
    with caplog.at_level(logging.WARNING):
        ours = evaluate(Branching(), x, compile=True, **options)
    said = [r.message for r in caplog.records if "without compiling" in r.message]
    assert len(said) == 1
    assert "test_compiled_evaluation.py, line" in said[0]
    assert ours.elbo == evaluate(Branching(), x, compile=False, **options).elbo


@pytest.mark.parametrize(("particles", "max_rows"), [(1, 4), (5, 4), (7, 12), (6, 100)])
def test_blocks_hold_all_particles_and_no_more_rows_than_asked(particles, max_rows):
    sizes = []

    def take(program, batch, num_particles, num_data):
        sizes.append(len(batch["x"]))
        return run_densities(program, batch, num_particles, num_data)

    program = as_program(GaussianToy())
    x = {"x": torch.randn(4)}
    blocks = list(particle_blocks(program, x, particles, None, max_rows, take))
    assert sum(len(block.log_weights) for block in blocks) == particles
    assert max(sizes) <= max_rows
    assert sum(sizes) == 4 * particles
    assert all(len(b.log_weights) <= math.ceil(max_rows / 4) for b in blocks)


def test_a_long_run_compiles_its_validation():
    required = {f.name for f in fields(Settings) if f.default is MISSING}
    defaults = dict.fromkeys(required, None)
    options = {
        "estimator": "pathwise",
        "num_particles": 1,
        "optimizer": "Adam",
        "learning_rate": 1e-3,
        "lr_schedule": "constant",
        "batch_size": 10,
        "kl_warmup": 0.0,
        "precision": "32",
    }

    def compiles(compile, epochs):
        settings = Settings(**(defaults | options | {"compile": compile, "epochs": epochs}))
        return settings.compiles_validation(100, 2**12)

    assert compiles(True, 256)
    assert not compiles(True, 255)
    assert not compiles("auto", 256)
    assert compiles("auto", 2000)
    assert not compiles(False, 2000)
