"""The compiled step: what Pyro does in Python at every step, done once.

Traces, handlers and distributions are the same at every step of a program of static structure.
The step is traced into one graph, from parameters, buffers, data and schedules to loss, gradients
and new buffers, and compiled by inductor. ``docs/compiled_step.md`` tells more.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping

import pyro
import torch
from torch import Tensor, nn

from inference.elbo.base import forked_rng
from inference.step_graph import (
    Compiled,
    Loss,
    NotCompiledError,
    StepGraph,
    StepInputs,
    StepModule,
    compile_graph,
    trace_step,
)
from inference.weights import batch_size
from ppl_models.program import Batch, Program

log = logging.getLogger(__name__)

TOLERANCE = {torch.float64: 1e-9}
"""Relative, between compiled and eager; 1e-4 for other dtypes."""


class CompiledStep:
    """Loss and gradients of a step, by one compiled graph for each shape of the batch.

    Args:
        loss: of a batch, given the schedules, per datum.
        program: that it trains.
        state: of the estimator.
        schedules: their present values.
        worth: whether batches of so many data come often enough to be compiled.
    """

    def __init__(
        self,
        loss: Loss,
        program: Program,
        state: nn.Module,
        schedules: Callable[[], Mapping[str, float]],
        worth: Callable[[int], bool] = lambda rows: True,
    ) -> None:
        self.module = StepModule(loss, program, state)
        self.schedules = schedules
        self.worth = worth
        self.failure: str | None = None
        """Why steps are taken eagerly after all."""
        self._inputs: StepInputs | None = None
        self._graphs: dict[Hashable, tuple[Compiled, list[str]]] = {}

    def __call__(self, batch: Batch) -> Tensor | None:
        """Take loss and gradients, which go to the parameters' ``.grad``.

        Returns:
            The loss, or None: this step has to be taken eagerly.
        """
        if self.failure is not None or not self.worth(batch_size(batch)):
            return None
        key = (shape_of(batch), self.module.program.training)
        if key not in self._graphs:
            try:
                self._graphs[key] = self._make(batch)
            except NotCompiledError as error:
                self.failure = str(error)
                log.warning("training goes on without compiling: %s", error)
                return None
        compiled, changed = self._graphs[key]
        inputs = self._up_to_date()
        loss, *rest = compiled(inputs.flat(batch))
        parameters = [p for p in self.module.parameters() if p.requires_grad]
        for parameter, gradient in zip(parameters, rest, strict=False):
            parameter.grad = gradient
        with torch.no_grad():
            for name, value in zip(changed, rest[len(parameters) :], strict=True):
                inputs.kept[name].copy_(value)
        return loss

    def _up_to_date(self) -> StepInputs:
        """The inputs, with the schedules at their present values."""
        now = self.schedules()
        if self._inputs is None:
            device = next(self.module.parameters()).device
            # In float64, which changes the dtype of nothing that has dimensions.
            zero = torch.zeros((), device=device, dtype=torch.float64)
            tensors = {name: zero.clone() for name in now}
            self._inputs = StepInputs(self.module, tensors)
        for name, value in now.items():
            self._inputs.schedules[name].fill_(value)
        return self._inputs

    def _make(self, batch: Batch) -> tuple[Compiled, list[str]]:
        inputs = self._up_to_date()
        traced = trace_step(inputs, batch)
        compiled = compile_graph(traced, inputs.flat(batch))
        self._check(inputs, batch, traced, compiled)
        return compiled, traced.changed

    def _check(
        self, inputs: StepInputs, batch: Batch, traced: StepGraph, compiled: Compiled
    ) -> None:
        """Compare with the eager step on the same random numbers.

        Raises:
            NotCompiledError: they differ.
        """
        with forked_rng():
            ours = compiled(inputs.flat(batch))
        with forked_rng(), self.module.program.scope(), pyro.validation_enabled(False):
            eager = inputs.step(list(batch))(*inputs.flat(batch))
        known = [n not in traced.changed for n in inputs.kept]
        theirs = eager[: len(eager) - len(known)]
        theirs += [v for v, same in zip(eager[len(theirs) :], known, strict=True) if not same]
        names = ["loss", *inputs.trained, *traced.changed]
        largest = max(float(g.abs().max()) for g in theirs[1 : 1 + len(inputs.trained)])
        for name, a, b in zip(names, ours, theirs, strict=True):
            gap, size = float((a - b).abs().max()), float(b.abs().max())
            # A gradient that is zero but for rounding (a bias before batch norm) is as good.
            if not gap <= TOLERANCE.get(b.dtype, 1e-4) * max(size, 0.01 * largest):
                raise NotCompiledError(
                    f"compiled and eager step differ at {name} by {gap:.3g} (of {size:.3g}): the "
                    "program depends on something that is no tensor input, or draws differently"
                )


def shape_of(batch: Batch) -> Hashable:
    """What a graph is made for: the fields' shapes, dtypes and device."""
    return tuple((name, v.shape, v.dtype, v.device) for name, v in batch.items())
