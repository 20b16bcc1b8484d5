"""Updates in a graph: torch's own numbers, guarded against what is not finite."""

from __future__ import annotations

import copy

import pytest
import torch
from compiled_helpers import outcome, sgd, step_of, traced
from programs import tiny_images, tiny_vae
from torch import nn
from torch.nn.utils import clip_grad_norm_

from inference.elbo import make_estimator
from inference.updates import update_of

OPTIMIZERS = {
    "Adam": lambda ps: torch.optim.Adam(ps, lr=0.01),
    "Adam, fused": lambda ps: torch.optim.Adam(ps, lr=0.01, fused=True),
    "Adam, options": lambda ps: torch.optim.Adam(
        ps, lr=0.02, betas=(0.8, 0.95), eps=1e-3, weight_decay=0.1, maximize=True
    ),
    "AdamW": lambda ps: torch.optim.AdamW(ps, lr=0.01, weight_decay=0.3),
    "Adam, decoupled": lambda ps: torch.optim.Adam(
        ps, lr=0.01, weight_decay=0.3, decoupled_weight_decay=True
    ),
    "SGD": sgd,
    "SGD, decay": lambda ps: torch.optim.SGD(ps, lr=0.1, weight_decay=0.2, maximize=True),
    "momentum": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.9, dampening=0.3),
    "Nesterov": lambda ps: torch.optim.SGD(ps, lr=0.1, momentum=0.8, nesterov=True),
    "groups": lambda ps: torch.optim.Adam(
        [{"params": ps[2:], "lr": 0.1}, {"params": ps[:2], "betas": (0.5, 0.9)}], lr=0.01
    ),
}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def set_gradients(net: nn.Module, step: int) -> None:
    torch.manual_seed(step)
    for parameter in net.parameters():
        parameter.grad = torch.randn_like(parameter)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_ten_updates_are_torchs(name):
    """With a learning rate, and betas or momentum, that a schedule changes from step to step."""
    ours, theirs = network(), network()
    optimizers = [OPTIMIZERS[name](list(net.parameters())) for net in (ours, theirs)]
    for net, optimizer in zip((ours, theirs), optimizers, strict=True):
        set_gradients(net, 0)
        optimizer.step()
    update = update_of(optimizers[0])
    assert update is not None
    for step in range(1, 11):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] *= 0.9
        set_gradients(ours, step)
        set_gradients(theirs, step)
        numbers = torch.tensor(update.numbers(), dtype=torch.float64).unbind(0)
        with torch.no_grad():
            gradients = [p.grad for p in update.parameters]
            new = update(update.parameters, gradients, update.tensors, numbers)
            for parameter, slots, values in zip(
                update.parameters, update.tensors, new, strict=True
            ):
                for target, value in zip([parameter, *slots], values, strict=True):
                    target.copy_(value)
        update.taken()
        optimizers[1].step()
        for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-14)
    mine, its = (o.state_dict()["state"] for o in optimizers)
    torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-14)


def test_an_eager_step_in_between_is_counted():
    net = network()
    optimizer = OPTIMIZERS["Adam"](list(net.parameters()))
    set_gradients(net, 0)
    optimizer.step()
    update = update_of(optimizer)
    assert update.count == 1
    optimizer.step()
    update.taken()
    assert update.count == 3
    states = optimizer.state_dict()["state"].values()  # where torch's own counters are read
    assert {float(state["step"]) for state in states} == {3.0}


@pytest.mark.parametrize(
    "make",
    [
        lambda ps: torch.optim.Adam(ps, amsgrad=True),
        torch.optim.RMSprop,
        type("Own", (torch.optim.Adam,), {}),
        lambda ps: torch.optim.SGD([{"params": ps[:1], "momentum": 0.9}, {"params": ps[1:]}]),
    ],
    ids=["AMSGrad", "RMSprop", "a subclass", "momentum in one group"],
)
def test_other_optimizers_are_left_to_torch(make):
    net = network()
    optimizer = make(list(net.parameters()))
    set_gradients(net, 0)
    optimizer.step()
    assert update_of(optimizer) is None


def test_an_optimizer_that_has_taken_no_step_is_left_to_torch():
    assert update_of(OPTIMIZERS["Adam"](list(network().parameters()))) is None


def stepped(**options):
    """A tiny VAE's step after its first, eager turn."""
    step = step_of(tiny_vae(), make_estimator("analytic_kl"), tiny_images(6), **options)
    with step.program.scope():
        step.compiled.worth = lambda rows: False
        step({"x": tiny_images(6)})
        step.compiled.worth = bool
    return step


@pytest.mark.parametrize("clip", [None, 1.0, 1e6])
def test_the_graph_takes_the_step_that_torch_takes(clip):
    """Norm, clipping and update, against torch's functions on the graph's own gradients."""
    step = stepped(make_optimizer=OPTIMIZERS["Adam, fused"], clip_grad_norm=clip)
    twin = copy.deepcopy(step)
    x = tiny_images(6, seed=3)
    graph = step.compiled.step_graph()
    count = len(graph.held.trained)
    found = outcome(step, traced(step, x), x)
    norm, gradients, new = found[1], found[3 : 3 + count], found[3 + count : 3 + 2 * count]
    for parameter, gradient in zip(twin.parameters, gradients, strict=True):
        parameter.grad = gradient.clone()
    theirs = clip_grad_norm_(twin.parameters, clip or 1e9)
    torch.testing.assert_close(norm, theirs)
    twin.optimizer.step()
    for ours, parameter in zip(new, twin.parameters, strict=True):
        torch.testing.assert_close(ours, parameter.detach(), rtol=1e-5, atol=1e-6)


def test_after_a_step_that_is_not_finite_nothing_changes_any_more():
    step = stepped(make_optimizer=OPTIMIZERS["Adam"])
    graph = step.compiled.step_graph()
    function = traced(step, tiny_images(6))
    before = [value.clone() for value in graph.flat({})]
    bad = tiny_images(6)
    bad[0, 0, 0, 0] = torch.nan
    held = graph.flat({})
    for turn, x in enumerate([bad, tiny_images(6), tiny_images(6, seed=2)], start=1):
        graph.set_numbers(step.compiled.schedules())
        _, norm, bad_steps, *_ = function(*graph.flat({"x": x}))
        assert int(bad_steps) == turn
        assert bool(norm.isfinite()) == (turn > 1)
    unchanged = len(held) - 2  # all but the numbers and the count
    for a, b in zip(held[:unchanged], before[:unchanged], strict=True):
        assert torch.equal(a, b)
