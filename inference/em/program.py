"""What a program must have to be fitted as a Gaussian mixture, in closed form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol, TypeGuard

from torch import Tensor

from inference.em.statistics import Mixture
from ppl_models.errors import PplError
from ppl_models.program import Program, as_program


class MixtureProgram(Protocol):
    """A Gaussian mixture, such as :class:`ppl_models.gmm.GaussianMixture`."""

    num_components: int
    dim: int
    x_shape: tuple[int, ...]
    covariance: str
    zero_mean: bool
    floor: Tensor
    """Smallest scales of a component, (D,) or (1,)."""
    prior: Any
    moments: Callable[..., Any]
    set_moments: Callable[..., Any]
    set_unit: Callable[..., Any]
    log_prior: Callable[..., Any]
    log_prob: Callable[..., Any]
    num_free_parameters: int
    responsibilities: Callable[..., Any]
    sample: Callable[..., Any]
    started: Tensor
    """Whether its parameters were set or trained; else they are nobody's choice."""


def is_mixture(thing: object) -> TypeGuard[MixtureProgram]:
    """Whether an object has all of that.

    ``isinstance`` would not do: from Python 3.12 on it does not see the buffers of a module.
    """
    return all(hasattr(thing, name) for name in MixtureProgram.__annotations__)


def as_mixture(program: object) -> tuple[Program, Any]:
    """A program that is a Gaussian mixture, and the mixture itself.

    Raises:
        PplError: it is something else.
    """
    wrapped = as_program(program)
    if not is_mixture(wrapped.owner):
        raise PplError(
            f"EM in closed form is for Gaussian mixtures, and {wrapped.name} is none; use fit()"
        )
    return wrapped, wrapped.owner


def floor_of(mixture: MixtureProgram) -> Tensor:
    """What the M-step adds to the variances, (D,) or (1,); float64."""
    return mixture.floor.double().square()


def read(mixture: MixtureProgram) -> Mixture:
    """A program's parameters, in float64."""
    weights, locs, covariances = mixture.moments()
    return Mixture(weights, locs, covariances, mixture.covariance, mixture.zero_mean)
