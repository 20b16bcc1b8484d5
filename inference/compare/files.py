"""A comparison on disk: table, netCDF file and figures."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure

from inference.checkpoint import write_atomically
from inference.compare.groups import TOTAL
from inference.compare.tables import BY_ESTIMATOR, BY_GROUP
from inference.plotting.estimators import (
    cost_frontier,
    estimator_bias,
    estimator_snr,
    estimator_variance,
    training_curves,
)
from inference.report import png

COLUMNS = {
    "objective": "objective",
    "num_particles": "K",
    "variance": "variance",
    "snr": "SNR",
    "bias": "bias",
    "bias_se": "± se",
    "bias_z": "z",
    "mse": "MSE",
    "loss": "loss",
    "milliseconds": "ms",
    "variance_time": "variance × s",
    "second_moment_time": "E‖g‖² × s",
}
"""Of ``comparison.md``, which shows the group of all parameters."""


def write_comparison(
    folder: Path, comparison: xr.Dataset, training: xr.Dataset | None = None
) -> dict[str, str]:
    """Write ``comparison.csv``, ``.md``, ``.nc`` and the figures.

    Args:
        folder: where to; made if it is not there.
        comparison: of ``compare_estimators``.
        training: of ``train_compare``; adds ``training.nc`` and its figure.

    Returns:
        The files by what they hold.

    Raises:
        PplError: the folder cannot be written to.
    """
    content = {
        "comparison.csv": _csv(comparison).encode(),
        "comparison.md": markdown(comparison, training).encode(),
        "comparison.nc": netcdf(comparison),
    }
    figures: dict[str, Figure] = {}
    if bool(np.isfinite(comparison["variance"]).any()):
        figures = {
            "variance.png": estimator_variance(comparison),
            "snr.png": estimator_snr(comparison),
            "cost.png": cost_frontier(comparison),
        }
        if bool(np.isfinite(comparison["bias"]).any()):
            figures["bias.png"] = estimator_bias(comparison)
    if training is not None:
        content["training.nc"] = netcdf(training)
        figures["training.png"] = training_curves(training)
    for name, figure in figures.items():
        content[name] = png(figure)
    for name, data in content.items():
        write_atomically(folder / name, data)
    tables = [str(folder / name) for name in content if not name.endswith(".png")]
    pictures = [str(folder / name) for name in figures]
    return {"tables": ", ".join(tables), "figures": ", ".join(pictures) or "none"}


def netcdf(dataset: xr.Dataset) -> bytes:
    """A data set as netCDF 4; ``xarray.open_dataset(..., engine="h5netcdf")`` reads it."""
    buffer = io.BytesIO()
    dataset.to_netcdf(buffer, engine="h5netcdf")
    return buffer.getvalue()


def _at_each(comparison: xr.Dataset) -> Iterator[tuple[str, xr.Dataset]]:
    """The table of every checkpoint, under its label; of the only one, under none."""
    if "checkpoint" not in comparison.dims:
        yield "", comparison
        return
    for label in comparison["checkpoint"].values.tolist():
        yield label, comparison.sel(checkpoint=label)


def _csv(comparison: xr.Dataset) -> str:
    """One row per checkpoint, estimator and group."""
    buffer = io.StringIO()
    known = ("objective", "target", "num_particles")
    per_estimator = (*known, *BY_ESTIMATOR, "reference", "note")
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["checkpoint", "estimator", "group", *BY_GROUP, *per_estimator])
    for checkpoint, table in _at_each(comparison):
        for estimator in table["estimator"].values.tolist():
            row = table.sel(estimator=estimator)
            for group in row["group"].values.tolist():
                numbers = [row[name].sel(group=group).item() for name in BY_GROUP]
                others = [row[name].item() for name in per_estimator]
                writer.writerow([checkpoint, estimator, group, *numbers, *others])
    return buffer.getvalue()


def summary(comparison: xr.Dataset) -> dict[str, Any]:
    """The group of all parameters as plain values: by estimator, under ``name @ checkpoint``."""
    result: dict[str, Any] = {}
    for checkpoint, table in _at_each(comparison):
        for estimator in table["estimator"].values.tolist():
            row = table.sel(estimator=estimator, group=TOTAL)
            key = f"{estimator} @ {checkpoint}" if checkpoint else estimator
            numbers = {
                "variance": row["variance"].item(),
                "snr": row["snr"].item(),
                "bias": row["bias"].item(),
                "bias_z": row["bias_z"].item(),
                "milliseconds": 1e3 * row["seconds"].item(),
                "variance_time": row["variance_time"].item(),
            }
            finite = {name: value for name, value in numbers.items() if math.isfinite(value)}
            result[key] = finite or row["note"].item()
    return result


def markdown(comparison: xr.Dataset, training: xr.Dataset | None = None) -> str:
    """The comparison for people: a table a checkpoint, what is not applicable, references."""
    facts = comparison.attrs
    lines = [
        f"# Estimators on {facts['program']}",
        "",
        f"{facts['num_reps']} gradients each, of the loss per datum on a batch of "
        f"{facts['batch_size']}, {facts['device']}, seed {facts['seed']}. All parameters; "
        "`comparison.csv` and `comparison.nc` have the groups.",
    ]
    for checkpoint, table in _at_each(comparison):
        if checkpoint:
            lines += ["", f"## {checkpoint}"]
        lines += ["", *_table(table)]
        lines += _listed("Not applicable or failed", table, "note")
        lines += _listed("Bias measured against", table, "reference")
    if training is not None:
        lines += ["", *_training_table(training), *_listed("Not trained", training, "note")]
    return "\n".join(lines) + "\n"


def _table(table: xr.Dataset) -> list[str]:
    rows = []
    for estimator in table["estimator"].values.tolist():
        row = table.sel(estimator=estimator, group=TOTAL)
        row = row.assign(milliseconds=1e3 * row["seconds"])
        if not math.isnan(row["variance"].item()):
            rows.append([estimator, *(_cell(row[name].item()) for name in COLUMNS)])
    return _markdown_table(["estimator", *COLUMNS.values()], rows)


def _training_table(training: xr.Dataset) -> list[str]:
    rows = []
    for estimator in training["estimator"].values.tolist():
        part = training.sel(estimator=estimator)
        best = part["valid_elbo"].max("epoch").values
        if np.isfinite(best).any():
            last = part["seconds"].max("epoch").values
            numbers = (np.nanmean(best), np.nanmin(best), np.nanmax(best), np.nanmean(last))
            rows.append([estimator, *(_cell(float(value)) for value in numbers)])
    seeds = ", ".join(map(str, training["seed"].values.tolist()))
    head = ["estimator", "best validation ELBO (mean)", "lowest", "highest", "seconds"]
    return [f"## Training, seeds {seeds}", "", *_markdown_table(head, rows)]


def _markdown_table(head: list[str], rows: list[list[str]]) -> list[str]:
    align = ["---", *["---:" for _ in head[1:]]]
    return ["| " + " | ".join(cells) + " |" for cells in [head, align, *rows]]


def _listed(title: str, table: xr.Dataset, name: str) -> list[str]:
    """The texts of a variable, each with the estimators that it is said of."""
    said: dict[str, list[str]] = {}
    for estimator in table["estimator"].values.tolist():
        text = table[name].sel(estimator=estimator).item()
        if text and not (name == "reference" and table["note"].sel(estimator=estimator).item()):
            said.setdefault(text, []).append(estimator)
    if not said:
        return []
    return ["", f"{title}:", "", *(f"- {', '.join(who)}: {text}" for text, who in said.items())]


def _cell(value: Any) -> str:
    """A number with four digits, or a text."""
    if not isinstance(value, float):
        return str(value)
    return "" if math.isnan(value) else f"{value:.4g}"
