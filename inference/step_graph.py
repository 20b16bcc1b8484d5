"""The loss and gradients of a step as one graph, and the graph as machine code."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from torch.func import functional_call, functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from inference.elbo.base import forked_rng
from ppl_models.errors import PplError, describe
from ppl_models.program import Batch, Program

Compiled = Callable[[list[Tensor]], Any]
Loss = Callable[[Batch, Mapping[str, Tensor]], Tensor]


class NotCompiledError(PplError):
    """A step that cannot be compiled; the message says why."""


class StepModule(nn.Module):
    """A loss with all that it depends on: a program, and the state of an estimator.

    Args:
        loss: of a batch, given the schedules.
        program: whose parameters and buffers it reads.
        state: of the estimator.
    """

    def __init__(self, loss: Loss, program: Program, state: nn.Module) -> None:
        super().__init__()
        self.program = program
        self.state = state
        self._loss = loss

    def forward(self, batch: Batch, schedules: Mapping[str, Tensor]) -> Tensor:
        """The loss."""
        return self._loss(batch, schedules)


@dataclass
class StepInputs:
    """What may change from step to step, in the order in which the graph takes it."""

    module: StepModule
    schedules: dict[str, Tensor]
    """Numbers that change from step to step, as tensors without dimension."""
    trained: dict[str, Tensor] = field(init=False)
    """Parameters, without their gradients."""
    kept: dict[str, Tensor] = field(init=False)
    """Buffers, and parameters that are not trained."""

    def __post_init__(self) -> None:
        named = dict(self.module.named_parameters())
        self.trained = {n: p.detach() for n, p in named.items() if p.requires_grad}
        frozen = {n: p.detach() for n, p in named.items() if not p.requires_grad}
        self.kept = frozen | dict(self.module.named_buffers())

    def flat(self, batch: Batch) -> list[Tensor]:
        """All of them as one list."""
        return [
            *self.trained.values(),
            *self.kept.values(),
            *self.schedules.values(),
            *batch.values(),
        ]

    def step(self, fields: list[str]) -> Callable[..., list[Tensor]]:
        """The step as a function of :meth:`flat`: loss, gradients, new values of what is kept."""
        sizes = [len(self.trained), len(self.kept), len(self.schedules), len(fields)]

        def run(*flat: Tensor) -> list[Tensor]:
            trained, kept, schedules, data = _split(flat, sizes)
            leaves = [value.detach().requires_grad_(True) for value in trained]
            kept = [value.clone() for value in kept]
            named = dict(zip([*self.trained, *self.kept], leaves + kept, strict=True))
            given = dict(zip(fields, data, strict=True))
            at = dict(zip(self.schedules, schedules, strict=True))
            loss = functional_call(self.module, named, (given, at))
            gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
            missing = [n for n, g in zip(self.trained, gradients, strict=True) if g is None]
            if missing:
                raise NotCompiledError(
                    f"no gradient reaches {', '.join(missing)}: not used, or a function holds "
                    "the network itself, so that the graph cannot take its parameters as inputs; "
                    "make it an attribute of a class with model and guide"
                )
            return [loss.detach(), *(g for g in gradients if g is not None), *kept]

        return run


def _split(flat: tuple[Tensor, ...], sizes: list[int]) -> list[list[Tensor]]:
    parts, start = [], 0
    for size in sizes:
        parts.append(list(flat[start : start + size]))
        start += size
    return parts


@dataclass(frozen=True)
class StepGraph:
    """A traced step."""

    graph: GraphModule
    """Pure: from the inputs to loss, gradients and new values."""
    changed: list[str]
    """What is kept and comes out with a new value; the last outputs, in this order."""


def trace_step(inputs: StepInputs, batch: Batch) -> StepGraph:
    """Trace a step; nothing is drawn or changed.

    Raises:
        NotCompiledError: it reads a tensor's value, or has an operator that cannot be traced.
    """
    step, flat = inputs.step(list(batch)), inputs.flat(batch)
    scope = inputs.module.program.scope
    try:
        with forked_rng(), scope(), pyro.validation_enabled(False):
            traced = make_fx(step, tracing_mode="fake", _allow_non_fake_inputs=True)(*flat)
        with forked_rng(), torch.no_grad():
            pure = make_fx(
                functionalize(traced),
                _decompositions(),
                tracing_mode="fake",
                _allow_non_fake_inputs=True,
            )(*flat)
    except NotCompiledError:
        raise
    except Exception as error:
        raise NotCompiledError(f"the step cannot be traced: {describe(error)}") from error
    return _without_unchanged(pure, list(inputs.kept))


def _decompositions() -> Any:
    from torch._inductor import config
    from torch._inductor.decomposition import select_decomp_table

    with config.patch(fallback_random=True):
        return select_decomp_table()


def _without_unchanged(graph: GraphModule, kept: list[str]) -> StepGraph:
    """Drop outputs that are inputs as they came."""
    (output,) = graph.graph.find_nodes(op="output")
    values = list(output.args[0])
    first = len(values) - len(kept)
    changed = [n for n, v in zip(kept, values[first:], strict=True) if not _is_input(v)]
    output.args = ([*values[:first], *(v for v in values[first:] if not _is_input(v))],)
    graph.graph.eliminate_dead_code(is_impure_node=_draws)
    graph.recompile()
    return StepGraph(graph, changed)


def _is_input(value: Any) -> bool:
    while isinstance(value, Node) and value.target is torch.ops.aten.clone.default:
        value = value.args[0]
    return isinstance(value, Node) and value.op == "placeholder"


def _draws(node: Node) -> bool:
    """Whether a node takes from the random state, or must stay for another reason."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags or node.is_impure()


def compile_graph(traced: StepGraph, flat: list[Tensor]) -> Compiled:
    """A traced step as machine code; its random numbers are torch's own, in the same order.

    Raises:
        NotCompiledError: inductor cannot compile it (there is no C++ compiler, say).
    """
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner

    on_cuda = flat[0].device.type == "cuda"
    options = {"fallback_random": True, "triton.cudagraphs": on_cuda}
    try:
        with config.patch(options), torch.no_grad():
            compiled: Any = compile_fx_inner(traced.graph, flat)
    except Exception as error:
        raise NotCompiledError(f"inductor cannot compile the step: {describe(error)}") from error
    return compiled
