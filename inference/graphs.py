"""A function of tensors as one graph of operations, and the graph as machine code."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx

from inference.elbo.base import forked_rng
from ppl_models.errors import PplError, describe

Compiled = Callable[[list[Tensor]], Sequence[Tensor]]
Pure = Callable[..., list[Tensor]]


class NotCompiledError(PplError):
    """What cannot be compiled; the message says why."""


class Held:
    """The tensors of a module, by what a graph does with them. They share its memory.

    Args:
        module: whose parameters and buffers they are.
    """

    def __init__(self, module: nn.Module) -> None:
        named = dict(module.named_parameters())
        self.trained = {n: p.detach() for n, p in named.items() if p.requires_grad}
        """Parameters, without their gradients."""
        frozen = {n: p.detach() for n, p in named.items() if not p.requires_grad}
        self.kept = frozen | dict(module.named_buffers())
        """Buffers, and parameters that are not trained."""


def trace(function: Pure, flat: list[Tensor]) -> GraphModule:
    """Trace a function; nothing is drawn or changed.

    Args:
        function: of tensors; it may write into them.
        flat: tensors such as it will be given.

    Returns:
        A graph without operations in place, but for the last: what goes back into the inputs.

    Raises:
        NotCompiledError: it reads a tensor's value, or has an operator that cannot be traced.
    """
    # The engine makes constants of tensors that are no inputs (a prior's), which is right.
    fake: dict[str, Any] = {"tracing_mode": "fake", "_allow_non_fake_inputs": True}
    try:
        with forked_rng():
            traced = make_fx(function, **fake)(*flat)
        with forked_rng(), torch.no_grad():
            pure = make_fx(functionalize(traced), _decompositions(), **fake)(*flat)
    except NotCompiledError:
        raise
    except Exception as error:
        raise NotCompiledError(f"it cannot be traced: {describe(error)}") from error
    pure.graph.eliminate_dead_code(is_impure_node=_must_stay)
    pure.recompile()
    return pure


def _decompositions() -> Any:
    with _no_word_of_cuda():
        from torch._inductor import config
        from torch._inductor.decomposition import select_decomp_table

    with config.patch(fallback_random=True):
        return select_decomp_table()


@contextmanager
def _no_word_of_cuda() -> Iterator[None]:
    """Inductor, when imported, warns that a machine without a GPU has none."""
    speaker = logging.getLogger("torch.utils.cpp_extension")
    before = speaker.level
    if not torch.cuda.is_available():
        speaker.setLevel(logging.ERROR)
    try:
        yield
    finally:
        speaker.setLevel(before)


def _must_stay(node: Node) -> bool:
    """Whether a node takes from the random state, or has another effect."""
    tags = getattr(node.target, "tags", ())
    return torch.Tag.nondeterministic_seeded in tags or node.is_impure()


def compile_graph(graph: GraphModule, flat: list[Tensor]) -> Compiled:
    """A graph as machine code; its random numbers are torch's own, in the same order.

    Raises:
        NotCompiledError: inductor cannot compile it (there is no C++ compiler, say).
    """
    from torch._inductor import config
    from torch._inductor.compile_fx import compile_fx_inner

    try:
        with config.patch(fallback_random=True), torch.no_grad():
            compiled: Any = compile_fx_inner(graph, flat)
    except Exception as error:
        raise NotCompiledError(f"inductor cannot compile it: {describe(error)}") from error
    return compiled


def shapes_of(tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """What a graph is made for: the tensors' names, shapes, dtypes and devices."""
    return tuple((name, v.shape, v.dtype, v.device) for name, v in tensors.items())


def check_alike(
    names: Sequence[str], ours: Sequence[Tensor], theirs: Sequence[Tensor], floor: float
) -> None:
    """Compare what a compiled graph and the eager function give.

    Args:
        names: of the tensors.
        ours: the graph's.
        theirs: the eager function's, with the same random numbers.
        floor: a size below which all numbers are as good as zero (a gradient before batch norm).

    Raises:
        NotCompiledError: they differ by more than rounding.
    """
    for name, a, b in zip(names, ours, theirs, strict=True):
        if not b.numel():
            continue
        gap, size = float((a.double() - b.double()).abs().max()), float(b.double().abs().max())
        if not gap <= TOLERANCE.get(b.dtype, 1e-4) * max(size, floor):
            raise NotCompiledError(
                f"compiled and eager differ at {name} by {gap:.3g} (of {size:.3g}): the program "
                "depends on something that is no tensor input, or draws differently"
            )


TOLERANCE = {torch.float64: 1e-9}
"""Relative, between compiled and eager; 1e-4 for other dtypes."""
