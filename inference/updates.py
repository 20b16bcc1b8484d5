"""Optimizers' updates as pure functions, so that a graph can hold the whole step.

Torch's optimizer stays the owner: its state tensors are the graph's inputs, its groups' numbers
(learning rate, betas, whatever a schedule changes) are read anew before every step.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

Group = dict[str, Any]
Numbers = Sequence[Tensor]


class Update(ABC):
    """The update of an optimizer that has taken its first step.

    Args:
        optimizer: torch's.
    """

    slots: ClassVar[tuple[str, ...]]
    """The state tensors of a parameter that an update reads and writes."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.members = _members(optimizer)
        self.count = max(_counts(optimizer, [p for _, p in self.members]), default=0)
        self._counter = self._shared_counter()
        self._hook = optimizer.register_step_post_hook(self._taken_by_torch)

    def _shared_counter(self) -> Tensor:
        """One tensor for torch's counters, a number a parameter, so that one write sets all."""
        states = [self.optimizer.state.get(p, {}) for _, p in self.members]
        counters = [state["step"] for state in states if "step" in state]
        if not counters:
            return torch.zeros(0)
        shared = torch.stack(counters)
        for state, counter in zip(states, shared.unbind(0), strict=True):
            state["step"] = counter
        return shared

    def _taken_by_torch(self, *args: Any) -> None:
        self.count += 1

    def taken(self, steps: int = 1) -> None:
        """Steps were taken by the graph; or, if negative, they turned out to be none."""
        self.count += steps
        self._counter.fill_(self.count)

    def close(self) -> None:
        """Another takes its place."""
        self._hook.remove()

    @classmethod
    def serves(cls, group: Group, state: dict[str, Any]) -> bool:
        """Whether the update of a parameter with these options and this state is known."""
        return not group.get("differentiable") and all(state.get(s) is not None for s in cls.slots)

    def signature(self) -> tuple[Any, ...]:
        """What a graph takes as given: where the slots are, and options that are no numbers."""
        options = [
            (k, v)
            for group in self.optimizer.param_groups
            for k, v in group.items()
            if isinstance(v, bool) or (k == "momentum" and v == 0)
        ]
        places = [slot.data_ptr() for slots in self.tensors for slot in slots]
        return (len(self.optimizer.param_groups), *options, *places)

    @property
    def parameters(self) -> list[Tensor]:
        """The parameters, in the order of the other lists."""
        return [parameter for _, parameter in self.members]

    @property
    def tensors(self) -> list[list[Tensor]]:
        """The slots' tensors, by parameter."""
        state = self.optimizer.state
        return [[state[p][s] for s in self.slots] if self.slots else [] for _, p in self.members]

    def new_rates(self, device: torch.device) -> Tensor:
        """Room for :meth:`numbers`, in the widest dtype of the parameters."""
        dtypes = [parameter.dtype for parameter in self.parameters]
        wide = torch.float64 if torch.float64 in dtypes else torch.float32
        return torch.zeros(len(self.numbers()), dtype=wide, device=device)

    def numbers(self) -> list[float]:
        """The present numbers of all groups, for the step to come."""
        return [n for group in self.optimizer.param_groups for n in self.numbers_of(group)]

    def __call__(
        self,
        parameters: Sequence[Tensor],
        gradients: Sequence[Tensor],
        slots: Sequence[Sequence[Tensor]],
        numbers: Numbers,
    ) -> list[list[Tensor]]:
        """New values of every parameter and its slots.

        Args:
            parameters: as :attr:`parameters`.
            gradients: theirs.
            slots: as :attr:`tensors`.
            numbers: as :meth:`numbers`.
        """
        groups = self.optimizer.param_groups
        each = len(numbers) // len(groups)
        of_group = {id(g): numbers[i * each : (i + 1) * each] for i, g in enumerate(groups)}
        return [
            self.rule(parameter, -gradient if group["maximize"] else gradient, slot, of, group)
            for (group, _), parameter, gradient, slot in zip(
                self.members, parameters, gradients, slots, strict=True
            )
            for of in [of_group[id(group)]]
        ]

    @abstractmethod
    def numbers_of(self, group: Group) -> list[float]:
        """What changes from step to step, for a group."""

    @abstractmethod
    def rule(
        self, p: Tensor, g: Tensor, slots: Sequence[Tensor], numbers: Numbers, group: Group
    ) -> list[Tensor]:
        """New values of a parameter and its slots."""


class AdamUpdate(Update):
    """Of ``torch.optim.Adam`` and ``AdamW``."""

    slots = ("exp_avg", "exp_avg_sq")

    @classmethod
    def serves(cls, group: Group, state: dict[str, Any]) -> bool:
        """All but AMSGrad."""
        return super().serves(group, state) and not group["amsgrad"]

    def numbers_of(self, group: Group) -> list[float]:
        """Rates, with the corrections of the averages' start, so that little is left to do."""
        rate, (beta1, beta2), step = float(group["lr"]), group["betas"], self.count + 1
        decay, correction = float(group["weight_decay"]), (1 - beta2**step) ** 0.5
        return [
            1 - rate * decay if self._decoupled(group) else 1.0,
            0.0 if self._decoupled(group) else decay,
            1 - float(beta1),
            float(beta2),
            1 - float(beta2),
            rate / (1 - beta1**step) * correction,
            float(group["eps"]) * correction,
        ]

    def _decoupled(self, group: Group) -> bool:
        return isinstance(self.optimizer, torch.optim.AdamW) or bool(
            group.get("decoupled_weight_decay")
        )

    def rule(
        self, p: Tensor, g: Tensor, slots: Sequence[Tensor], numbers: Numbers, group: Group
    ) -> list[Tensor]:
        """Kingma & Ba 2015, arXiv:1412.6980; Loshchilov & Hutter 2019, arXiv:1711.05101."""
        shrink, decay, weight1, beta2, weight2, rate, eps = numbers
        mean, square = slots
        g = g + decay * p
        mean = mean + weight1 * (g - mean)
        square = square * beta2 + weight2 * (g * g)
        return [p * shrink - rate * mean / (square.sqrt() + eps), mean, square]


class SGDUpdate(Update):
    """Of ``torch.optim.SGD`` without momentum."""

    slots = ()

    @classmethod
    def serves(cls, group: Group, state: dict[str, Any]) -> bool:
        """Of groups without momentum."""
        return super().serves(group, state) and group["momentum"] == 0

    def numbers_of(self, group: Group) -> list[float]:
        """The rates of descent and decay."""
        return [float(group["lr"]), float(group["weight_decay"])]

    def rule(
        self, p: Tensor, g: Tensor, slots: Sequence[Tensor], numbers: Numbers, group: Group
    ) -> list[Tensor]:
        """Down the gradient."""
        rate, decay = numbers
        return [p - rate * (g + decay * p)]


class MomentumUpdate(Update):
    """Of ``torch.optim.SGD`` with momentum, Nesterov's too."""

    slots = ("momentum_buffer",)

    @classmethod
    def serves(cls, group: Group, state: dict[str, Any]) -> bool:
        """Of groups with momentum."""
        return super().serves(group, state) and group["momentum"] != 0

    def numbers_of(self, group: Group) -> list[float]:
        """The rates of descent and decay, the momentum, and the weight of the new gradient."""
        names = ("lr", "weight_decay", "momentum")
        return [*(float(group[name]) for name in names), 1 - float(group["dampening"])]

    def rule(
        self, p: Tensor, g: Tensor, slots: Sequence[Tensor], numbers: Numbers, group: Group
    ) -> list[Tensor]:
        """Sutskever, Martens, Dahl, Hinton 2013, as torch has it."""
        rate, decay, momentum, weight = numbers
        g = g + decay * p
        velocity = slots[0] * momentum + weight * g
        step = g + momentum * velocity if group["nesterov"] else velocity
        return [p - rate * step, velocity]


UPDATES: dict[type, tuple[type[Update], ...]] = {
    torch.optim.Adam: (AdamUpdate,),
    torch.optim.AdamW: (AdamUpdate,),
    torch.optim.SGD: (SGDUpdate, MomentumUpdate),
}


def update_of(optimizer: torch.optim.Optimizer) -> Update | None:
    """The update of an optimizer that has taken a step, or None: it is left to torch."""
    members = _members(optimizer)
    counts = _counts(optimizer, [p for _, p in members])
    plain = not any(p.is_complex() for _, p in members)
    if _is_hooked(optimizer) or len(counts) > 1 or not plain:
        return None
    for candidate in UPDATES.get(type(optimizer), ()):
        if all(candidate.serves(group, optimizer.state.get(p, {})) for group, p in members):
            return candidate(optimizer)
    return None


def _members(optimizer: torch.optim.Optimizer) -> list[tuple[Group, Tensor]]:
    """The parameters that are trained, each with its group."""
    return [
        (group, parameter)
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.requires_grad
    ]


def _counts(optimizer: torch.optim.Optimizer, parameters: Sequence[Tensor]) -> set[int]:
    """The numbers of steps that torch has counted for the parameters."""
    states = [optimizer.state.get(parameter, {}) for parameter in parameters]
    return {int(state["step"]) for state in states if "step" in state}


def _is_hooked(optimizer: torch.optim.Optimizer) -> bool:
    """Whether more is done at a step than torch does."""
    from torch.optim import optimizer as common

    hooks = (
        optimizer._optimizer_step_pre_hooks,
        optimizer._optimizer_step_post_hooks,
        common._global_optimizer_pre_hooks,
        common._global_optimizer_post_hooks,
    )
    foreign = [h for table in hooks for h in table.values() if not _is_ours(h)]
    own_step = vars(optimizer).get("step")  # a schedule of torch's wraps it, to count
    return bool(foreign) or not (own_step is None or hasattr(own_step, "_wrapped_by_lr_sched"))


def _is_ours(hook: Any) -> bool:
    return isinstance(getattr(hook, "__self__", None), Update)
