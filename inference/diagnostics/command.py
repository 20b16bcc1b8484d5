"""What ``ppl diagnose`` does: a function that returns what is to be printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from inference.diagnostics.diagnose import diagnose
from inference.diagnostics.diagnosis import Diagnosis
from inference.runs import load_run


class Printed(dict[str, Any]):
    """A diagnosis as JSON, which prints as its table.

    Args:
        found: the diagnosis.
        files: what was written.
    """

    def __init__(self, found: Diagnosis, files: list[str]) -> None:
        super().__init__(found.to_dict() | {"files": files})
        self.text = f"{found}\n\n" + "\n".join(files)


def diagnose_run(
    run: str,
    *,
    out: str | None = None,
    checks: list[str] | str | None = None,
    max_data: int = 200,
    num_samples: int = 1000,
    thorough: bool = False,
    checkpoint: str = "best",
    device: str = "auto",
    data_root: str | None = None,
    seed: int = 0,
) -> Printed:
    """Diagnose the posterior of a run: checks with verdicts in plain language, and pictures.

    Latents of each datum are diagnosed on test data, global ones on the training data, which they
    are about.

    Args:
        run: folder of the run.
        out: folder of diagnosis.json, diagnosis.html and the pictures; RUN/diagnosis if left out.
        checks: names, as importance,loo, of: importance, evidence, surgery, predictive, loo,
            labels, sbc, gaps, nuts; those that apply and cost little (all but the last three)
            when left out.
        max_data: test data that are looked at, at most.
        num_samples: draws from the guide a datum.
        thorough: the costly checks as well.
        checkpoint: best (by validation ELBO) or last.
        device: auto, cpu or cuda.
        data_root: folder of data files, if it is another than in training.
        seed: of the draws.
    """
    opened = load_run(run, checkpoint=checkpoint, device=device, data_root=data_root)
    found = diagnose(
        opened,
        checks=_names(checks),
        num_samples=num_samples,
        max_data=max_data,
        thorough=thorough,
        seed=seed,
    )
    files = found.save(Path(out) if out is not None else opened.folder / "diagnosis")
    return Printed(found, [str(path) for path in files.values()])


def _names(checks: list[str] | str | None) -> list[str] | None:
    """Names of a list, or of a text with commas."""
    if isinstance(checks, str):
        return [name.strip() for name in checks.split(",") if name.strip()]
    return checks
