"""The estimators of a comparison: labels, particles, and whose gradient each estimates."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from pyro.infer import ELBO

from inference.elbo import ESTIMATORS, make_estimator
from ppl_models.errors import PplError

Estimators: TypeAlias = Sequence[str | ELBO] | Mapping[str, str | ELBO]
ELBO_TARGET = "ELBO"

STOCK_ELBOS = ("Trace_ELBO", "TraceGraph_ELBO", "TraceMeanField_ELBO", "TraceEnum_ELBO")
"""Pyro's objectives that are the ELBO; its others (Renyi's, wake-sleep) are not."""


@dataclass
class Contestant:
    """An estimator under the label it has in a comparison."""

    label: str
    estimator: ELBO

    @property
    def num_particles(self) -> int:
        """Draws per datum and step."""
        return int(self.estimator.num_particles)

    @property
    def target(self) -> str | None:
        """The objective whose gradient it estimates; None: it does not say."""
        named = getattr(self.estimator, "target", None)
        if named is not None:
            return str(named)
        cls = type(self.estimator)
        stock = cls.__module__.startswith("pyro.") and cls.__name__ in STOCK_ELBOS
        return ELBO_TARGET if stock else None

    @property
    def objective(self) -> str:
        """What its loss is."""
        return str(getattr(self.estimator, "objective", self.target or "unknown"))

    def fresh(self) -> Contestant:
        """The same with an estimator that has taken no step yet."""
        return Contestant(self.label, copy.deepcopy(self.estimator))


def line_up(estimators: Estimators | None, num_particles: int) -> list[Contestant]:
    """The estimators of a comparison; objects are copied, so theirs stay as they are.

    Args:
        estimators: names, import paths or objects, or a mapping from labels to them; None: all
            of the package's.
        num_particles: of those given by name, or as many as the estimator needs.

    Raises:
        PplError: none is given, or one is no estimator.
    """
    if isinstance(estimators, str | ELBO):
        estimators = [estimators]
    if estimators is None:
        estimators = list(ESTIMATORS)
    if num_particles < 1:
        raise PplError(f"num_particles must be at least 1, got {num_particles}")
    if isinstance(estimators, Mapping):
        labelled = [(str(label), given) for label, given in estimators.items()]
    else:
        labelled = [(_label(given), given) for given in estimators]
    if not labelled:
        raise PplError(f"no estimator to compare; there are: {', '.join(ESTIMATORS)}")
    return [
        Contestant(label, estimator_of(given, num_particles))
        for label, given in _distinct(labelled)
    ]


def estimator_of(given: str | ELBO, num_particles: int) -> ELBO:
    """A new estimator by name, with at least the particles it needs; a copy of an object.

    Raises:
        PplError: there is none of that name, or the object is none.
    """
    if not isinstance(given, str):
        return copy.deepcopy(make_estimator(given))
    needed = int(getattr(ESTIMATORS.get(given), "min_particles", 1))
    return make_estimator(given, max(num_particles, needed))


def _label(given: str | ELBO) -> str:
    if isinstance(given, str):
        return given
    return str(getattr(given, "name", type(given).__name__))


def _distinct(labelled: list[tuple[str, str | ELBO]]) -> list[tuple[str, str | ELBO]]:
    """With numbers behind labels that come again."""
    seen: dict[str, int] = {}
    result = []
    for label, given in labelled:
        seen[label] = seen.get(label, 0) + 1
        result.append((label if seen[label] == 1 else f"{label} ({seen[label]})", given))
    return result
