"""One program trained for several values of a setting: the rate-distortion curve.

References:
    Alemi et al.: Fixing a Broken ELBO, 2018, arXiv:1711.00464.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from matplotlib.figure import Figure

from inference import commands
from inference.checkpoint import write_atomically
from inference.evaluation import evaluate
from inference.plotting import rate_distortion
from inference.report import png
from inference.runs import CONFIG, load_config, load_run
from ppl_models.errors import PplError

NUM_PARTICLES = 20
"""Draws a test datum for rate and distortion."""
REPORTED = ("elbo", "elbo_se", "rate", "distortion", "active_units")
MAY_DIFFER = ("device", "progress", "data_root", "checkpoint_every")
"""Settings that do not make it another run."""


@dataclass(frozen=True)
class Sweep:
    """What each value of the setting led to; while it goes on, the first ones."""

    setting: str
    values: list[Any]
    rows: list[dict[str, Any]]
    """Numbers of test data after the last epoch, by value; nats per datum, unscaled."""
    runs: list[Path]

    def figure(self) -> Figure:
        """Distortion against rate, and the line of the best ELBO."""
        return rate_distortion(
            [row["rate"] for row in self.rows],
            [row["distortion"] for row in self.rows],
            [_shown(value) for value in self.values[: len(self.rows)]],
            self.setting.rpartition(".")[2],
        )


def sweep(config: Mapping[str, Any], setting: str, values: Sequence[Any], out: str | Path) -> Sweep:
    """Train a program for each of several values of one setting, a run folder each.

    Every run is an ordinary run of ``ppl train``. Called again, it goes on: finished runs are read,
    an interrupted one is resumed. Numbers are those of the last epoch: the best by validation ELBO
    would be another compromise of rate and distortion than the one that was trained for.

    Args:
        config: flat, as of ``ppl train``: ``program``, ``data``, ``model`` (arguments of its
            constructor), and options of :func:`inference.fit` and :func:`inference.load_data`.
        setting: name in it; ``model.beta`` is argument ``beta`` of the constructor.
        values: of the setting.
        out: folder of the runs, of ``sweep.json`` and of ``rate_distortion.png``.

    Returns:
        A :class:`Sweep`.

    Raises:
        PplError: no values or equal ones, or the folder holds runs with other settings.

    Example:
        >>> from inference.sweep import sweep
        >>> config = {"program": "beta_vae", "data": "digits", "epochs": 30}
        >>> sweep(config, "model.beta", [0.5, 1.0, 2.0], "runs/betas")  # doctest: +SKIP
    """
    names = [_folder_name(setting, value) for value in values]
    if not values or len(set(names)) < len(names):
        raise PplError(f"a sweep needs values, each once; got {list(values)} for {setting}")
    folder = Path(out)
    runs = [folder / name for name in names]
    plans = list(zip(runs, (_with(config, setting, value) for value in values), strict=True))
    for run, plan in plans:
        _check_same(run, plan)
    found = Sweep(setting, list(values), [], runs)
    for run, plan in plans:
        _train(run, plan)
        found.rows.append(_last_epoch(run, plan))
        _write(folder, found)
    return found


def _shown(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _folder_name(setting: str, value: Any) -> str:
    shown = f"{setting.rpartition('.')[2]}={value}".replace(" ", "")
    return re.sub(r"[^\w.=,+\-\[\]]+", "_", shown)


def _with(config: Mapping[str, Any], setting: str, value: Any) -> dict[str, Any]:
    """The configuration with a setting at a value."""
    found = {"model": {}, **config}
    part, _, name = setting.rpartition(".")
    if part:
        return found | {part: {**(found.get(part) or {}), name: value}}
    return found | {name: value}


def _check_same(run: Path, plan: Mapping[str, Any]) -> None:
    """Refuse a folder whose run is another.

    Raises:
        PplError: it has other settings.
    """
    if not (run / CONFIG).is_file():
        return
    there = load_config(run)
    asked = yaml.safe_load(yaml.safe_dump(commands.settled(dict(plan))))  # tuples as lists
    other = [k for k, v in asked.items() if k not in MAY_DIFFER and there.get(k, v) != v]
    if other:
        raise PplError(
            f"{run} holds a run with another {other[0]} ({there[other[0]]!r}, asked for: "
            f"{asked[other[0]]!r}); name another folder by --out"
        )


def _train(run: Path, plan: dict[str, Any]) -> None:
    """Train, go on with, or leave as it is a run."""
    if not (run / CONFIG).is_file():
        commands.train(plan, run)
    elif not (run / "report.html").is_file():  # the last that a run writes
        commands.resume(run, {})


def _last_epoch(run: Path, plan: Mapping[str, Any]) -> dict[str, Any]:
    opened = load_run(run, checkpoint="last", device=plan.get("device", "auto"))
    numbers = evaluate(
        opened.program,
        opened.data.test,
        num_particles=NUM_PARTICLES,
        num_data=len(opened.data.train),
    ).to_dict()
    return {name: numbers[name] for name in REPORTED} | {"epoch": opened.epoch}


def _write(folder: Path, found: Sweep) -> None:
    rows = [
        {found.setting: value, **row, "run": run.name}
        for value, row, run in zip(found.values, found.rows, found.runs, strict=False)
    ]
    write_atomically(folder / "sweep.json", (json.dumps(rows, indent=2) + "\n").encode())
    write_atomically(folder / "rate_distortion.png", png(found.figure()))


def sweep_command(
    config: Mapping[str, Any], setting: str, values: Sequence[Any], out: Path
) -> dict[str, Any]:
    """What ``ppl sweep`` prints: numbers by run, and the files."""
    found = sweep(config, setting, values, out)
    numbers = {run.name: row for run, row in zip(found.runs, found.rows, strict=True)}
    files = {"table": str(out / "sweep.json"), "file": str(out / "rate_distortion.png")}
    return numbers | files
