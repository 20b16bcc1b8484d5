"""Generative stories: deep latent variable models as Pyro programs."""

from ppl_models.catalog import CATALOG, build, resolve
from ppl_models.errors import PplError, ProgramError, UnknownNameError
from ppl_models.program import Program, PyroProgram, as_program, auxiliary_loss

__all__ = [
    "CATALOG",
    "PplError",
    "Program",
    "ProgramError",
    "PyroProgram",
    "UnknownNameError",
    "as_program",
    "auxiliary_loss",
    "build",
    "resolve",
]
