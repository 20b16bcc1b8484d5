"""Expectation-maximization of Gaussian mixtures, in closed form: :func:`fit_em`."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from inference.devices import make_fabric
from inference.em.e_step import one_pass
from inference.em.maximize import maximize
from inference.em.program import MixtureProgram, as_mixture, floor_of, read
from inference.em.repairs import Repair, repair
from inference.em.rows import Rows
from inference.em.start import start_mixture
from inference.em.statistics import Statistics
from ppl_models.errors import PplError, whole_number
from ppl_models.program import Program


@dataclass
class EMState:
    """Where EM is; with the program's parameters, all that it needs to go on."""

    iteration: int = 0
    """M-steps done."""
    history: list[float] = field(default_factory=list)
    """Log-likelihood per datum before each M-step; nats."""
    objective: list[float] = field(default_factory=list)
    """The same with log prior / N: what never falls, but for repairs."""
    repairs: list[Repair] = field(default_factory=list)
    best_iteration: int = 0
    """After how many M-steps the objective was highest."""
    best: dict[str, Tensor] = field(default_factory=dict)
    """The program's parameters there."""

    def to_dict(self) -> dict[str, Any]:
        """As plain values, for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: dict[str, Any]) -> EMState:
        """From :meth:`to_dict`."""
        return cls(**plain | {"repairs": [Repair(**r) for r in plain["repairs"]]})


@dataclass(repr=False)
class EMResult:
    """A mixture that EM fitted, and how it came about."""

    program: Program
    history: list[float]
    """Log-likelihood per datum, before each M-step and at the end; nats."""
    objective: list[float]
    """The same with log prior / N: what EM climbs."""
    repairs: list[Repair]
    converged: bool
    num_data: int
    best_iteration: int
    """After how many M-steps the objective was highest: the parameters that it gives back. It is
    the last, unless the repair of a component, or the floor under the scales, cost something."""

    @property
    def log_likelihood(self) -> float:
        """Per datum, of the parameters that it gives back; nats."""
        return self.history[self.best_iteration]

    @property
    def num_iterations(self) -> int:
        """M-steps done."""
        return len(self.history) - 1

    def __repr__(self) -> str:
        state = "converged" if self.converged else "not converged"
        mended = f", {len(self.repairs)} repairs" if self.repairs else ""
        return (
            f"EMResult({self.program.name}, {self.num_iterations} iterations, {state}{mended}, "
            f"log-likelihood {self.log_likelihood:.4f} nats a datum)"
        )


def fit_em(
    program: object,
    data: Any,
    *,
    max_iterations: int = 200,
    tolerance: float = 1e-4,
    start: str = "auto",
    seed: int = 0,
    device: str = "auto",
    callback: Callable[[EMState], object] | None = None,
    state: EMState | None = None,
) -> EMResult:
    """Fit a Gaussian mixture by EM, one pass over the data an iteration.

    The program is trained in place, in the dtype of the data, and ends with the best parameters
    that were seen. Memory is bounded whatever the number of data: a tensor is used where it is,
    everything else is streamed.

    Args:
        program: a :class:`ppl_models.gmm.GaussianMixture`; with a ``prior``, the fit is its MAP.
        data: a tensor or array (N, ...), a split, a data set (its training split), or a function
            that gives an iterable of batches every time it is called.
        max_iterations: M-steps.
        tolerance: stop when the objective changes by less than this; nats per datum.
        start: ``kmeans++``, ``neighbourhoods``, ``current`` (the program's parameters as they
            are), or ``auto``; see :func:`inference.em.start.start_mixture`.
        seed: of the start.
        device: ``auto``, ``cpu`` or ``cuda``.
        callback: called after every M-step, such as to write a checkpoint of the program and
            ``state.to_dict()``.
        state: go on from here, with the parameters that the program has; the result is that of
            one run, to the bit.

    Returns:
        An :class:`EMResult`.

    Raises:
        PplError: data or program are not fit for it; the message says what to do.

    References:
        Dempster, Laird, Rubin: Maximum Likelihood from Incomplete Data via the EM Algorithm,
        Journal of the Royal Statistical Society B 39, 1977.
    """
    max_iterations = whole_number("max_iterations", max_iterations)
    if not (isinstance(tolerance, Real) and 0 <= tolerance < math.inf):
        raise PplError(f"tolerance must be a number, not negative, got {tolerance!r}")
    wrapped, mixture = as_mixture(program)
    place = make_fabric(device).device
    rows = Rows(data, mixture.dim, place)
    wrapped.to(place, rows.dtype)
    if state is None:
        state = EMState()
        start_mixture(mixture, rows, start, seed)
    state = copy.deepcopy(state)
    while True:
        stats = one_pass(read(mixture), rows.batches(), rows.dtype)
        _record(state, stats, wrapped)
        converged = _has_converged(state, tolerance)
        if converged or state.iteration >= max_iterations:
            break
        _update(mixture, stats, state)
        if callback is not None:
            callback(copy.deepcopy(state))
    wrapped.load_state_dict(state.best)
    wrapped.eval()
    return EMResult(
        wrapped,
        state.history,
        state.objective,
        state.repairs,
        converged,
        int(stats.num_data),
        state.best_iteration,
    )


def _record(state: EMState, stats: Statistics, program: Program) -> None:
    """Note where the objective is; the best parameters are kept."""
    found = stats.log_likelihood / stats.num_data
    if not math.isfinite(found):
        raise PplError(
            f"the log-likelihood became {found} in iteration {state.iteration}: the data hold NaN, "
            "infinity, or numbers too large for their dtype; give float64, or scale them"
        )
    with torch.no_grad():
        penalty = float(program.owner.log_prior()) / stats.num_data
    state.history.append(found)
    state.objective.append(found + penalty)
    if state.objective[-1] >= max(state.objective):
        state.best_iteration = state.iteration
        state.best = {name: value.clone() for name, value in program.state_dict().items()}


def _has_converged(state: EMState, tolerance: float) -> bool:
    mended = bool(state.repairs) and state.repairs[-1].iteration == state.iteration
    if len(state.objective) < 2 or mended:
        return False
    return abs(state.objective[-1] - state.objective[-2]) < tolerance


def _update(mixture: MixtureProgram, stats: Statistics, state: EMState) -> None:
    """One M-step, mended."""
    floor = floor_of(mixture)
    found = maximize(stats, read(mixture), floor, mixture.prior)
    state.iteration += 1
    done: Sequence[Repair] = ()
    if mixture.prior is None:  # a prior keeps components without data in their place
        found, done = repair(found, stats.counts, floor, state.iteration, state.repairs)
    state.repairs.extend(done)
    mixture.set_moments(found.weights, found.locs, found.covariances)
