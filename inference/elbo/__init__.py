"""ELBO estimators by name; one a file."""

from __future__ import annotations

import importlib
from typing import Any

import pandas as pd
from pyro.infer import ELBO

from inference.elbo.analytic_kl import AnalyticKL
from inference.elbo.base import Estimator
from inference.elbo.decaying_average import DecayingAverage
from inference.elbo.disarm import DisARM
from inference.elbo.doubly_reparameterized import DoublyReparameterized
from inference.elbo.enumerate import Enumerate
from inference.elbo.gumbel_softmax import GumbelSoftmax, StraightThrough
from inference.elbo.handlers import score_function
from inference.elbo.iwae import IWAE
from inference.elbo.leave_one_out import LeaveOneOut
from inference.elbo.neural_baseline import NeuralBaseline
from inference.elbo.pathwise import Pathwise
from inference.elbo.rao_blackwellized import RaoBlackwellized
from inference.elbo.rebar import Rebar
from inference.elbo.relax import Relax
from inference.elbo.reweighted_wake_sleep import ReweightedWakeSleep
from inference.elbo.score import ScoreFunction
from inference.elbo.sticking_the_landing import StickingTheLanding
from inference.elbo.vimco import VIMCO
from ppl_models.errors import PplError, UnknownNameError

ESTIMATORS: dict[str, type[Estimator]] = {
    cls.name: cls
    for cls in (
        Pathwise,
        AnalyticKL,
        StickingTheLanding,
        ScoreFunction,
        RaoBlackwellized,
        DecayingAverage,
        NeuralBaseline,
        LeaveOneOut,
        Enumerate,
        DisARM,
        Rebar,
        Relax,
        GumbelSoftmax,
        StraightThrough,
        IWAE,
        DoublyReparameterized,
        VIMCO,
        ReweightedWakeSleep,
    )
}
"""Every estimator of this package, by the name that ``fit`` takes."""


OTHER_NAMES = {
    "concrete": "gumbel_softmax",
    "dreg": "doubly_reparameterized",
    "nvil": "neural_baseline",
    "path_derivative": "sticking_the_landing",
    "reinforce": "score_function",
    "reparameterized": "pathwise",
    "rloo": "leave_one_out",
    "rws": "reweighted_wake_sleep",
    "stl": "sticking_the_landing",
    "vargrad": "leave_one_out",
}
"""What the literature calls them too; named in the error that a wrong name gives."""


def estimators() -> pd.DataFrame:
    """The estimators that there are, as a table.

    Returns:
        One row an estimator, by name: objective (of the loss), latents that it serves, bias of
        its gradient, least number of particles, reference.

    Example:
        >>> estimators().loc["iwae", "objective"]
        'K-sample bound'
    """
    columns = ["objective", "latents", "bias", "min_particles", "reference"]
    rows = {name: [getattr(cls, c) for c in columns] for name, cls in ESTIMATORS.items()}
    table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
    return table.rename_axis("estimator")


def make_estimator(estimator: str | ELBO, num_particles: int = 1, **options: Any) -> ELBO:
    """An estimator from its name; an object of Pyro's or of the user's is taken as it is.

    Args:
        estimator: a name of ``ESTIMATORS``, the import path of a class such as
            ``pyro.infer.TraceGraph_ELBO``, or any ``pyro.infer.ELBO`` object.
        num_particles: draws per step, for an estimator given by name.
        **options: further arguments of the class, for an estimator given by name.

    Raises:
        UnknownNameError: no estimator has that name.
        PplError: the object is no ``pyro.infer.ELBO``, or needs more particles.
    """
    if isinstance(estimator, ELBO):
        return estimator
    if not isinstance(estimator, str):
        raise PplError(
            f"estimator must be a name or a pyro.infer.ELBO object, not {estimator!r}"
            + (" (the class: call it)" if isinstance(estimator, type) else "")
        )
    if estimator in ESTIMATORS:
        options = {"vectorize_particles": None} | options
        return ESTIMATORS[estimator](num_particles, **options)
    return _import_estimator(estimator)(num_particles=num_particles, **options)


def _import_estimator(path: str) -> type[ELBO]:
    module, _, name = path.rpartition(".")
    try:
        cls = getattr(importlib.import_module(module), name) if module else None
    except (ImportError, AttributeError):
        cls = None
    if not (isinstance(cls, type) and issubclass(cls, ELBO)):
        known = OTHER_NAMES.get(path.lower())
        hint = (
            f"{path} is {known!r} here." if known else "Or a class such as pyro.infer.Trace_ELBO."
        )
        raise UnknownNameError("estimator", path, ESTIMATORS, hint)
    return cls


__all__ = ["ESTIMATORS", "Estimator", "estimators", "make_estimator", "score_function"] + [
    cls.__name__ for cls in ESTIMATORS.values()
]
