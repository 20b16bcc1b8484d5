"""One step of stochastic variational inference."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from inference.averaging import WeightAverage
from inference.compiled import CompiledStep
from inference.elbo.traces import Traces, run_traces
from inference.handlers import Handler
from inference.nonfinite import (
    Recent,
    Skips,
    Step,
    drawn_again,
    explain,
    generator_states,
)
from inference.parameters import check_gradients, check_ownership, trained
from inference.weights import batch_size
from ppl_models.program import Batch, Program

if TYPE_CHECKING:
    from lightning_fabric import Fabric

log = logging.getLogger(__name__)

UNSEEN_ON_CUDA = 50
"""Compiled steps on a GPU between two looks at whether all is finite."""


class SVIStep:
    """Loss, gradient, update.

    Args:
        program: what is trained.
        estimator: any ``pyro.infer.ELBO``.
        optimizer: over the program's parameters.
        fabric: device and precision.
        handlers: around model and guide, the first innermost.
        num_data: size of the training set, for programs that name it.
        clip_grad_norm: largest norm of the whole gradient (per datum), or None.
        compile_worth: whether batches of so many data are to be compiled; None: none are.
        max_skipped: updates that may be left out, for their loss or gradient is not finite.
        average: of the parameters, which takes in every update; None: there is none.
    """

    def __init__(
        self,
        program: Program,
        estimator: ELBO,
        optimizer: torch.optim.Optimizer,
        fabric: Fabric,
        handlers: Sequence[Handler],
        num_data: int,
        clip_grad_norm: float | None = None,
        compile_worth: Callable[[int], bool] | None = None,
        max_skipped: int = 0,
        average: WeightAverage | None = None,
    ) -> None:
        self.program = program
        self.estimator = estimator
        self.optimizer = optimizer
        self.fabric = fabric
        self.handlers = tuple(handlers)
        self.num_data = num_data
        self.clip_grad_norm = clip_grad_norm
        self.parameters = trained(program, estimator)
        self._model = self._handled(program.run_model, "around_model")
        self._guide = self._handled(program.run_guide, "around_guide")
        self.started = False
        """Whether the first update is done, which is eager and checks the gradients."""
        self.skips = Skips(max_skipped)
        self.average = average
        state = getattr(estimator, "state", nn.Module())
        self._held = nn.ModuleList([program, state])
        self.compiled: CompiledStep | None = None
        if compile_worth is not None and hasattr(estimator, "differentiable_loss"):
            self.compiled = CompiledStep(
                self._loss_at,
                program,
                state,
                self._schedules,
                optimizer,
                clip_grad_norm,
                compile_worth,
            )
        elif compile_worth is not None:
            log.warning("%s cannot be compiled", type(estimator).__name__)
        unseen = fabric.device.type == "cuda" and not max_skipped
        self._recent = Recent(UNSEEN_ON_CUDA if unseen else 1)
        self._bad_steps: Tensor | None = None

    def _handled(self, run: Callable[..., Any], around: str) -> Callable[[Batch], Any]:
        def with_size(batch: Batch) -> Any:
            return run(batch, num_data=self.num_data)

        handled: Callable[[Batch], Any] = with_size
        for handler in self.handlers:
            handled = getattr(handler, around)(handled)
        return handled

    def at(self, step: int) -> None:
        """Set the handlers' numbers for the step of this number (from 0)."""
        for handler in self.handlers:
            handler.at(step)

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            batch: fields (B, ...).

        Returns:
            Loss per datum (nats) and gradient norm before clipping, as detached scalars; not
            finite, where :attr:`skips` counts one more. The next step on a GPU may overwrite them.

        Raises:
            NonFiniteLossError: the loss or the gradient is not finite, and no more updates may be
                skipped; nothing was updated. A compiled step on a GPU tells so up to 50 steps
                later.
            ProgramError: a parameter gets no gradient (first update only).
        """
        draws, skipped = generator_states(self.fabric.device), self.skips.count
        step = Step(batch, draws, self._schedules(), self._copied_buffers())
        taken = self.compiled(batch) if self.compiled is not None and self.started else None
        if taken is not None and taken.updated:
            loss, norm = taken.loss, taken.norm
            self._remember(step, taken.bad_steps)
        else:
            loss, norm = self._updated(step, None if taken is None else taken.loss)
        if self.average is not None and self.skips.count == skipped:
            self.average.update()
        return loss, norm

    def _updated(self, step: Step, loss: Tensor | None) -> tuple[Tensor, Tensor]:
        """Update by torch's optimizer, if all is finite.

        Args:
            step: its batch, and what was before it.
            loss: whose gradients wait in the parameters' ``.grad``; None: to be taken eagerly.

        Returns:
            Loss, norm of the gradient.
        """
        first = not self.started
        if loss is None:
            self.settle()
            loss = self.backward(step.batch)
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = get_total_norm(gradients, foreach=True)
        if not bool(torch.isfinite(loss + norm)):
            self._leave_out(step, loss)
            self.started = not first
            return loss, norm
        if self.clip_grad_norm is not None:
            clip_grads_with_norm_(self.parameters, self.clip_grad_norm, norm)
        self.optimizer.step()
        return loss, norm

    def _remember(self, step: Step, bad_steps: Tensor) -> None:
        self._bad_steps = bad_steps
        self._recent.add(step)
        if self._recent.due:
            self.settle()

    def settle(self) -> None:
        """Make sure that the compiled steps so far were finite, or are left out.

        Raises:
            NonFiniteLossError: one was not; nothing was updated by it, nor since.
        """
        if self._bad_steps is None or self.compiled is None:
            return
        bad = self._recent.first_bad(self._bad_steps)
        self._bad_steps = None
        if bad is not None:
            self.compiled.forget_bad_steps()
            self._leave_out(bad, None)

    def _leave_out(self, step: Step, loss: Tensor | None) -> None:
        """Go on without the update, if one more may be skipped.

        Args:
            step: which is not finite.
            loss: of it, with gradients in the parameters' ``.grad``; None: neither is at hand.

        Raises:
            NonFiniteLossError: naming what is not finite.
        """
        cause = ""
        if self.skips.tells:
            if loss is None:
                with drawn_again(step.draws, self.fabric.device), self._at(step.schedules):
                    loss = self.backward(step.batch)
            cause = self._explain(step, loss)
        self.skips.add(cause)
        with torch.no_grad():
            for name, buffer in self._held.named_buffers():
                buffer.copy_(step.buffers[name])

    def _copied_buffers(self) -> dict[str, Tensor]:
        """Buffers of program and estimator, if a step may be left out: it may spoil them."""
        if not self.skips.limit:
            return {}
        return {name: buffer.clone() for name, buffer in self._held.named_buffers()}

    def _count(self, batch: Batch) -> int:
        """The number of data that a loss is of."""
        return self.num_data if "num_data" in self.program.options else batch_size(batch)

    def _loss(self, batch: Batch) -> Tensor:
        """Loss per datum."""
        estimator: Any = self.estimator
        with self.fabric.autocast():
            loss = estimator.differentiable_loss(self._model, self._guide, batch)
        return loss / self._count(batch)

    def _schedules(self) -> dict[str, float]:
        """What changes from step to step beside the data, by name."""
        return {name: getattr(*owner) for name, owner in self._changing().items()}

    def _changing(self) -> dict[str, tuple[Any, str]]:
        """What changes from step to step beside the data, by name: an object's attribute."""
        found: dict[str, tuple[Any, str]] = {
            f"{type(handler).__name__}.{i}.{name}": (handler, name)
            for i, handler in enumerate(self.handlers)
            for name in handler.numbers()
        }
        if hasattr(self.estimator, "temperature"):
            found["temperature"] = (self.estimator, "temperature")
        return found

    def _loss_at(self, batch: Batch, schedules: Mapping[str, Tensor]) -> Tensor:
        """Loss per datum, with tensors in the place of the schedules' numbers."""
        with self._at(schedules):
            return self._loss(batch)

    @contextmanager
    def _at(self, schedules: Mapping[str, Any]) -> Iterator[None]:
        """Within, the schedules have these values."""
        owners = self._changing()
        before = {name: getattr(*owners[name]) for name in schedules}
        for name, value in schedules.items():
            setattr(*owners[name], value)
        try:
            yield
        finally:
            for name, value in before.items():
                setattr(*owners[name], value)

    def backward(self, batch: Batch) -> Tensor:
        """Loss per datum, taken eagerly, with its gradient in the parameters' ``.grad``."""
        estimator: Any = self.estimator
        for parameter in self.parameters:  # what zero_grad does, at a twentieth of its cost
            parameter.grad = None
        if hasattr(estimator, "differentiable_loss"):
            loss = self._loss(batch)
            if not self.started:
                check_ownership(loss, self.program, self.parameters)
            loss.backward()
        else:  # TraceGraph_ELBO, RenyiELBO
            with self.fabric.autocast():
                loss = estimator.loss_and_grads(self._model, self._guide, batch)
            count = self._count(batch)
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad /= count
            loss = torch.as_tensor(loss / count)
        if not self.started:
            check_gradients(self.program)
            self.started = True
        return loss.detach()

    def _explain(self, step: Step, loss: Tensor) -> str:
        """Take the step's draws again and name what went wrong."""

        def run() -> Traces:
            return run_traces(self._model, self._guide, (step.batch,), {})

        again = drawn_again(step.draws, self.fabric.device)
        with again, self.fabric.autocast(), self._at(step.schedules):
            return explain(self.program, loss, run)
