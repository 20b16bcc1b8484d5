"""The compiled step: what Pyro does in Python at every step, done once.

Traces, handlers and distributions are the same at every step of a program of static structure.
The step is traced into one graph, from parameters, buffers, data and schedules to loss, gradients
and update, and compiled by inductor. ``docs/compiled_step.md`` tells more.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass

import pyro
import torch
from torch import Tensor, nn

from inference.elbo.base import forked_rng
from inference.graphs import (
    Compiled,
    NotCompiledError,
    check_alike,
    compile_graph,
    shapes_of,
    trace,
)
from inference.replay import Replayed
from inference.step_graph import Loss, StepGraph, StepModule
from inference.updates import update_of
from inference.weights import batch_size
from ppl_models.program import Batch, Program

log = logging.getLogger(__name__)


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
        self.failure: str | None = None
        """Why steps are taken eagerly after all."""
        self._step: StepGraph | None = None
        self._graphs: dict[Hashable, Compiled] = {}
        self._parameters = [p for p in self.module.parameters() if p.requires_grad]

    def __call__(self, batch: Batch) -> Taken | None:
        """Take a step; the gradients go to the parameters' ``.grad``, not clipped.

        Returns:
            What came of it, or None: this step has to be taken eagerly.
        """
        if self.failure is not None or not self.worth(batch_size(batch)):
            return None
        step = self.step_graph()
        compiled = self._compiled(step, batch)
        if compiled is None:
            return None
        step.set_numbers(self.schedules())
        loss, norm, bad, *gradients = compiled(step.flat(batch))
        for parameter, gradient in zip(self._parameters, gradients, strict=True):
            parameter.grad = gradient
        if step.update is not None:
            step.update.taken()
        return Taken(loss, norm, bad, step.update is not None)

    def step_graph(self) -> StepGraph:
        """The step as a function, with its inputs."""
        if self._step is None:
            update = update_of(self.optimizer)
            names = list(self.schedules())
            self._step = StepGraph(self.module, names, update, self.clip_grad_norm)
        return self._step

    def _compiled(self, step: StepGraph, batch: Batch) -> Compiled | None:
        key = (shapes_of(batch), self.module.program.training)
        if key not in self._graphs:
            started = time.monotonic()
            try:
                self._graphs[key] = self._make(step, batch)
            except NotCompiledError as error:
                self.failure = str(error)
                log.warning("training goes on without compiling: %s", error)
                return None
            log.info("compiled the step in %.1f seconds", time.monotonic() - started)
        return self._graphs[key]

    def _make(self, step: StepGraph, batch: Batch) -> Compiled:
        step.set_numbers(self.schedules())
        flat, function = step.flat(batch), step.function(list(batch))
        with self.module.program.scope(), pyro.validation_enabled(False):
            compiled = compile_graph(trace(function, flat), flat)
            self._check(step, batch, compiled)
        return Replayed(compiled, len(batch)) if flat[0].is_cuda else compiled

    def _check(self, step: StepGraph, batch: Batch, compiled: Compiled) -> None:
        """Compare with the eager step on the same random numbers; nothing is changed.

        Raises:
            NotCompiledError: they differ.
        """
        eager = step.function(list(batch))
        outcomes = []
        for run in (compiled, lambda flat: eager(*flat)):
            flat = [value.clone() for value in step.flat(batch)]
            with forked_rng():
                outputs = run(list(flat))
            kept = flat[len(step.held.trained) :][: len(step.held.kept)]
            outcomes.append([outputs[0], *outputs[3:], *kept])
        names = ["loss", *step.held.trained, *step.held.kept]
        ours, theirs = outcomes
        gradients = theirs[1 : 1 + len(step.held.trained)]
        # A gradient that is zero but for rounding (a bias before batch norm) is as good.
        largest = max(float(gradient.abs().max()) for gradient in gradients)
        check_alike(names, ours, theirs, floor=0.01 * largest)
