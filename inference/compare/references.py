"""What a gradient's bias is measured against: exact, or the mean of a large sample.

Shapes: B data, P entries of all parameters, G groups.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch
from pyro.infer import ELBO
from torch import Tensor

from inference.compare.contestants import ELBO_TARGET, Contestant, estimator_of
from inference.compare.gradients import Problem, Sampler, filled
from inference.compare.moments import Moments, VectorMoments
from inference.devices import isolated_rng
from inference.elbo import ESTIMATORS
from inference.summed_out import enumerates
from ppl_models.errors import PplError, UnknownNameError, describe

ReferenceOption: TypeAlias = str | ELBO | Mapping[str, Tensor] | None
NAMED = ("auto", "closed_form", "enumerate", "large_sample")
LARGE = 10
"""Draws of a large sample, for every rep of the comparison."""

FOR_ELBO = ("analytic_kl", "pathwise", "leave_one_out", "rao_blackwellized", "score_function")
FOR_BOUNDS = ("doubly_reparameterized", "iwae", "vimco")
"""Unbiased estimators, those of low variance first."""


class Direction:
    """The direction, by group, along which a bias is sought.

    Args:
        problem: whose groups.
        difference: (P,), from the reference to the mean of the first half of the reps.
    """

    def __init__(self, problem: Problem, difference: Tensor) -> None:
        self._sum = problem.layout.sum_by_group
        self._difference = difference
        self._norm = self._sum(difference**2).sqrt()

    def project(self, vector: Tensor) -> Tensor:
        """The vector's length along it, by group (G,); zero where it has no direction."""
        along = self._sum(vector * self._difference)
        return torch.where(self._norm > 0, along / self._norm, 0.0)


@dataclass
class Reference:
    """A gradient to measure against, as two independent halves."""

    label: str
    problem: Problem
    exact: Tensor | None = None
    """(P,); None: it is sampled."""
    sampler: Sampler | None = None
    half: int = 0
    """Draws in each half of a sample."""
    first: VectorMoments = field(init=False)
    second: VectorMoments = field(init=False)

    def draw_first(self) -> None:
        """Draw the half from which directions are taken."""
        self.first = self._draw([])

    def draw_second(self, directions: Sequence[Direction]) -> list[Moments]:
        """Draw the half that is tested against; its lengths along each direction."""
        along = [Moments() for _ in directions]
        self.second = self._draw(list(zip(directions, along, strict=True)))
        return along

    def _draw(self, watched: list[tuple[Direction, Moments]]) -> VectorMoments:
        moments = VectorMoments(self.problem.layout.sum_by_group)
        for _ in range(self.half if self.exact is None else 1):
            vector = self.exact if self.sampler is None else self.sampler().gradient
            assert vector is not None
            moments.update(vector)
            for direction, lengths in watched:
                lengths.update(direction.project(vector))
        return moments

    @property
    def mean(self) -> Tensor:
        """Both halves' mean (P,)."""
        return (self.first.mean + self.second.mean) / 2

    @property
    def noise(self) -> Tensor:
        """Squared standard error of the mean, by group (G,)."""
        if self.exact is not None:
            return torch.zeros_like(self.first.scatter)
        return (self.first.variance + self.second.variance) / (4 * self.half)


class References:
    """Finds the reference of a target, each once.

    Args:
        problem: program and batch.
        option: what the user asked for, for the ELBO.
        num_reps: of the comparison.
        adapt_steps: for estimators that have a state.
    """

    def __init__(
        self, problem: Problem, option: ReferenceOption, num_reps: int, adapt_steps: int
    ) -> None:
        self.problem = problem
        self.option = option
        self.half = max(2, LARGE * num_reps // 2)
        self.adapt_steps = adapt_steps
        self._found: dict[tuple[str, int], Reference | str] = {}
        if option is not None and not (isinstance(option, str) and option == "auto"):
            self._found[(ELBO_TARGET, 0)] = self._asked_for()  # before the work, if it cannot be

    def of(self, contestant: Contestant) -> Reference | str:
        """The reference of an estimator's target, or why there is none."""
        if self.option is None:
            return "none"
        target = contestant.target
        if target is None:
            return (
                "none: the estimator does not say whose gradient it estimates (give it an "
                "attribute target = 'ELBO')"
            )
        key = (target, 0 if target == ELBO_TARGET else contestant.num_particles)
        if key not in self._found:
            self._found[key] = self._elbo() if target == ELBO_TARGET else self._bound(*key)
        return self._found[key]

    @property
    def in_use(self) -> list[Reference]:
        """Those that were found."""
        return [r for r in self._found.values() if isinstance(r, Reference)]

    def _asked_for(self) -> Reference:
        option = self.option
        if isinstance(option, Mapping):
            exact = self.problem.layout.from_mapping(option)
            return Reference("given", self.problem, exact=exact)
        if option == "closed_form":
            return self._closed_form()
        if option == "enumerate":
            return self._enumerated()
        if option == "large_sample":
            found = self._elbo_sample()
            if isinstance(found, str):
                raise PplError(f"no reference by a large sample; {found}")
            return found
        assert isinstance(option, str | ELBO)
        try:
            estimator = estimator_of(option, 1)
        except UnknownNameError as error:
            raise PplError(f"reference: {error} Or one of: {', '.join(NAMED)}.") from error
        label = option if isinstance(option, str) else type(option).__name__
        found = self._sample(label, estimator)
        if isinstance(found, str):
            raise PplError(
                f"the reference {found.rstrip('.')}. Name another estimator, give the gradients by "
                "parameter, or reference=None."
            )
        return found

    def _elbo(self) -> Reference | str:
        """Exact if it can be had, else a large sample."""
        for exact in (self._closed_form, self._enumerated):
            try:
                return exact()
            except PplError:
                continue
        return self._elbo_sample()

    def _elbo_sample(self) -> Reference | str:
        if enumerates(self.problem.traces):
            return self._first_sample([("enumerate", 1)], "the ELBO")
        names = [(name, 8 if name == "leave_one_out" else 1) for name in FOR_ELBO]
        return self._first_sample(names, "the ELBO")

    def _bound(self, target: str, num_particles: int) -> Reference | str:
        names = [name for name in FOR_BOUNDS if ESTIMATORS[name].target == target]
        return self._first_sample([(n, num_particles) for n in names], f"the target {target!r}")

    def _first_sample(self, names: list[tuple[str, int]], what: str) -> Reference | str:
        """A large sample of the first estimator that serves the program."""
        reasons = []
        for name, num_particles in names:
            found = self._sample(name, estimator_of(name, num_particles))
            if isinstance(found, Reference):
                return found
            reasons.append(found)
        return f"none: no unbiased estimator of {what} serves the program" + "".join(
            f"; {reason}" for reason in reasons
        )

    def _sample(self, label: str, estimator: ELBO) -> Reference | str:
        sampler = Sampler(self.problem, estimator)
        try:
            sampler.start(self.adapt_steps)
        except Exception as error:
            return f"{label} cannot serve: {reason_of(error)}"
        text = f"large sample: {2 * self.half} draws of {label}"
        if estimator.num_particles > 1:
            text += f" with {estimator.num_particles} particles"
        return Reference(text, self.problem, sampler=sampler, half=self.half)

    def _enumerated(self) -> Reference:
        """By summing out every latent, if that leaves no noise.

        Raises:
            PplError: it cannot, or some noise is left.
        """
        sampler = Sampler(self.problem, estimator_of("enumerate", 1))
        try:
            sampler.start(self.adapt_steps)
        except Exception as error:
            raise PplError(
                f"no reference by enumeration ({reason_of(error)}). {_INSTEAD}"
            ) from error
        pair = []
        for seed in (1, 2):
            with isolated_rng(seed):
                pair.append(sampler().gradient)
        if float((pair[0] - pair[1]).norm()) > 1e-5 * float(pair[0].norm()):
            raise PplError(
                "no reference by enumeration (a latent is left that is drawn, so the gradient is "
                f"noisy). {_INSTEAD}"
            )
        return Reference("enumerate (exact)", self.problem, exact=pair[0])

    def _closed_form(self) -> Reference:
        """By the program's own formula of its ELBO.

        Raises:
            PplError: it has none, or the formula fails.
        """
        program, batch = self.problem.program, self.problem.batch
        formula: Callable[..., Any] | None = getattr(program.owner, "closed_form_elbo", None)
        if formula is None:
            raise PplError(
                f"no reference in closed form: {program.name} has no method "
                f"closed_form_elbo(**fields) -> (B,). {_INSTEAD}"
            )
        named = inspect.signature(formula).parameters
        given: dict[str, Any] = {name: batch[name] for name in named if name in batch}
        if "num_data" in named:
            given["num_data"] = self.problem.num_data
        try:
            with program.scope():
                elbo = formula(**given)
        except Exception as error:
            raise PplError(
                f"closed_form_elbo of {program.name} fails: {reason_of(error)}. {_INSTEAD}"
            ) from error
        rows = len(next(iter(batch.values())))
        if not isinstance(elbo, Tensor) or elbo.shape != (rows,) or not elbo.requires_grad:
            shape = tuple(elbo.shape) if isinstance(elbo, Tensor) else type(elbo).__name__
            raise PplError(
                f"closed_form_elbo of {program.name} must give a differentiable ELBO per datum "
                f"({rows},), got {shape}"
            )
        parameters = [p for p in program.parameters() if p.requires_grad]
        found = torch.autograd.grad(-elbo.mean(), parameters, allow_unused=True)
        exact = self.problem.layout.flatten(filled(found, parameters))
        return Reference("closed form", self.problem, exact=exact)


_INSTEAD = "Use reference='auto' or 'large_sample', or give the gradients by parameter."


def reason_of(error: Exception) -> str:
    """Why an estimator cannot serve, in one line."""
    text = str(error) if isinstance(error, PplError) else describe(error)
    return " ".join(text.split())
