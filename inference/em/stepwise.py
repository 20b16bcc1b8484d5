"""Stepwise EM: a mixture that learns from a stream of batches, none of them seen twice.

E-step, M-step and repairs are those of :func:`inference.em.fit_em`; only the schedule is another.
Of what was learned before, the mixture itself is the memory: its M-step can be undone.

References:
    Cappé, Moulines: Online expectation-maximization algorithm for latent data models, 2009,
    arXiv:0712.4273.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

from torch import Tensor

from inference.em.e_step import one_pass
from inference.em.maximize import maximize
from inference.em.repairs import Repair, repair
from inference.em.statistics import Mixture, statistics_of


@dataclass
class StepwiseState:
    """Where a run is: enough, with the stream, to go on with it."""

    mixture: Mixture
    step: int = 0
    history: list[float] = field(default_factory=list)
    """Mean log density of each batch before it was learned from; nats per datum."""
    repairs: list[Repair] = field(default_factory=list)
    """Components that had lost their data, and what was done."""

    def to_dict(self) -> dict[str, Any]:
        """As tensors and plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> StepwiseState:
        """From :meth:`to_dict`."""
        repairs = [Repair(**r) for r in plain["repairs"]]
        return cls(**plain | {"mixture": Mixture(**plain["mixture"]), "repairs": repairs})


def fit_stepwise(
    state: StepwiseState,
    batches: Callable[[int], Tensor],
    num_batches: int,
    *,
    floor: Tensor,
    callback: Callable[[StepwiseState], None] | None = None,
) -> Mixture:
    """Learn from a stream: batch t moves the statistics by the step (t + 2)^−0.6 to its own.

    Args:
        state: a start, or where an earlier run was; it is changed.
        batches: from the number of a batch to its data (n, D).
        num_batches: how many batches to learn from in all.
        floor: added to the variances, (D,) or (1,).
        callback: called after every batch.

    Returns:
        The mixture.

    Raises:
        PplError: a covariance is not positive definite.
    """
    while state.step < num_batches:
        data = batches(state.step)
        old = state.mixture
        found = one_pass(old, [data], data.dtype).mean().about(old.locs, old.kind)
        pace = (state.step + 2) ** -0.6
        blended = statistics_of(old, floor).towards(found, pace)
        state.step += 1
        held = blended.counts * (4 * len(data) / pace)  # a mean over the last 1 / pace batches
        state.mixture, done = repair(
            maximize(blended, old, floor),
            held,
            floor,
            state.step,
            state.repairs,
            least=data.shape[1],
            most=math.inf,
        )
        state.repairs.extend(done)
        state.history.append(found.log_likelihood)
        if callback is not None:
            callback(state)
    return state.mixture
