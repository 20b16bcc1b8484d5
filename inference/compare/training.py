"""Estimators side by side in training: curves over seeds, against steps and seconds."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import xarray as xr

from inference.compare.compare import unchanged
from inference.compare.contestants import Contestant, Estimators, line_up
from inference.compare.references import reason_of
from inference.data.dataset import as_dataset
from inference.devices import isolated_rng, seed_all
from inference.priming import prime
from inference.svi import fit
from ppl_models.errors import PplError
from ppl_models.program import Program, as_program

CURVES = ("valid_elbo", "train_loss", "seconds")
NOT_PASSED = ("estimator", "seed", "run_dir", "resume", "loggers", "tensorboard")
"""Options of ``fit`` that a comparison sets itself, or that belong to a single run."""


def train_compare(
    program: object | Callable[[], object],
    data: Any,
    *,
    estimators: Estimators | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    num_particles: int = 1,
    **fit_options: Any,
) -> xr.Dataset:
    """Train a program under several estimators, with the same seeds, data and settings.

    Args:
        program: a function (or class) without arguments that makes one, called after seeding, so
            that every seed has its own initialization and the estimators share it; or an
            object with ``model`` and ``guide``, which is copied and stays as it is.
        data: as :func:`inference.fit` takes it.
        estimators: as :func:`compare_estimators` takes them.
        seeds: of initialization, draws and order of the data.
        num_particles: of estimators given by name, or as many as they need.
        **fit_options: further options of :func:`inference.fit`, such as ``epochs``.

    Returns:
        ``valid_elbo`` (the ELBO under every estimator), ``train_loss`` (of the estimator's own
        objective) and ``seconds`` (of training, without validation), with dimensions estimator x
        seed x epoch, NaN after an early stop; ``step`` along epoch; and ``note`` by estimator:
        why it is not applicable, or which seeds failed.

    Raises:
        PplError: options that cannot be passed on, or no estimator trains at all.
    """
    refused = [name for name in NOT_PASSED if name in fit_options]
    if refused:
        raise PplError(
            f"train_compare cannot pass {', '.join(refused)} on to fit: it trains every estimator "
            "with every seed; give estimators= and seeds= instead"
        )
    if not seeds:
        raise PplError("seeds is empty; give some, such as (0, 1, 2)")
    contestants = line_up(estimators, num_particles)
    dataset = as_dataset(data)
    options = {"progress": False} | fit_options
    runs: dict[tuple[int, int], list[dict[str, Any]]] = {}
    notes: list[dict[int, str]] = [{} for _ in contestants]
    for turn, seed in enumerate(seeds):
        order = list(enumerate(contestants))
        for index, contestant in order if turn % 2 == 0 else reversed(order):
            try:
                runs[index, turn] = _train(program, dataset, contestant, int(seed), options)
            except Exception as error:
                if isinstance(error, TypeError) and "unexpected keyword" in str(error):
                    raise
                notes[index][int(seed)] = reason_of(error)
    if not runs:
        text = "; ".join(
            f"{c.label}: {next(iter(n.values()))}" for c, n in zip(contestants, notes, strict=True)
        )
        raise PplError(f"no estimator trains this program: {text}")
    return _curves(contestants, [int(seed) for seed in seeds], runs, notes)


def _train(
    program: Any, data: Any, contestant: Contestant, seed: int, options: dict[str, Any]
) -> list[dict[str, Any]]:
    """The history of one run."""
    with isolated_rng(seed):
        made, is_copy = _made(program, seed)
        options = options | {"estimator": contestant.fresh().estimator, "seed": seed}
        if not is_copy:
            return fit(made, data, **options).history
        twin = as_program(made)
        prime(twin, next(iter(data.train.batches(8))), len(data.train))
        with unchanged(twin):
            return fit(twin, data, **options).history


def _made(program: Any, seed: int) -> tuple[Any, bool]:
    """A program to train, and whether it is a copy of the user's object."""
    is_program = not isinstance(program, type) and hasattr(program, "model")
    if is_program or isinstance(program, Program):
        return copy.deepcopy(as_program(program)), True
    if not callable(program):
        as_program(program)  # raises: it lacks a model or a guide
    seed_all(seed)
    return program(), False


def _curves(
    contestants: Sequence[Contestant],
    seeds: Sequence[int],
    runs: dict[tuple[int, int], list[dict[str, Any]]],
    notes: Sequence[dict[int, str]],
) -> xr.Dataset:
    longest = max(runs.values(), key=len)
    shape = (len(contestants), len(seeds), len(longest))
    curves = {name: np.full(shape, np.nan) for name in CURVES}
    for (index, turn), history in runs.items():
        for name, values in curves.items():
            values[index, turn, : len(history)] = [row[name] for row in history]
    dims = ("estimator", "seed", "epoch")
    variables: dict[str, Any] = {name: (dims, values) for name, values in curves.items()}
    variables["note"] = ("estimator", np.array([_note(n, len(seeds)) for n in notes]))
    coordinates = {
        "estimator": [c.label for c in contestants],
        "seed": list(seeds),
        "epoch": [row["epoch"] for row in longest],
        "step": ("epoch", [row["step"] for row in longest]),
        "objective": ("estimator", [c.objective for c in contestants]),
        "num_particles": ("estimator", [c.num_particles for c in contestants]),
    }
    dataset = xr.Dataset(variables, coordinates)
    dataset["valid_elbo"].attrs["units"] = dataset["train_loss"].attrs["units"] = "nats per datum"
    dataset["seconds"].attrs["units"] = "s of training"
    return dataset


def _note(failures: dict[int, str], num_seeds: int) -> str:
    if not failures:
        return ""
    reason = next(iter(failures.values()))
    if len(failures) == num_seeds:
        return f"not applicable: {reason}"
    return f"seed(s) {', '.join(map(str, failures))} failed: {reason}"
