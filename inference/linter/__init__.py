"""A linter of programs: what is wrong with them, or likely to be, all at once.

Each rule says what it found, where, why it matters and what to write instead.
``docs/adding_a_model.md`` lists them.

Shapes: B data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator

from pyro.infer import ELBO

from inference.devices import isolated_rng
from inference.elbo import make_estimator
from inference.linter import plates, running, sites, training, values
from inference.linter.finding import Lint, Rule
from inference.linter.sighting import Sighting
from inference.weights import batch_size, evaluation_mode, fields_of
from ppl_models.errors import describe
from ppl_models.program import Batch, as_program

__all__ = ["RULES", "Lint", "Rule", "lint"]

_PARTS = (running, values, plates, sites, training)
RULES: dict[str, Rule] = {rule.code: rule for part in _PARTS for rule in part.RULES}
"""Every rule, by its code."""
Check = Callable[[Sighting], Iterator[Lint]]
_CHECKS: tuple[Check, ...] = tuple(check for part in _PARTS for check in part.CHECKS)


def lint(
    program: object, batch: Batch, estimator: str | ELBO | None = None, *, seed: int = 0
) -> list[Lint]:
    """Look for what is wrong with a program, or likely to be.

    It needs no program that runs: of one that fails, it says which of model and guide does, and
    what can be seen up to there. The program itself, its parameters and the random state are left
    as they were.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (B, ...); a few data will do.
        estimator: a name of ``ESTIMATORS`` or a ``pyro.infer.ELBO`` that it is to be trained by;
            when left out, that which ``fit`` would choose.
        seed: of the draws.

    Returns:
        The findings, errors first; none if there is nothing to find.

    Example:
        >>> import pyro, torch, pyro.distributions as dist
        >>> def model(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         z = pyro.sample("z", dist.Gamma(2.0, 1.0))
        ...         pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        >>> def guide(x):
        ...     with pyro.plate("data", len(x), dim=-1):
        ...         pyro.sample("z", dist.Normal(1.0, 0.1))
        >>> from ppl_models import Program
        >>> (found,) = lint(Program(model, guide), {"x": torch.ones(4)})
        >>> found.code, found.site
        ('support-differs', 'z')
    """
    batch = fields_of(batch)
    if isinstance(estimator, str):
        estimator = make_estimator(estimator, 2)
    whole = as_program(program)
    try:
        twin = copy.deepcopy(whole)
    except Exception as error:
        return [running.FAILS.broken(f"a copy of the program cannot be made: {describe(error)}")]
    with isolated_rng(seed), evaluation_mode(twin):
        seen = Sighting(
            twin,
            lambda: copy.deepcopy(whole).eval(),
            batch,
            {"num_data": batch_size(batch)},
            estimator,
        )
        found = [finding for check in _CHECKS for finding in _findings(check, seen)]
    return sorted(dict.fromkeys(found), key=lambda f: f.severity)


def _findings(check: Check, seen: Sighting) -> list[Lint]:
    """What a check finds; one that fails on a program that it does not know says so."""
    try:
        return list(check(seen))
    except Exception as error:
        text = f"looking for {check.__name__} fails: {describe(error)}"
        return [running.NOT_LOOKED_AT.broken(text)]
