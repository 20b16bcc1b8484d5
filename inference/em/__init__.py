"""Expectation-maximization of Gaussian mixtures, in closed form."""

from inference.em.fit import EMResult, EMState, fit_em
from inference.em.program import MixtureProgram, as_mixture
from inference.em.repairs import Repair
from inference.em.rows import Rows
from inference.em.start import start_mixture

__all__ = [
    "EMResult",
    "EMState",
    "MixtureProgram",
    "Repair",
    "Rows",
    "as_mixture",
    "fit_em",
    "start_mixture",
]
