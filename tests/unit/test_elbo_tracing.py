"""Graphs of loss and gradients, stock SVI, and what an estimator keeps from step to step."""

from __future__ import annotations

import copy
import gc

import pyro
import pytest
import torch
from elbo_helpers import CONTINUOUS, gradients, make, served
from programs import DiscreteVAE, tiny_images, tiny_vae
from pyro.infer import SVI
from torch import nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx

from inference.elbo import ESTIMATORS, make_estimator
from ppl_models import as_program

STATEFUL = ["decaying_average", "neural_baseline", "rebar", "relax"]
NETWORKS = ["neural_baseline", "relax"]


def vae_for(name: str, **options):
    return tiny_vae() if name in CONTINUOUS else DiscreteVAE(**options)


class Loss(nn.Module):
    """An estimator's loss as a function of parameters and of the estimator's state."""

    def __init__(self, program, estimator):
        super().__init__()
        self.program, self.estimator, self.state = program, estimator, estimator.state

    def forward(self, x):
        program = self.program
        return self.estimator.differentiable_loss(program.run_model, program.run_guide, {"x": x})


OWN_DRAWS = ["enumerate", "rebar", "relax", "gumbel_softmax", "straight_through"]
"""Torch's ``OneHotCategorical.sample`` reads its values (``one_hot``); these do without it."""
TRACED = [(name, False) for name in ESTIMATORS] + [(name, True) for name in OWN_DRAWS]


@pytest.mark.parametrize(("name", "one_hot"), TRACED)
@pytest.mark.parametrize(("particles", "vectorize"), [(1, False), (3, False), (3, True)])
def test_loss_gradients_and_state_trace_into_one_graph(name, particles, vectorize, one_hot):
    """No tensor's value is read in Python; the graph gives what eager code gives."""
    estimator = make(name, max(particles, ESTIMATORS[name].min_particles))
    estimator.vectorize_particles = vectorize
    program, x = as_program(vae_for(name, one_hot=one_hot)), tiny_images(6)
    module = Loss(program, estimator)
    with program.scope(), pyro.validation_enabled(False):
        for _ in range(2):
            module(x)  # a state that is no longer at its start
        for parameter in estimator.state.parameters():
            nn.init.normal_(parameter, std=0.1)
        values = {n: p.detach().clone() for n, p in module.named_parameters()}
        buffers = {n: b.clone() for n, b in module.named_buffers()}

        def step(values, buffers, x):
            values = {n: v.requires_grad_() for n, v in values.items()}
            buffers = {n: b.clone() for n, b in buffers.items()}
            loss = functional_call(module, values | buffers, (x,))
            found = torch.autograd.grad(loss, list(values.values()), allow_unused=True)
            return [loss, *(g for g in found if g is not None), *buffers.values()]

        graph = make_fx(step)(values, buffers, x)
        results = []
        for function in (graph, step):
            torch.manual_seed(3)
            results.append(function(values, buffers, x))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)
    assert not [n for n in graph.graph.nodes if "local_scalar" in str(n.target)]
    if name in STATEFUL:
        moved = results[0][-len(buffers) :]
        assert all(not torch.equal(m, b) for m, b in zip(moved, buffers.values(), strict=True))
    graph(values, buffers, tiny_images(6, seed=5))  # and serves other data


@pytest.mark.parametrize("name", ESTIMATORS)
def test_stock_svi_trains_with_it(name):
    program, x = vae_for(name), tiny_images(50)
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 2e-2}), make(name))
    losses = [svi.step(x) for _ in range(60)]
    assert sum(losses[-5:]) < 0.97 * sum(losses[:5])
    assert svi.evaluate_loss(x) < losses[0]


def test_an_estimator_made_by_name_works_in_stock_svi():
    program, x = tiny_vae(), tiny_images(50)
    svi = SVI(
        program.model, program.guide, pyro.optim.Adam({"lr": 2e-2}), make_estimator("iwae", 3)
    )
    assert svi.step(x) > 0


def steps(estimator, x):
    """A few steps of stock SVI with a program of its own: which of the networks' parts move."""
    program = DiscreteVAE()
    svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 1e-2}), estimator)
    svi.step(x)
    before = [p.detach().clone() for p in estimator.state.parameters()]
    for _ in range(3):
        svi.step(x)
    return [
        not torch.equal(a, b) for a, b in zip(estimator.state.parameters(), before, strict=True)
    ]


@pytest.mark.parametrize("name", NETWORKS)
def test_stock_svi_trains_the_estimators_networks(name):
    """Trap: a second SVI in one process finds the first one's parameters in Pyro's store.

    Also an estimator at the address of one that was thrown away.
    """
    x, gone = tiny_images(20), set()
    for _ in range(4):
        pool = [make(name) for _ in range(100)]
        estimator = next((e for e in pool if id(e) in gone), pool[0])
        moved = steps(estimator, x)
        assert moved
        assert all(moved)
        gone.add(id(estimator))
        del pool, estimator
        gc.collect()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_second_program_in_stock_svi_has_networks_of_its_own(name):
    x, pairs = tiny_images(20), []
    for _ in range(2):
        program, estimator = DiscreteVAE(), make(name)
        svi = SVI(program.model, program.guide, pyro.optim.Adam({"lr": 1e-2}), estimator)
        svi.step(x)
        pairs.append((estimator, svi))
    frozen = [p.detach().clone() for p in pairs[0][0].state.parameters()]
    pairs[1][1].step(x)
    for parameter, before in zip(pairs[0][0].state.parameters(), frozen, strict=True):
        assert torch.equal(parameter, before)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_evaluation_changes_no_state(name):
    program, estimator = served(name)(20), make(name, 2)
    gradients(program, estimator)
    before = copy.deepcopy(estimator.state.state_dict())
    for _ in range(3):
        estimator.loss(program.model, program.guide, program.data())
    after = estimator.state.state_dict()
    assert after.keys() == before.keys()
    assert all(torch.equal(after[n], b) for n, b in before.items())
    assert bool(before) == (name in STATEFUL)


@pytest.mark.parametrize("name", ESTIMATORS)
def test_a_copy_is_independent_and_goes_on_alike(name):
    program, estimator = served(name)(20), make(name, 2)
    gradients(program, estimator)
    other = copy.deepcopy(estimator)
    before = copy.deepcopy(other.state.state_dict())
    torch.manual_seed(1)
    expected = gradients(program, estimator)
    assert all(torch.equal(other.state.state_dict()[n], b) for n, b in before.items())
    torch.manual_seed(1)
    found = gradients(program, other)
    for parameter, gradient in expected.items():
        torch.testing.assert_close(found[parameter], gradient)


@pytest.mark.parametrize("name", ESTIMATORS)
@pytest.mark.parametrize("vectorize", [False, True])
def test_the_first_look_draws_nothing(name, vectorize):
    """Two estimators, one of which has looked at the program before, give the same numbers."""
    program = served(name)(20)
    fresh, used = (make(name, 3, vectorize_particles=vectorize) for _ in range(2))
    used.loss(program.model, program.guide, program.data())
    losses = []
    for estimator in (fresh, used):
        torch.manual_seed(0)
        losses.append(estimator.loss(program.model, program.guide, program.data()))
    assert losses[0] == losses[1]


@pytest.mark.parametrize("name", ESTIMATORS)
def test_no_side_effects_outside_of_svi(name):
    """Neither ``.grad`` nor train mode; Pyro's store gets the estimator's own networks alone."""
    program, x = vae_for(name), tiny_images(5)
    estimator = make(name)
    estimator.loss(program.model, program.guide, x)
    assert all(p.grad is None for p in program.parameters())
    assert program.training
    known = set(pyro.get_param_store().keys())
    assert all(key.startswith((name, "decoder", "encoder", "prior", "$$$")) for key in known), known
