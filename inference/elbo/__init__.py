"""ELBO estimators by name; one a file."""

from __future__ import annotations

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
        estimator: a name of ``ESTIMATORS`` or any ``pyro.infer.ELBO``.
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
    if estimator not in ESTIMATORS:
        raise UnknownNameError(
            "estimator", estimator, ESTIMATORS, "In Python any pyro.infer.ELBO object is taken."
        )
    return ESTIMATORS[estimator](num_particles=num_particles)


__all__ = ["ESTIMATORS", "AnalyticKL", "Estimator", "Pathwise", "make_estimator"]
