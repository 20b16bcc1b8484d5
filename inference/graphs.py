"""A function of tensors as one graph of operations, and the graph as machine code."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.func import functionalize
from torch.fx import GraphModule, Node
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from inference.elbo.base import forked_rng
from inference.unchanged import Changes, unchanged
from ppl_models.errors import PplError, describe
from ppl_models.program import Program

log = logging.getLogger(__name__)

Compiled = Callable[[list[Tensor]], Sequence[Tensor]]
Pure = Callable[..., list[Tensor]]


class NotCompiledError(PplError):
    """What cannot be compiled; the message says why."""


class Held:
    """The tensors of a module, by what a graph does with them. They share its memory.

    Args:
        module: whose parameters and buffers they are.

    Raises:
        NotCompiledError: two of them share memory with one another.
    """

    def __init__(self, module: nn.Module) -> None:
        named = dict(module.named_parameters())
        self.trained = {n: p.detach() for n, p in named.items() if p.requires_grad}
        """Parameters, without their gradients."""
        frozen = {n: p.detach() for n, p in named.items() if not p.requires_grad}
        self.kept = frozen | dict(module.named_buffers())
        """Buffers, and parameters that are not trained."""
        owners: dict[int, str] = {}
        for name, tensor in (self.trained | self.kept).items():
            place = tensor.untyped_storage().data_ptr()
            if place and owners.setdefault(place, name) != name:
                raise NotCompiledError(f"{owners[place]} and {name} are views of one memory")

    def names(self) -> list[str]:
        """Of all of them, in order."""
        return [*self.trained, *self.kept]

    def tensors(self) -> list[Tensor]:
        """All of them, in order."""
        return [*self.trained.values(), *self.kept.values()]


class GraphCache:
    """Compiled graphs by what they were made for, until one cannot be made.

    Args:
        what: is compiled, for the log: ``the step``.
        otherwise: what goes on without: ``training``.
    """

    def __init__(self, what: str, otherwise: str) -> None:
        self.what = what
        self.otherwise = otherwise
        self.failure: str | None = None
        """Why there are none any more."""
        self._graphs: dict[Hashable, Any] = {}

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any | None:
        """The graph for this key, made if it is new; None: it cannot be made."""
        if self.failure is None and key not in self._graphs:
            started = time.monotonic()
            log.info("compiling %s ...", self.what)
            try:
                self._graphs[key] = make()
            except NotCompiledError as error:
                self.fail(error)
                return None
            seconds = time.monotonic() - started
            log.info("compiled %s in %.1f seconds", self.what, seconds)
        return None if self.failure is not None else self._graphs[key]

    def __contains__(self, key: Hashable) -> bool:
        return key in self._graphs

    def clear(self) -> None:
        """Forget all graphs."""
        self._graphs.clear()

    def fail(self, reason: NotCompiledError) -> None:
        """Make no more graphs, and say so, once."""
        self.failure = str(reason)
        self.clear()
        log.warning("%s goes on without compiling: %s", self.otherwise, reason)


@contextmanager
def failures(what: str) -> Iterator[None]:
    """Within, whatever is raised becomes a :class:`NotCompiledError`.

    Args:
        what: did not work, for the message.
    """
    try:
        yield
    except NotCompiledError:
        raise
    except GuardOnDataDependentSymNode as error:
        place = describe(error).rpartition(" (")[2]
        raise NotCompiledError(f"{what}: a tensor's value decides what is run ({place}") from error
    except Exception as error:
        raise NotCompiledError(f"{what}: {describe(error)}") from error


def trace(function: Pure, flat: list[Tensor], program: Program) -> GraphModule:
    """Trace a function; nothing is drawn or changed.

    Args:
        function: of tensors; it may write into them.
        flat: tensors such as it will be given.
        program: what it runs.

    Returns:
        A graph without operations in place, but for the last: what goes back into the inputs.

    Raises:
        NotCompiledError: it reads a tensor's value, has an operator that cannot be traced, or
            changes more than its inputs.
    """
    # The engine makes constants of tensors that are no inputs (a prior's), which is right.
    fake: dict[str, Any] = {"tracing_mode": "fake", "_allow_non_fake_inputs": True}
    with failures("it cannot be traced"):
        with unchanged(program) as changes, _without_mkldnn():
            traced = make_fx(function, **fake)(*flat)
        _refuse(changes, traced)
        with forked_rng(), torch.no_grad():
            pure = make_fx(functionalize(traced), _decompositions(), **fake)(*flat)
    _drop_idle_writes(pure)
    pure.graph.eliminate_dead_code(is_impure_node=_must_stay)
    pure.recompile()
    return pure


@contextmanager
def _without_mkldnn() -> Iterator[None]:
    """Its LSTM is an operator that inductor cannot run on a CPU; without it, it is decomposed."""
    enabled = torch._C._get_mkldnn_enabled()
    torch._C._set_mkldnn_enabled(False)
    try:
        yield
    finally:
        torch._C._set_mkldnn_enabled(enabled)


def _refuse(changes: Changes, traced: GraphModule) -> None:
    """Refuse a program whose next run differs for a reason that is no tensor of its inputs."""
    held = [*traced.buffers(), *traced.parameters()]  # where torch.fx keeps constants
    constants = {
        value.untyped_storage().data_ptr() for value in held if not isinstance(value, FakeTensor)
    }
    read = [n for n, t in changes.replaced.items() if t.untyped_storage().data_ptr() in constants]
    if found := changes.attributes + read:
        raise NotCompiledError(
            f"a run changes the attribute(s) {', '.join(found)}, which a graph holds as "
            "constants; make them buffers (self.register_buffer)"
        )
    if changes.random:
        raise NotCompiledError(
            f"it draws from {' and '.join(changes.random)}, whose numbers a graph holds as "
            "constants; draw from torch"
        )


def refuse_held_parameters(graph: GraphModule, program: Program) -> None:
    """Refuse the graph of a step that holds a trained parameter as a constant.

    It is there where a function runs later than the step's parameters are in their places, such as
    the second run of ``torch.utils.checkpoint``, which takes those of the module itself.

    Raises:
        NotCompiledError: its gradient, or a part of it, would be lost without a word.
    """
    held = [getattr(graph, node.target) for node in graph.graph.find_nodes(op="get_attr")]
    lost = {
        value.untyped_storage().data_ptr()
        for value in held
        if isinstance(value, Tensor) and not isinstance(value, FakeTensor) and value.requires_grad
    }
    if not lost:
        return
    parameters = program.named_parameters()
    names = [n for n, p in parameters if p.untyped_storage().data_ptr() in lost]
    raise NotCompiledError(
        f"the graph holds {', '.join(names) or 'a parameter'} as a constant, whose gradient would "
        "be lost: a function holds the network itself, and runs it again in the backward pass "
        "(torch.utils.checkpoint) or apart from the program; hand it the parameters as inputs "
        "(torch.func.functional_call)"
    )


def _drop_idle_writes(graph: GraphModule) -> None:
    """Drop writes of inputs into themselves: of buffers that nothing has changed."""
    for node in graph.graph.find_nodes(op="call_function", target=torch.ops.aten.copy_.default):
        target, value = node.args
        if _source(value) is target:
            node.replace_all_uses_with(target)
            graph.graph.erase_node(node)


def _source(node: Any) -> Any:
    """What a value is a copy of, itself if it is none."""
    while isinstance(node, Node):
        passes = node.target in (torch.ops.aten.clone.default, torch.ops.aten.alias.default)
        if passes and not _is_written(node):
            node = node.args[0]
        elif node.target is torch.ops.aten.copy.default:
            node = node.args[1]
        elif node.target is torch.ops.aten.where.self and _source(node.args[1]) is node.args[2]:
            node = node.args[2]
        else:
            break
    return node


def _is_written(node: Node) -> bool:
    return any(u.target is torch.ops.aten.copy_.default and u.args[0] is node for u in node.users)


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
    with _no_word_of_cuda():
        from torch._inductor import config
        from torch._inductor.compile_fx import compile_fx_inner

    patched = config.patch(fallback_random=True)
    with failures("inductor cannot compile it"), torch.no_grad(), patched, _no_warnings():
        compiled: Any = compile_fx_inner(graph, flat)
    return compiled


@contextmanager
def _no_warnings() -> Iterator[None]:
    """Inductor's own, of torch's own functions."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def shapes_of(tensors: Mapping[str, Tensor]) -> tuple[Any, ...]:
    """What a graph is made for: the tensors' names, layouts, dtypes and devices."""
    return tuple((n, v.shape, v.stride(), v.dtype, v.device) for n, v in tensors.items())
