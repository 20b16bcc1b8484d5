"""The clauses of a program's contract; :func:`inference.testing.check_program` runs them.

Each takes a fresh copy of the program and raises :class:`ProgramError` if it is broken:
``structure`` looks at sites, plates, shapes and gradients, ``invariance`` at numbers that must not
change.
"""

from __future__ import annotations

from collections.abc import Callable

from inference.contract.invariance import (
    check_batch_sizes,
    check_deepcopy,
    check_per_datum,
    check_precisions,
    check_state_dict,
)
from inference.contract.structure import (
    check_every_gradient,
    check_plates,
    check_prior_predictive,
    check_shapes,
    check_sites,
    check_supports,
    check_validation,
)
from inference.contract.subject import Subject, run

__all__ = ["CHECKS", "Subject", "run"]

CHECKS: dict[str, Callable[[Subject], str]] = {
    "sites": check_sites,
    "plates": check_plates,
    "shapes": check_shapes,
    "supports": check_supports,
    "validation": check_validation,
    "gradients": check_every_gradient,
    "prior predictive": check_prior_predictive,
    "state dict": check_state_dict,
    "deepcopy": check_deepcopy,
    "per datum": check_per_datum,
    "precisions": check_precisions,
    "batch sizes": check_batch_sizes,
}
"""The contract, clause by clause."""
