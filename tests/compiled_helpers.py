"""A program's step as a graph, and eagerly, on the same random numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import pyro
import torch
from torch import Tensor

from inference.devices import make_fabric
from inference.graphs import trace
from inference.handlers import Handler, KLWarmup
from inference.parameters import trained
from inference.priming import prime
from inference.step import SVIStep
from inference.vectorize import choose_vectorization
from inference.weights import batch_size
from ppl_models import as_program

Optimizers = Callable[[list[Tensor]], torch.optim.Optimizer]


def batch_of(x: Tensor | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A batch as it is; images alone as its field ``x``."""
    return dict(x) if isinstance(x, Mapping) else {"x": x}


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def step_of(
    program,
    estimator,
    x,
    *,
    kl_warmup: KLWarmup | None = None,
    handlers: Sequence[Handler] = (),
    make_optimizer: Optimizers = sgd,
    device: str = "cpu",
    **options,
) -> SVIStep:
    """A step of a primed program, ready to be compiled."""
    program, batch = as_program(program), batch_of(x)
    traces = prime(program, batch, batch_size(batch))
    choose_vectorization(estimator, program, batch, traces, batch_size(batch))
    estimator.prepare(traces)
    estimator.state.to(next(iter(batch.values())).device)
    handlers = [KLWarmup(0) if kl_warmup is None else kl_warmup, *handlers]
    optimizer = make_optimizer(trained(program, estimator))
    fabric = make_fabric(device)
    every = {"compile_worth": bool} | options
    return SVIStep(program, estimator, optimizer, fabric, handlers, batch_size(batch), **every)


def outcome(step: SVIStep, run: Callable, x: Tensor, seed: int = 5) -> list[Tensor]:
    """What a form of the step gives and leaves in its inputs, on clones of them."""
    graph = step.compiled.step_graph()
    graph.set_numbers(step.compiled.schedules())
    flat = [value.clone() for value in graph.flat(batch_of(x))]
    torch.manual_seed(seed)
    with step.program.scope(), pyro.validation_enabled(False):
        outputs = run(*flat)
    return [*outputs, *flat]


def traced(step: SVIStep, x: Tensor) -> torch.fx.GraphModule:
    """The graph of a step."""
    graph = step.compiled.step_graph()
    with step.program.scope(), pyro.validation_enabled(False):
        return trace(graph.function(list(batch_of(x))), graph.flat(batch_of(x)), step.program)


def both(step: SVIStep, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Outcomes of the traced graph, run as it is, and of the eager function."""
    eager = step.compiled.step_graph().function(list(batch_of(x)))
    return outcome(step, traced(step, x), x), outcome(step, eager, x)
