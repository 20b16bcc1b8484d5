"""Stepwise EM: learning from a stream of batches, for programs with sufficient statistics.

References:
    Cappé, Moulines: Online expectation-maximization algorithm for latent data models, 2009,
    arXiv:0712.4273.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor

Statistics = dict[str, Tensor]


class Learner(Protocol):
    """What can be learned by expectation and maximization."""

    def start(self, patches: Tensor, /) -> Statistics:
        """The statistics to begin with."""

    def maximize(self, statistics: Statistics, /) -> Any:
        """The likeliest parameters with these statistics."""

    def expect(self, parameters: Any, data: Tensor, /) -> tuple[float, Statistics]:
        """Mean log density, and mean statistics of data (N, ...)."""

    def repair(self, statistics: Statistics, num_data: float, /) -> int:
        """Mend, in place, what has lost its data; how many."""


@dataclass
class EMState:
    """Where a run is: enough, with the stream, to go on with it."""

    statistics: Statistics
    step: int = 0
    history: list[float] = field(default_factory=list)
    """Mean log density of each batch before it was learned from; nats per datum."""
    repaired: int = 0
    """Components that had lost their data and were made anew."""


def stepwise_em(
    learner: Learner,
    batches: Callable[[int], Tensor],
    num_batches: int,
    *,
    state: EMState | None = None,
    callback: Callable[[EMState, Any], None] | None = None,
) -> tuple[Any, EMState]:
    """Learn from a stream: batch t moves the statistics by the step (t + 2)^−0.6 to its own.

    Args:
        learner: of the parameters.
        batches: from the number of a batch to its data.
        num_batches: how many batches to learn from in all.
        state: of an earlier run, to go on with; it is changed.
        callback: called after every batch with the state and the parameters.

    Returns:
        The parameters, and the state.
    """
    if state is None:
        state = EMState(learner.start(batches(0)))
    parameters = learner.maximize(state.statistics)
    while state.step < num_batches:
        data = batches(state.step)
        log_density, found = learner.expect(parameters, data)
        pace = (state.step + 2) ** -0.6
        for name, value in found.items():
            state.statistics[name].lerp_(value, pace)
        state.history.append(log_density)
        state.step += 1
        # The statistics are a mean over the last 1 / pace batches or so.
        state.repaired += learner.repair(state.statistics, 4 * len(data) / pace)
        parameters = learner.maximize(state.statistics)
        if callback is not None:
            callback(state, parameters)
    return parameters, state
