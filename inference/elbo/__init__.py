"""ELBO estimators by name; one a file."""

from __future__ import annotations

import importlib

from pyro.infer import ELBO

from inference.elbo.analytic_kl import AnalyticKL
from inference.elbo.base import Estimator
from inference.elbo.pathwise import Pathwise
from ppl_models.errors import PplError, UnknownNameError

ESTIMATORS: dict[str, type[Estimator]] = {cls.name: cls for cls in (AnalyticKL, Pathwise)}
"""Every estimator of this package, by the name that ``fit`` takes."""


def make_estimator(estimator: str | ELBO, num_particles: int = 1) -> ELBO:
    """An estimator from its name; an object of Pyro's or of the user's is taken as it is.

    Args:
        estimator: a name of ``ESTIMATORS``, the import path of a class such as
            ``pyro.infer.TraceGraph_ELBO``, or any ``pyro.infer.ELBO`` object.
        num_particles: draws per step, for an estimator given by name.

    Raises:
        UnknownNameError: no estimator has that name.
        PplError: the object is no ``pyro.infer.ELBO``.
    """
    if isinstance(estimator, ELBO):
        return estimator
    if not isinstance(estimator, str):
        raise PplError(
            f"estimator must be a name or a pyro.infer.ELBO object, not {estimator!r}"
            + (" (the class: call it)" if isinstance(estimator, type) else "")
        )
    cls = ESTIMATORS.get(estimator) or _import_estimator(estimator)
    return cls(num_particles=num_particles)


def _import_estimator(path: str) -> type[ELBO]:
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError):
        cls = None
    if not (isinstance(cls, type) and issubclass(cls, ELBO)):
        raise UnknownNameError(
            "estimator", path, ESTIMATORS, "Or a class such as pyro.infer.TraceGraph_ELBO."
        )
    return cls


__all__ = ["ESTIMATORS", "AnalyticKL", "Estimator", "Pathwise", "make_estimator"]
