"""The table of a comparison as an ``xarray.Dataset``.

Shapes: E estimators, G groups of parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr

from inference.compare.contestants import Contestant
from inference.compare.gradients import Problem
from inference.weights import batch_size

BY_GROUP = (
    "variance",
    "squared_norm",
    "snr",
    "second_moment",
    "bias",
    "bias_se",
    "bias_z",
    "mse",
    "variance_time",
    "second_moment_time",
)
"""Variables by estimator and group."""
BY_ESTIMATOR = ("loss", "loss_sd", "seconds")

UNITS = {
    "loss": "nats per datum",
    "loss_sd": "nats per datum",
    "seconds": "s per gradient",
    "bias_z": "standard errors",
    "variance_time": "variance x s",
    "second_moment_time": "second moment x s",
}


def assemble(
    problem: Problem,
    contestants: Sequence[Contestant],
    tables: list[list[dict[str, Any]]],
    checkpoints: list[str] | None,
    facts: dict[str, Any],
) -> xr.Dataset:
    """The table of a comparison.

    Args:
        problem: what was compared on.
        contestants: the estimators, E of them.
        tables: for every checkpoint (or once) E rows of numbers.
        checkpoints: their labels, or None.
        facts: further attributes.
    """
    dims = ("estimator",) if checkpoints is None else ("checkpoint", "estimator")

    def stacked(name: str) -> np.ndarray:
        values = np.array([[row[name] for row in table] for table in tables])
        return values[0] if checkpoints is None else values

    variables = {name: ((*dims, "group"), stacked(name)) for name in BY_GROUP}
    variables |= {name: (dims, stacked(name)) for name in (*BY_ESTIMATOR, "reference", "note")}
    layout = problem.layout
    coordinates: dict[str, Any] = {
        "estimator": [c.label for c in contestants],
        "group": list(layout.groups),
        "objective": ("estimator", [c.objective for c in contestants]),
        "target": ("estimator", [c.target or "unknown" for c in contestants]),
        "num_particles": ("estimator", [c.num_particles for c in contestants]),
        "num_parameters": ("group", layout.group_sizes),
    }
    if checkpoints is not None:
        coordinates["checkpoint"] = checkpoints
    attributes = facts | {
        "program": problem.program.name,
        "batch_size": batch_size(problem.batch),
        "device": str(next(problem.program.parameters()).device),
        "torch": str(torch.__version__),
        "gradient": "of the loss (-objective) per datum, nats",
    }
    if problem.num_data is not None:
        attributes["num_data"] = problem.num_data
    dataset = xr.Dataset(variables, coordinates, attributes)
    for name, unit in UNITS.items():
        dataset[name].attrs["units"] = unit
    return dataset
