"""A program's step as a graph, and eagerly, on the same random numbers."""

from __future__ import annotations

from collections.abc import Callable

import pyro
import torch
from torch import Tensor

from inference.devices import make_fabric
from inference.graphs import trace
from inference.handlers import KLWarmup
from inference.parameters import trained
from inference.priming import prime
from inference.step import SVIStep
from inference.vectorize import choose_vectorization
from ppl_models import as_program

Optimizers = Callable[[list[Tensor]], torch.optim.Optimizer]


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def step_of(
    program,
    estimator,
    x,
    *,
    kl_warmup: KLWarmup | None = None,
    make_optimizer: Optimizers = sgd,
    device: str = "cpu",
    **options,
) -> SVIStep:
    """A step of a primed program, ready to be compiled."""
    program = as_program(program)
    traces = prime(program, {"x": x}, len(x))
    choose_vectorization(estimator, program, {"x": x}, traces, len(x))
    estimator.prepare(traces)
    estimator.state.to(x.device)
    warmup = KLWarmup(0) if kl_warmup is None else kl_warmup
    optimizer = make_optimizer(trained(program, estimator))
    fabric = make_fabric(device)
    every = {"compile_worth": bool} | options
    return SVIStep(program, estimator, optimizer, fabric, warmup, len(x), **every)


def outcome(step: SVIStep, run: Callable, x: Tensor, seed: int = 5) -> list[Tensor]:
    """What a form of the step gives and leaves in its inputs, on clones of them."""
    graph = step.compiled.step_graph()
    graph.set_numbers(step.compiled.schedules())
    flat = [value.clone() for value in graph.flat({"x": x})]
    torch.manual_seed(seed)
    with step.program.scope(), pyro.validation_enabled(False):
        outputs = run(*flat)
    return [*outputs, *flat]


def traced(step: SVIStep, x: Tensor) -> torch.fx.GraphModule:
    """The graph of a step."""
    graph = step.compiled.step_graph()
    with step.program.scope(), pyro.validation_enabled(False):
        return trace(graph.function(["x"]), graph.flat({"x": x}), step.program)


def both(step: SVIStep, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Outcomes of the traced graph, run as it is, and of the eager function."""
    eager = step.compiled.step_graph().function(["x"])
    return outcome(step, traced(step, x), x), outcome(step, eager, x)
