"""A network that model and guide share, run once where both run it on the same tensors.

In a hierarchical model the guide draws z_l from q(z_l | x, z_<l), whose networks go on from the
state that p(z_l | z_<l) is made of; the model, replayed against the guide's draws, would run the
same cells on the same draws a second time. A :class:`SharedPass` remembers each call of the guide
and hands the model the result: ::

    class Ladder(PyroModule):
        def __init__(self):
            ...
            self.shared = SharedPass()

        @pyro_method
        def model(self, x=None, *, size=1):
            with self.shared.in_model(), pyro.plate("data", ...):
                z_1 = pyro.sample("z_1", ...)
                state = self.shared(self.cell, z_1)  # of the guide, if z_1 is the guide's

        @pyro_method
        def guide(self, x):
            with self.shared.in_guide() as kept, pyro.plate("data", len(x)):
                z_1 = pyro.sample("z_1", ..., infer=kept())
                state = self.shared(self.cell, z_1)

A result is handed on only where the call would compute the same again, gradient included: the same
module, in the same mode, with the same parameters and buffers (the same tensors, not written to
since, frozen or not as before), of the same input tensors (likewise), with gradients recorded or
not as before, in the same precision. So a draw that was detached, replaced or passed through a gate
is computed anew, and so is all that depends on it; a guide that ran without gradients gives the
model none of its states.
A module with random numbers of its own (dropout) draws them once for both.

The memory hangs on the guide's sites (``infer=kept()``): it is gone with the guide's trace, or at
the end of the model, whichever is first. The object itself holds a weak reference, no tensor.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

KEY = "shared_pass"
"""Under which the memory stands in a site's ``infer``."""


Compute = Callable[..., Any]
"""Calls a module on tensors."""


def computed(module: nn.Module, *inputs: Tensor) -> Any:
    """``module(*inputs)``."""
    return module(*inputs)


def recomputed(module: nn.Module, *inputs: Tensor) -> Any:
    """``module(*inputs)``, whose activations are not kept: the backward pass computes them again.

    Random numbers are drawn alike both times, and the parameters are those of the first: where a
    step is traced, the module has its own again by the time of the backward pass.
    """
    if not torch.is_grad_enabled():
        return module(*inputs)
    parameters = dict(module.named_parameters())

    def run(*tensors: Tensor) -> Any:
        held = dict(zip(parameters, tensors[len(inputs) :], strict=True))
        return functional_call(module, held, tensors[: len(inputs)])

    tensors = (*inputs, *parameters.values())
    return checkpoint(run, *tensors, use_reentrant=False, preserve_rng_state=True)


class Memory:
    """Results of calls, with the module and tensors that they are of, so that no id comes twice."""

    def __init__(self) -> None:
        self.results: dict[Hashable, tuple[tuple[nn.Module, *tuple[Tensor, ...]], Any]] = {}
        self.open = True
        """Whether the guide is still running: calls are recorded."""


class SharedPass:
    """Calls of modules that a guide makes and a model need not make again.

    Args:
        compute: makes the calls: :func:`computed`, or :func:`recomputed`, gradient checkpointing.
    """

    def __init__(self, compute: Compute = computed) -> None:
        self.compute = compute
        self.enabled = True
        """Set to False, every call is computed: for comparisons."""
        self._latest: weakref.ref[Memory] | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedPass:
        return type(self)(self.compute)  # in a copy nothing has run

    def __reduce__(self) -> tuple[type[SharedPass], tuple[Compute]]:
        return type(self), (self.compute,)

    @contextmanager
    def in_guide(self) -> Iterator[Callable[[], dict[str, Memory]]]:
        """Around the guide's statements: calls are remembered.

        Yields:
            A function that gives what a sample statement of the guide takes as ``infer``.
        """
        memory = Memory()
        self._latest = weakref.ref(memory)
        try:
            yield lambda: {KEY: memory}  # one each: handlers write into them
        finally:
            memory.open = False

    @contextmanager
    def in_model(self) -> Iterator[None]:
        """Around the model's statements: at their end, what was remembered is dropped."""
        try:
            yield
        finally:
            memory = self._memory()
            if memory is not None:
                memory.results.clear()
            self._latest = None

    def _memory(self) -> Memory | None:
        return self._latest() if self.enabled and self._latest is not None else None

    def __call__(self, module: nn.Module, *inputs: Tensor) -> Any:
        """``module(*inputs)``, or what it gave the guide."""
        memory = self._memory()
        if memory is None or (not memory.open and not memory.results):
            return self.compute(module, *inputs)
        held = (*inputs, *module.parameters(), *module.buffers())
        key = _key(module, held)
        if key in memory.results:
            return memory.results[key][1]
        result = self.compute(module, *inputs)
        if memory.open:
            memory.results[key] = ((module, *held), result)
        return result


def _key(module: nn.Module, held: tuple[Tensor, ...]) -> Hashable:
    """What a call's result depends on, as identities; ``held`` are its inputs and what it owns."""
    device = held[0].device.type if held else "cpu"
    return (
        id(module),
        *(part.training for part in module.modules()),
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device),
        *((id(t), t.requires_grad, None if t.is_inference() else t._version) for t in held),
    )
