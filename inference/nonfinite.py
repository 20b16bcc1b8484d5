"""A loss that is not finite: the step's draws again, and what went wrong by name."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from inference.devices import rng_state, set_rng_state
from inference.elbo.traces import Traces, sample_sites, scaled_log_prob
from ppl_models.errors import ProgramError
from ppl_models.program import Batch

log = logging.getLogger(__name__)


class NonFiniteLossError(ProgramError):
    """The loss or a gradient became NaN or infinite; the parameters are as before the step."""


MOST_BYTES = 2**28
"""Of batches that are remembered at a time."""


@dataclass(frozen=True)
class Step:
    """What is needed to take a step again."""

    batch: Batch
    draws: list[Tensor]
    """States of the generators before it."""
    schedules: dict[str, float]
    """What the numbers were that change from step to step."""
    buffers: dict[str, Tensor] = field(default_factory=dict)
    """Copies of the buffers before it, where it may be left out."""


REMEDIES = "Usual remedies: a smaller learning rate, --clip_grad_norm, a floor under scales."


class Skips:
    """Updates that are left out for they are not finite, and how many may be in a run.

    Args:
        limit: after so many, the next is an error.
    """

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.count = 0

    @property
    def tells(self) -> bool:
        """Whether the next one is told of: the first is, and the one that is too many."""
        return self.count == 0 or self.count >= self.limit

    def add(self, cause: str) -> None:
        """Leave one more out.

        Args:
            cause: why, where it is told of.

        Raises:
            NonFiniteLossError: it is one too many.
        """
        if self.count >= self.limit:
            before = f"; {self.count} updates before it were skipped" if self.count else ""
            more = f" More may be skipped by max_skipped ({self.limit})." if self.count else ""
            raise NonFiniteLossError(
                f"{cause}. Training stopped before the parameters were changed{before}. "
                f"{REMEDIES}{more}"
            )
        if self.count == 0:
            log.warning(
                "%s. This update is skipped, and so are others like it, up to max_skipped=%d in "
                "the run; the column 'skipped' of the metrics counts them. %s",
                *(cause, self.limit, REMEDIES),
            )
        self.count += 1


class Recent:
    """The latest steps, until their losses are known to be finite.

    To ask at every step would have a GPU wait; a graph that has found a bad step changes no
    parameters any more, so that it is enough to ask now and then.

    Args:
        every: how many steps are between two questions.
    """

    def __init__(self, every: int) -> None:
        self._steps: list[Step] = []
        self._bytes = 0
        self._every = every

    def add(self, step: Step) -> None:
        """Remember a step."""
        self._steps.append(step)
        self._bytes += sum(value.nbytes for value in step.batch.values())

    @property
    def due(self) -> bool:
        """Whether it is time to ask."""
        return len(self._steps) == self._every or self._bytes > MOST_BYTES

    def first_bad(self, bad_steps: Tensor) -> Step | None:
        """The first bad step of those remembered, if there is one; they are then forgotten.

        Args:
            bad_steps: how many there are since the first, that one included.
        """
        count = int(bad_steps)
        found = self._steps[-count] if count else None
        self._steps.clear()
        self._bytes = 0
        return found


def generator_states(device: torch.device) -> list[Tensor]:
    """States of the generators that a step on this device draws from."""
    states = [torch.get_rng_state()]
    if device.type == "cuda":
        states.append(torch.cuda.get_rng_state(device))
    return states


@contextmanager
def drawn_again(draws: list[Tensor], device: torch.device) -> Iterator[None]:
    """Within, the generators go on from these states; afterwards they are as they were."""
    after = rng_state()
    torch.set_rng_state(draws[0])
    if len(draws) > 1:
        torch.cuda.set_rng_state(draws[1], device)
    try:
        yield
    finally:
        set_rng_state(after)


def explain(program: nn.Module, loss: Tensor, run: Callable[[], Traces]) -> str:
    """What went wrong, in half a sentence.

    Args:
        program: whose parameters hold the step's gradients.
        loss: of the step.
        run: gives the step's traces again.
    """
    with torch.no_grad():
        culprits = _non_finite_sites(run())
    bad = [n for n, p in program.named_parameters() if _spoilt(p.grad)]
    if culprits:
        cause = f"log density is not finite at {', '.join(culprits)}"
    elif bad:
        cause = f"the gradient is not finite at parameter(s) {', '.join(bad[:5])}"
    else:
        cause = "every site's log density is finite; a KL term or auxiliary loss is not"
    return f"the loss became {float(loss):g}: {cause}"


def _non_finite_sites(traces: Traces) -> list[str]:
    found = []
    for role, trace in (("guide", traces.guide), ("model", traces.model)):
        for name, site in sample_sites(trace):
            try:
                log_prob = scaled_log_prob(site)
            except ValueError:  # validation: parameters or value outside their support
                log_prob = torch.tensor(torch.nan)
            if not bool(torch.isfinite(log_prob).all()):
                found.append(f"site {name!r} of the {role} ({type(site['fn']).__name__})")
    return found


def _spoilt(gradient: Tensor | None) -> bool:
    return gradient is not None and not bool(torch.isfinite(gradient).all())
