"""The compiled step: what Pyro does in Python at every step, done once.

Traces, handlers and distributions are the same at every step of a program of static structure.
The step is traced into one graph, from parameters, buffers, data and schedules to loss, gradients
and update, and compiled by inductor. ``docs/compiled_step.md`` tells more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from inference.agreement import HALF, HALF_GRADIENTS, check_alike, tolerance_of
from inference.elbo.base import forked_rng
from inference.graphs import (
    Compiled,
    GraphCache,
    NotCompiledError,
    compile_graph,
    failures,
    refuse_held_parameters,
    shapes_of,
    trace,
)
from inference.replay import Replayed
from inference.step_graph import Loss, StepGraph, StepModule
from inference.unchanged import unchanged
from inference.updates import update_of
from inference.weights import batch_size
from ppl_models.program import Batch, Program

MOST_REBUILT = 3
"""Times that the graphs are made anew, for a program whose parameters are replaced."""


@dataclass(frozen=True)
class Taken:
    """What came of a compiled step."""

    loss: Tensor
    norm: Tensor
    """Of the gradient, before clipping."""
    bad_steps: Tensor
    """Steps since the first whose loss or gradient was not finite, that one included."""
    updated: bool
    """Whether the parameters are updated; if not, their ``.grad`` waits for the optimizer."""


class CompiledStep:
    """Steps of a program, by one compiled graph for each shape of the batch.

    Args:
        loss: of a batch, given the schedules, per datum.
        program: that it trains.
        state: of the estimator.
        schedules: their present values.
        optimizer: has taken its first step before the first compiled one.
        clip_grad_norm: largest norm of the gradient that is applied.
        worth: whether batches of so many data come often enough to be compiled.
    """

    def __init__(
        self,
        loss: Loss,
        program: Program,
        state: nn.Module,
        schedules: Callable[[], Mapping[str, float]],
        optimizer: torch.optim.Optimizer,
        clip_grad_norm: float | None = None,
        worth: Callable[[int], bool] = lambda rows: True,
    ) -> None:
        self.module = StepModule(loss, program, state)
        self.schedules = schedules
        self.optimizer = optimizer
        self.clip_grad_norm = clip_grad_norm
        self.worth = worth
        self.graphs = GraphCache("the step", "training")
        self._modules = list(self.module.modules())
        self._step: StepGraph | None = None
        self._signature: tuple[Any, ...] = ()
        self._rebuilt = -1
        self._taken = 0

    @property
    def failure(self) -> str | None:
        """Why steps are taken eagerly after all."""
        return self.graphs.failure

    def __call__(self, batch: Batch) -> Taken | None:
        """Take a step; without an update in the graph, gradients go to the ``.grad``s.

        Returns:
            What came of it, or None: this step has to be taken eagerly.
        """
        if self.failure is not None or not self.worth(batch_size(batch)):
            return None
        try:
            step = self.step_graph()
        except NotCompiledError as error:
            self.graphs.fail(error)
            return None
        step.set_numbers(self.schedules())
        key = (shapes_of(batch), tuple(m.training for m in self._modules))
        compiled = self.graphs.get(key, lambda: self._make(step, batch))
        if compiled is None or not self._still_right(step, batch, compiled):
            return None
        loss, norm, bad, *gradients = compiled(step.flat(batch))
        if step.update is not None:
            step.update.taken()
        else:
            self._hand_over(step, gradients)
        return Taken(loss, norm, bad, step.update is not None)

    def _hand_over(self, step: StepGraph, gradients: list[Tensor]) -> None:
        named = dict(self.module.named_parameters())
        for name, gradient in zip(step.held.trained, gradients, strict=True):
            named[name].grad = gradient

    def step_graph(self) -> StepGraph:
        """The step as a function, with its inputs.

        Raises:
            NotCompiledError: it cannot be one.
        """
        if self._step is None or self._signature != self._sign(self._step):
            self._rebuilt += 1
            if self._rebuilt > MOST_REBUILT:
                raise NotCompiledError(
                    "parameters are replaced, frozen or freed between steps, or the optimizer's "
                    "options or state are"
                )
            refuse_hooks(self.module)
            self.graphs.clear()
            if self._step is not None and self._step.update is not None:
                self._step.update.close()
            names, update = list(self.schedules()), update_of(self.optimizer)
            self._step = StepGraph(self.module, names, update, self.clip_grad_norm)
            self._signature = self._sign(self._step)
        return self._step

    def forget_bad_steps(self) -> None:
        """Go on after steps that were not finite."""
        if self._step is not None and self._step.update is not None:
            self._step.update.taken(-int(self._step.bad_steps))
            self._step.bad_steps.zero_()

    def _sign(self, step: StepGraph) -> tuple[Any, ...]:
        """What all graphs take as given: where parameters are, which are trained, options."""
        held = [
            (tensor.data_ptr(), tensor.requires_grad)
            for module in self._modules
            for table in (module._parameters, module._buffers)
            for tensor in table.values()
            if tensor is not None
        ]
        return (*held, () if step.update is None else step.update.signature())

    def _make(self, step: StepGraph, batch: Batch) -> _Graph:
        flat, function = step.flat(batch), step.function(list(batch))
        with self.module.program.scope(), pyro.validation_enabled(False):
            graph = trace(function, flat, self.module.program)
            refuse_held_parameters(graph, self.module.program)
            compiled = compile_graph(graph, flat)
            made = _Graph(compiled, tolerance_of(graph))
            self._check(step, batch, made)
        if flat[0].is_cuda:
            made.run = Replayed(compiled, len(batch))
        return made

    def _still_right(self, step: StepGraph, batch: Batch, graph: _Graph) -> bool:
        """Check again at the steps 2, 4, 8, ...: what drifts slowly passes a first check."""
        self._taken += 1
        if self._taken < 2 or self._taken & (self._taken - 1):
            return True
        try:
            with self.module.program.scope(), pyro.validation_enabled(False):
                self._check(step, batch, graph)
        except NotCompiledError as error:
            self.graphs.fail(error)
        return self.failure is None

    def _check(self, step: StepGraph, batch: Batch, graph: _Graph) -> None:
        """Compare with the eager step on the same random numbers; nothing is changed.

        Raises:
            NotCompiledError: they differ.
        """
        eager = step.function(list(batch))
        with failures("the compiled step cannot be run"):
            ours = self._outcome(step, batch, graph.compiled)
        with failures("the step cannot be run again"), unchanged(self.module.program):
            theirs = self._outcome(step, batch, lambda flat: eager(*flat))
        count = len(step.held.trained)
        # A gradient that is zero but for rounding (a bias before batch norm) is as good.
        sizes = [float(g.abs().max()) for g in theirs[1 : 1 + count] if g.numel()]
        floors = [1.0, *[0.01 * max(sizes, default=0.0)] * count, *[0.0] * len(step.held.kept)]
        names = ["the loss", *(f"the gradient of {n}" for n in step.held.trained), *step.held.kept]
        half = graph.tolerance == HALF
        for i, (name, a, b) in enumerate(zip(names, ours, theirs, strict=True)):
            if half and 1 <= i <= count:
                check_alike(name, a, b, HALF_GRADIENTS, floors[i], 2)
            else:
                check_alike(name, a, b, graph.tolerance, floors[i])

    def _outcome(self, step: StepGraph, batch: Batch, run: Compiled) -> list[Tensor]:
        """Loss, gradients and buffers of a run on clones."""
        flat = [value.clone() for value in step.flat(batch)]
        with forked_rng():
            loss, _, _, *gradients = run(list(flat))
        first = len(step.held.trained)
        return [loss, *gradients, *flat[first : first + len(step.held.kept)]]


@dataclass
class _Graph:
    """A compiled step, as it is checked and as it is run."""

    compiled: Compiled
    tolerance: float
    run: Compiled | None = None

    def __call__(self, flat: list[Tensor]) -> Sequence[Tensor]:
        return (self.run or self.compiled)(flat)


def refuse_hooks(module: nn.Module) -> None:
    """Refuse parameters with hooks, which a graph would pass over.

    Raises:
        NotCompiledError: naming them.
    """
    hooked = [
        name
        for name, parameter in module.named_parameters()
        if parameter._backward_hooks or getattr(parameter, "_post_accumulate_grad_hooks", None)
    ]
    if hooked:
        raise NotCompiledError(f"a hook on the gradient of {', '.join(hooked)}")
