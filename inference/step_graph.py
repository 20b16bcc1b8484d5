"""A step of training as a pure function of tensors: loss, gradients, and where possible the update.

Everything that changes from step to step is an input, and is written back by the graph itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.func import functional_call

from inference.graphs import Held, NotCompiledError
from inference.updates import Update
from ppl_models.program import Batch, Program


class Loss(Protocol):
    """A loss per datum of a batch, with tensors in the place of the schedules' numbers."""

    def __call__(self, batch: Batch, schedules: Mapping[str, Tensor]) -> Tensor:
        """The loss, a scalar that backpropagates."""


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


class StepGraph:
    """The step as a function of a flat list of tensors, and that list.

    Args:
        module: the loss.
        schedules: names of the numbers that change from step to step.
        update: of the parameters, or None: the graph ends with the gradients.
        clip_grad_norm: largest norm of the gradient that is applied.
    """

    def __init__(
        self,
        module: StepModule,
        schedules: Sequence[str],
        update: Update | None = None,
        clip_grad_norm: float | None = None,
    ) -> None:
        self.module = module
        self.schedules = list(schedules)
        self.update = update
        self.clip_grad_norm = clip_grad_norm
        self.held = Held(module)
        device = next(iter(self.held.trained.values())).device
        # In float64: a number without dimensions changes the dtype of nothing that has them.
        self.numbers = torch.zeros(len(self.schedules), dtype=torch.float64, device=device)
        """Present values of the schedules."""
        self.rates = torch.zeros(0) if update is None else update.new_rates(device)
        """Present numbers of the optimizer."""
        self.bad_steps = torch.zeros((), dtype=torch.int64, device=device)
        """Steps since the first whose loss or gradient was not finite, that one included."""
        names = {id(p): n for n, p in module.named_parameters()}
        if update is not None and not all(id(p) in names for p in update.parameters):
            raise NotCompiledError("the optimizer holds a parameter that is not the program's")
        self.updated = [] if update is None else [names[id(p)] for p in update.parameters]
        self._slots = [] if update is None else update.tensors
        self._fixed = [
            *self.held.tensors(),
            *(t for slots in self._slots for t in slots),
            self.numbers,
            self.rates,
            self.bad_steps,
        ]

    def flat(self, batch: Batch) -> list[Tensor]:
        """The inputs, in the order in which the graph takes them."""
        return [*self._fixed, *batch.values()]

    def set_numbers(self, schedules: Mapping[str, float]) -> None:
        """Give the numbers of the step to come their values."""
        _fill(self.numbers, [schedules[name] for name in self.schedules])
        if self.update is not None:
            _fill(self.rates, self.update.numbers())

    def function(self, fields: Sequence[str]) -> Any:
        """The step as a function of :meth:`flat`.

        It gives loss, norm of the gradient, number of bad steps, and the gradients, and writes
        into its inputs: buffers, and, if all is finite and has been, parameters and slots.
        """
        slots_of_each = [len(slots) for slots in self._slots]
        sizes = [len(self.held.trained), len(self.held.kept), *slots_of_each, 1, 1, 1, len(fields)]

        def run(*flat: Tensor) -> list[Tensor]:
            trained, kept, *slots, (numbers,), (rates,), (bad,), data = split(flat, sizes)
            at = dict(zip(self.schedules, numbers.unbind(0), strict=True))
            leaves = [value.detach().requires_grad_(True) for value in trained]
            copies = [value.clone() for value in kept]
            named = dict(zip(self.held.names(), leaves + copies, strict=True))
            given = dict(zip(fields, data, strict=True))
            loss = functional_call(self.module, named, (given, at))
            gradients = self._gradients(loss, leaves)
            with torch.no_grad():
                norm = torch.stack([g.square().sum() for g in gradients]).sum().sqrt()
                healthy = None
                if self.update is not None:
                    bad.add_(((bad > 0) | ~torch.isfinite(loss + norm)).to(bad.dtype))
                    healthy = bad == 0
                    self._apply(trained, gradients, slots, rates.unbind(0), norm, healthy)
                self._keep(kept, named, healthy)
            return [loss.detach(), norm, bad.clone(), *gradients]

        return run

    def _keep(
        self,
        old: Sequence[Tensor],
        named: Mapping[str, Tensor],
        healthy: Tensor | None,
    ) -> None:
        """Write what the run made of the buffers, in place or by setting the attribute."""
        for name, before in zip(self.held.kept, old, strict=True):
            new = named[name].detach()
            before.copy_(new if healthy is None else torch.where(healthy, new, before))

    def _gradients(self, loss: Tensor, leaves: list[Tensor]) -> list[Tensor]:
        gradients = torch.autograd.grad(loss, leaves, allow_unused=True)
        found = [gradient for gradient in gradients if gradient is not None]
        if len(found) < len(leaves):
            named = zip(self.held.trained, gradients, strict=True)
            missing = ", ".join(name for name, gradient in named if gradient is None)
            raise NotCompiledError(
                f"no gradient reaches {missing}: not used, or a function holds the network itself, "
                "so that the graph cannot take its parameters as inputs; make it an attribute of "
                "a class with model and guide"
            )
        # Two parameters that are added have one gradient, which is not to be clipped twice.
        seen: set[int] = set()
        for i, gradient in enumerate(found):
            found[i] = gradient.clone() if id(gradient) in seen else gradient
            seen.add(id(gradient))
        return found

    def _apply(
        self,
        trained: Sequence[Tensor],
        gradients: Sequence[Tensor],
        slots: Sequence[Sequence[Tensor]],
        rates: Sequence[Tensor],
        norm: Tensor,
        healthy: Tensor,
    ) -> None:
        """Write the new parameters and slots, unless a step was bad."""
        assert self.update is not None
        if self.clip_grad_norm is not None:
            factor = (self.clip_grad_norm / (norm + 1e-6)).clamp(max=1.0)
            gradients = [gradient * factor for gradient in gradients]
        position = {name: i for i, name in enumerate(self.held.trained)}
        order = [position[name] for name in self.updated]
        old = [trained[i] for i in order]
        new = self.update(old, [gradients[i] for i in order], slots, rates)
        for parameter, own, values in zip(old, slots, new, strict=True):
            for target, value in zip([parameter, *own], values, strict=True):
                target.copy_(torch.where(healthy, value, target))


def _fill(tensor: Tensor, values: Sequence[float]) -> None:
    """Give a vector its values, without waiting for its device."""
    if values:
        tensor.copy_(torch.tensor(values, dtype=tensor.dtype), non_blocking=True)


def split(flat: Sequence[Tensor], sizes: Sequence[int]) -> list[list[Tensor]]:
    """A flat list in parts of these sizes."""
    parts, start = [], 0
    for size in sizes:
        parts.append(list(flat[start : start + size]))
        start += size
    return parts
