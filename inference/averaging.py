"""A running average of the weights, which is evaluated and kept in their place."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

log = logging.getLogger(__name__)


class WeightAverage:
    """An exponential moving average of parameters; training goes on with their own values.

    After update t = 0, 1, ... it is d · average + (1 − d) · parameter with
    d = min((1 + t) / (10 + t), decay): early updates count for more, or the first weights, which
    are random, would stay in it for 1 / (1 − decay) steps. Buffers are not averaged.

    Args:
        parameters: what is averaged, in place where they are.
        decay: of the average, in [0, 1).

    References:
        Polyak, Juditsky: Acceleration of Stochastic Approximation by Averaging, 1992. With a
        decay in evaluation of VAEs: Vahdat & Kautz 2020, arXiv:2007.03898; Child 2021,
        arXiv:2011.10650.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], decay: float) -> None:
        self.parameters: list[Tensor] = list(parameters)
        self.decay = decay
        self.count = 0
        """Updates that are in it."""
        self.values = [parameter.detach().clone() for parameter in self.parameters]
        """The averages; while they stand in the parameters, what these were."""

    @torch.no_grad()
    def update(self) -> None:
        """Take in the parameters as an update left them."""
        decay = min((1 + self.count) / (10 + self.count), self.decay)
        torch._foreach_lerp_(self.values, self.parameters, 1 - decay)
        self.count += 1

    @torch.no_grad()
    def swap(self) -> None:
        """Exchange averages and parameters; twice, and every bit is as it was."""
        for parameter, value in zip(self.parameters, self.values, strict=True):
            before = parameter.detach().clone()
            parameter.copy_(value)  # in place: a compiled step knows where parameters are
            value.copy_(before)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the parameters are the averages."""
        self.swap()
        try:
            yield
        finally:
            self.swap()

    @staticmethod
    def warn_of_statistics(program: nn.Module) -> None:
        """Say so if a program has running statistics, which are of the parameters' own values."""
        found = [
            name
            for name, module in program.named_modules()
            if isinstance(module, _NormBase) and module.track_running_stats
        ]
        if found:
            log.warning(
                "average_decay: running statistics of %s are those of the weights themselves, not "
                "of their average, which is validated and kept with them and may fit them badly. "
                "Leave average_decay out, or normalize without statistics of the batch (weight, "
                "group or layer normalization).",
                ", ".join(found),
            )

    def state(self) -> dict[str, Any]:
        """What goes on training, for a checkpoint that is written :meth:`in_place`."""
        return {"raw": self.values, "count": self.count}

    @torch.no_grad()
    def load(self, state: dict[str, Any]) -> None:
        """Take up a checkpoint; the parameters hold its averages, and then their own values."""
        raw: list[Tensor] = state["raw"]
        for value, saved in zip(self.values, raw, strict=True):
            value.copy_(saved)
        self.swap()
        self.count = state["count"]
