"""The contract of a program, as a test for users' own models.

from inference.testing import check_program

def test_my_model():
check_program(MyModel(), {"x": torch.rand(8, 1, 28, 28)})
"""

from __future__ import annotations

import copy
from dataclasses import dataclass

from torch import Tensor

from inference.contract import CHECKS, Subject, run
from inference.devices import isolated_rng
from inference.linter import Lint, lint
from inference.weights import batch_size, fields_of
from ppl_models.errors import PplError, ProgramError, describe
from ppl_models.program import Batch, Program, as_program


@dataclass(frozen=True)
class CheckResult:
    """One clause of the contract."""

    name: str
    ok: bool
    message: str
    """What was found; if not ok, what to do."""
    findings: tuple[Lint, ...] = ()
    """Of the linter, warnings among them, which break nothing."""


def check_program(
    program: object, batch: Batch, *, raise_on_failure: bool = True
) -> list[CheckResult]:
    """Check that a program keeps the contract of ``docs/adding_a_model.md``.

    Sites and plates agree between model and guide; shapes; supports; a gradient reaches every
    parameter; the prior predictive runs; the state dict makes a round trip; ``deepcopy``; log
    weights are per datum (permuting the batch permutes them); float32 and float64; a batch of
    one; a short last batch; and the linter (:mod:`inference.linter`) finds no error: its warnings
    are in the result, and break nothing. The program itself, and the random state, are left as
    they were.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (B, ...), B at least 3.
        raise_on_failure: raise if a check fails; else only say so in the result.

    Returns:
        One result a check.

    Raises:
        ProgramError: checks failed; the message lists them all.
    """
    batch = fields_of(batch)
    if batch_size(batch) < 3:
        raise ProgramError(f"check_program needs a batch of at least 3, got {batch_size(batch)}")
    with isolated_rng(0):
        results = _run_checks(as_program(program), batch)
    failed = [r for r in results if not r.ok]
    if failed and raise_on_failure:
        lines = "\n".join(f"- {r.name}: {r.message}" for r in failed)
        raise ProgramError(f"{as_program(program).name} breaks the contract:\n{lines}")
    return results


def _run_checks(program: Program, batch: dict[str, Tensor]) -> list[CheckResult]:
    def subject() -> Subject:
        fresh = copy.deepcopy(program).eval()
        return Subject(fresh, batch, run(fresh, batch))

    try:
        subject()
    except Exception as error:
        return [CheckResult("runs", False, _message(error)), _lint(program, batch)]
    results = [CheckResult("runs", True, "model and guide run on the batch")]
    for name, check in CHECKS.items():
        try:
            results.append(CheckResult(name, True, check(subject())))
        except Exception as error:
            results.append(CheckResult(name, False, _message(error)))
    return [*results, _lint(program, batch)]


def _lint(program: Program, batch: dict[str, Tensor]) -> CheckResult:
    """The linter's findings as one result."""
    found = tuple(lint(program, batch))
    errors = sum(f.severity == "error" for f in found)
    if not found:
        return CheckResult("lint", True, "nothing found")
    lines = "".join(f"\n  {str(finding).replace(chr(10), chr(10) + '  ')}" for finding in found)
    counts = f"{errors} error(s), {len(found) - errors} warning(s)"
    return CheckResult("lint", not errors, counts + lines, found)


def _message(error: Exception) -> str:
    return str(error) if isinstance(error, PplError) else describe(error)
