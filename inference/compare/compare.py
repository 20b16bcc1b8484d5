"""Estimators side by side at one point: bias, variance, signal-to-noise, cost.

Shapes: E estimators, G groups of parameters, P entries of all parameters.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import numpy as np
import pyro
import torch
import xarray as xr
from torch import Tensor

from inference.compare.contestants import Contestant, Estimators, line_up
from inference.compare.gradients import Problem, Sampler, pose
from inference.compare.groups import Groups
from inference.compare.moments import Moments, VectorMoments, signal_to_noise
from inference.compare.references import (
    Direction,
    Reference,
    ReferenceOption,
    References,
    reason_of,
)
from inference.compare.tables import BY_ESTIMATOR, BY_GROUP, assemble
from inference.devices import isolated_rng, seed_all
from ppl_models.errors import PplError
from ppl_models.program import Program, as_program

ADAPT_STEPS = 100

Checkpoint: TypeAlias = Mapping[str, Tensor] | object
"""Parameters, or what has some."""


def compare_estimators(
    program: object,
    batch: Any,
    *,
    estimators: Estimators | None = None,
    reference: ReferenceOption = "auto",
    num_reps: int = 200,
    groups: Groups | None = None,
    num_particles: int = 1,
    num_data: int | None = None,
    checkpoints: Mapping[str, Checkpoint] | None = None,
    adapt_steps: int = ADAPT_STEPS,
    seed: int = 0,
) -> xr.Dataset:
    """Compare the gradients of ELBO estimators on a program and one batch.

    Gradients are those of the **loss** per datum (nats), with the loss's sign. Their moments are
    taken as they stream by. The program, its gradients, the random state, Pyro's parameter store
    and given estimators are left as they were; the program runs in the mode it is in.

    The bias of a group is tested along one direction: from the reference to the mean of the
    first half of the reps. Lengths along it in the second half, against an independent half of
    the reference, give ``bias`` (positive if there is one, of either sign by chance if not; at most
    the bias's norm), ``bias_se`` and ``bias_z``: standard normal if there is none, however many
    parameters are correlated (with 100 reps or more; fewer have heavier tails).

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (B, ...) on the program's device, or the field ``x`` alone.
        estimators: names, import paths or ``pyro.infer.ELBO`` objects, or a mapping from labels
            to them; None: all of the package's.
        reference: of the ELBO's gradient. ``auto``: the first that can be had of
            ``closed_form`` (the program's method ``closed_form_elbo(**fields) -> (B,)``, the ELBO
            per datum, differentiable), ``enumerate`` (if it leaves no noise) and
            ``large_sample`` (ten times the reps of an unbiased estimator); or one of these; or
            an estimator, of which a large sample is drawn; or gradients of the loss per datum by
            parameter; or None. Estimators of other objectives are measured against a large
            sample of an unbiased estimator of the same, with as many particles.
        num_reps: gradients per estimator, at least 4. A reference by a large sample costs ten
            times as many, most of the time; ``reference=None`` spares it.
        groups: group -> patterns of parameter names, or a function from a name to its group;
            None: by the first part of the names. The group ``all`` is added.
        num_particles: of estimators given by name, or as many as they need.
        num_data: size of the data set, for programs that name it.
        checkpoints: label -> parameters; compares at each of them. A ``state_dict`` (of the
            program, or of the module with its model and guide), or a program, a ``FitResult``
            or an open run that has them. ``fit`` trains in place: copy a ``state_dict``
            before it (``copy.deepcopy(module.state_dict())``).
        adapt_steps: steps by which estimators with a state (baselines, control variates) fit it
            to the program first.
        seed: of all draws.

    Returns:
        Dimensions estimator x group, with checkpoint in front if there are some. By group:
        ``variance`` (trace of the covariance), ``squared_norm`` of the mean (corrected for its
        noise), ``snr``, ``second_moment``, ``bias``, ``bias_se``, ``bias_z``, ``mse``,
        ``variance_time``, ``second_moment_time``. By estimator: ``loss``, ``loss_sd``,
        ``seconds`` (median, estimators interleaved), ``reference``, and ``note``: why an
        estimator is not applicable, its numbers being NaN.

    Raises:
        PplError: program, batch, estimators, groups or reference are not fit for use.

    References:
        Geffner, Domke: A Rule for Gradient Estimator Selection, 2019, arXiv:1911.01894.
        Rainforth et al.: Tighter Variational Bounds are Not Necessarily Better, 2018,
        arXiv:1802.04537.

    Example:
        >>> import torch
        >>> from inference import compare_estimators
        >>> from ppl_models.vae import VAE
        >>> table = compare_estimators(VAE((1, 4, 4), 2), torch.rand(8, 1, 4, 4), num_reps=4,
        ...                            estimators=["pathwise", "analytic_kl"])
        >>> table["variance"].dims
        ('estimator', 'group')
    """
    if num_reps < 4:
        raise PplError(f"num_reps must be at least 4, two in each half; got {num_reps}")
    if checkpoints is not None and not checkpoints:
        raise PplError("checkpoints is empty; give label -> state_dict, or leave it out")
    if isinstance(reference, Mapping) and len(checkpoints or {}) > 1:
        raise PplError("given reference gradients are of one point; compare one checkpoint a time")
    contestants = line_up(estimators, num_particles)
    tables = []
    with isolated_rng(seed):
        problem = pose(program, batch, num_data, groups)
        with unchanged(problem.program):
            for state in [None] if checkpoints is None else checkpoints.values():
                seed_all(seed)
                if state is not None:
                    _load(problem.program, state)
                entrants = [c.fresh() for c in contestants]
                tables.append(_compare_here(problem, entrants, reference, num_reps, adapt_steps))
    labels = None if checkpoints is None else [str(label) for label in checkpoints]
    facts = {"num_reps": num_reps, "seed": seed}
    return assemble(problem, contestants, tables, labels, facts)


@contextmanager
def unchanged(program: Program) -> Iterator[None]:
    """Put back the values of a primed program: a copy shares the networks of plain functions."""
    before = {name: value.detach().clone() for name, value in program.state_dict().items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, value in program.state_dict().items():
                if name in before and not torch.equal(value, before[name]):
                    value.copy_(before[name])


def _load(program: Program, state: Checkpoint) -> None:
    """Take up parameters: a program's, those of the module that it wraps, or a trained one's."""
    found: Any = state if isinstance(state, Mapping) else as_program(state).state_dict()
    own = program.state_dict().keys()
    if found.keys() != own and {f"owner.{name}" for name in found} <= own:
        found = program.state_dict() | {f"owner.{name}": value for name, value in found.items()}
    try:
        program.load_state_dict(found)
    except (RuntimeError, KeyError, TypeError, AttributeError) as error:
        text = " ".join(str(error).split())
        raise PplError(f"a checkpoint holds another program's parameters: {text}") from error


class _Runner:
    """One estimator's way through a comparison."""

    def __init__(self, contestant: Contestant, problem: Problem) -> None:
        self.contestant = contestant
        self.note = ""
        self.sampler = Sampler(problem, contestant.estimator)
        self.moments = VectorMoments(problem.layout.sum_by_group)
        self.losses = Moments()
        self.seconds: list[float] = []
        self.reference: Reference | str = "none"
        self.direction: Direction | None = None
        self.lengths = Moments()
        """Along the direction, by group (G,), in the second half."""
        self.reference_lengths = Moments()

    def start(self, adapt_steps: int) -> None:
        """The evaluations before the first rep; leaves a note if it cannot serve."""
        try:
            self.sampler.start(adapt_steps)
        except PplError as error:
            self.note = f"not applicable: {error}"
        except Exception as error:
            self.note = f"failed at once: {reason_of(error)}"

    def step(self) -> None:
        """One rep."""
        try:
            loss, gradient, seconds = self.sampler()
        except Exception as error:
            self.note = f"failed after {self.moments.count} reps: {reason_of(error)}"
            return
        self.losses.update(loss)
        self.moments.update(gradient)
        self.seconds.append(seconds)
        if self.direction is not None:
            self.lengths.update(self.direction.project(gradient))


def _compare_here(
    problem: Problem,
    contestants: Sequence[Contestant],
    option: ReferenceOption,
    num_reps: int,
    adapt_steps: int,
) -> list[dict[str, Any]]:
    """One row of numbers per estimator, at the program's present parameters."""
    references = References(problem, option, num_reps, adapt_steps)
    runners = [_Runner(contestant, problem) for contestant in contestants]
    for runner in runners:
        runner.start(adapt_steps)
        if not runner.note:
            runner.reference = references.of(runner.contestant)
    first = num_reps // 2
    with pyro.validation_enabled(False):
        for reference in references.in_use:
            reference.draw_first()
        _take_turns(runners, first)
        for reference in references.in_use:
            _aim(problem, reference, [r for r in runners if r.reference is reference])
        _take_turns(runners, num_reps - first)
    return [_row(problem, runner) for runner in runners]


def _take_turns(runners: Sequence[_Runner], rounds: int) -> None:
    """Interleave the estimators, so that what disturbs the machine disturbs all alike."""
    for number in range(rounds):
        for runner in runners if number % 2 == 0 else reversed(runners):
            if not runner.note:
                runner.step()


def _aim(problem: Problem, reference: Reference, runners: Sequence[_Runner]) -> None:
    """Give the estimators their directions, and the reference's lengths along them."""
    served = [runner for runner in runners if not runner.note]
    directions = [Direction(problem, r.moments.mean - reference.first.mean) for r in served]
    lengths = reference.draw_second(directions)
    for runner, direction, along in zip(served, directions, lengths, strict=True):
        runner.direction, runner.reference_lengths = direction, along


def _row(problem: Problem, runner: _Runner) -> dict[str, Any]:
    numbers = len(problem.layout.groups)
    row: dict[str, Any] = {name: np.full(numbers, np.nan) for name in BY_GROUP}
    row |= dict.fromkeys(BY_ESTIMATOR, np.nan)
    reference = runner.reference
    row["reference"] = reference.label if isinstance(reference, Reference) else reference
    row["note"] = runner.note
    if runner.note:
        return row
    moments, seconds = runner.moments, statistics.median(runner.seconds)
    squared_norm = moments.squared_distance()
    found = {
        "variance": moments.variance,
        "squared_norm": squared_norm,
        "snr": signal_to_noise(squared_norm, moments.variance),
        "second_moment": moments.second_moment,
        "variance_time": moments.variance * seconds,
        "second_moment_time": moments.second_moment * seconds,
    }
    if isinstance(reference, Reference):
        found |= _bias(problem, runner, reference)
    row |= {name: value.cpu().numpy() for name, value in found.items()}
    row["loss"], row["loss_sd"] = float(runner.losses.mean), float(runner.losses.variance.sqrt())
    row["seconds"] = seconds
    if not np.isfinite(row["variance"]).all():
        row["note"] = f"of {moments.count} gradients some are not finite"
    return row


def _bias(problem: Problem, runner: _Runner, reference: Reference) -> dict[str, Tensor]:
    """Bias along the direction with its standard error, and the mean squared error, by group."""
    moments, lengths, theirs = runner.moments, runner.lengths, runner.reference_lengths
    bias = lengths.mean - theirs.mean
    noise = torch.zeros_like(bias) if reference.exact is not None else theirs.variance_of_mean
    se = (lengths.variance_of_mean + noise).sqrt()
    norm = problem.layout.sum_by_group(reference.mean**2).sqrt()
    # Of float32, in sums of the loss's size too; the last group is of all parameters.
    rounding = 1e-5 * norm + 1e-6 * (norm[-1] + runner.losses.mean.abs())
    z = torch.where((bias.abs() <= rounding) & (se <= rounding), 0.0, bias / se)
    off = moments.squared_distance(reference.mean, reference.noise)
    return {"bias": bias, "bias_se": se, "bias_z": z, "mse": moments.variance + off}
