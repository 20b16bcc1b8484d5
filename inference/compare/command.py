"""What ``ppl compare`` does."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from inference.compare.compare import ADAPT_STEPS, compare_estimators
from inference.compare.contestants import line_up
from inference.compare.files import summary, write_comparison
from inference.compare.training import train_compare
from inference.data import DataSet, load_data
from inference.devices import dtype_of, isolated_rng, make_fabric
from inference.priming import check_fields_named, prime
from inference.runs import build_for, load_run, options_for
from ppl_models.errors import PplError
from ppl_models.program import Program


def compare(
    config: dict[str, Any],
    *,
    estimators: str | None = None,
    checkpoint: str | None = None,
    out: str | None = None,
    overwrite: bool = False,
    reference: str = "auto",
    num_reps: int = 200,
    num_particles: int = 1,
    batch_size: int = 100,
    adapt_steps: int = ADAPT_STEPS,
    epochs: int = 0,
    seeds: str = "0,1,2",
    learning_rate: float = 1e-3,
    device: str = "auto",
    seed: int = 0,
) -> dict[str, Any]:
    """Compare ELBO estimators on a program: bias, variance, signal-to-noise, cost, curves.

    Args:
        config: flat: ``program``, ``model`` and the options of ``load_data``; not read with
            ``checkpoint``.
        estimators: names or import paths, with commas between; all if left out.
        checkpoint: folder of a run, whose program and data are taken; compares at its
            initialization and after its training.
        out: folder of tables and figures; runs/compare-MODEL-DATA if left out.
        overwrite: write into a folder that holds something, over files of the same names.
        reference: of the bias: auto, closed_form, enumerate, large_sample, none, or an estimator.
        num_reps: gradients per estimator.
        num_particles: draws per datum, or as many as an estimator needs.
        batch_size: data whose gradient is compared, and per step in training.
        adapt_steps: steps by which baselines are fitted to the program first.
        epochs: of training curves; 0: none.
        seeds: of training curves, with commas between.
        learning_rate: of training curves.
        device: auto, cpu or cuda.
        seed: of draws, and of the initialization without ``checkpoint``.
    """
    given = [name.strip() for name in estimators.split(",")] if estimators is not None else None
    line_up(given, num_particles)  # refuse a wrong name before anything is loaded
    seed_list = _seeds(seeds)
    if batch_size < 1:
        raise PplError(f"batch_size must be at least 1, got {batch_size}")
    subject = _fresh(config, device, seed) if checkpoint is None else _of_run(checkpoint, device)
    folder = _folder(out, subject.config, overwrite)
    check_fields_named(subject.program, subject.data.train)
    comparison = compare_estimators(
        subject.program,
        _batch(subject.data, batch_size, seed),
        estimators=given,
        reference=None if reference == "none" else reference,
        num_reps=num_reps,
        num_particles=num_particles,
        num_data=len(subject.data.train),
        checkpoints=subject.states,
        adapt_steps=adapt_steps,
        seed=seed,
    )
    training = None
    if epochs > 0:
        training = train_compare(
            subject.make,
            subject.data,
            estimators=given,
            seeds=seed_list,
            num_particles=num_particles,
            epochs=epochs,
            batch_size=batch_size,
            learning_rate=learning_rate,
            device=device,
            precision=subject.precision,
        )
    return summary(comparison) | write_comparison(folder, comparison, training)


@dataclass
class _Subject:
    """What is compared on."""

    config: dict[str, Any]
    data: DataSet
    program: Program
    states: dict[str, dict[str, Any]] | None
    """Parameters at which to compare, by label; None: the program's own."""
    device: torch.device

    @property
    def precision(self) -> str:
        """Of the run; a program without one has none."""
        return self.config.get("precision", "32")

    def make(self) -> Program:
        """The program with new networks."""
        made = build_for(self.config["program"], self.config["model"], self.data.info)
        return made.to(self.device, dtype_of(self.precision))


def _fresh(config: dict[str, Any], device: str, seed: int) -> _Subject:
    """A program as it is made, on its data."""
    placed = make_fabric(device).device
    data = load_data(**options_for(load_data, config))
    data = data.map(lambda split: split.to(placed, torch.float32))
    with isolated_rng(seed):
        program = build_for(config["program"], config["model"], data.info).to(placed)
    return _Subject(config, data, program, None, placed)


def _of_run(checkpoint: str, device: str) -> _Subject:
    """A run's program at its initialization and after its training."""
    run = load_run(checkpoint, device=device)
    seed = run.config.get("seed", 0)  # of the run's networks
    subject = _Subject(run.config, run.data, run.program, None, make_fabric(device).device)
    with isolated_rng(seed):
        subject.program = subject.make()
    subject.states = {
        "initialization": _initial_state(subject.program, run.data, seed),
        f"after epoch {run.epoch}": run.program.state_dict(),
    }
    return subject


def _batch(data: DataSet, batch_size: int, seed: int) -> dict[str, torch.Tensor]:
    """Some training data, the same for the same seed."""
    order = torch.randperm(len(data.train), generator=torch.Generator().manual_seed(seed))
    with isolated_rng(seed):  # transforms of the data draw too
        return next(iter(data.train.batches(batch_size, order[:batch_size])))


def _initial_state(program: Program, data: DataSet, seed: int) -> dict[str, Any]:
    """The parameters before training, the lazy ones too."""
    with isolated_rng(seed):
        prime(program, next(iter(data.train.batches(8))), len(data.train))
    return copy.deepcopy(program.state_dict())


def _seeds(text: str) -> list[int]:
    try:
        return [int(word) for word in text.split(",")]
    except ValueError:
        raise PplError(f"seeds must be whole numbers with commas between, got {text!r}") from None


def _folder(out: str | None, config: dict[str, Any], overwrite: bool) -> Path:
    """Where to write.

    Raises:
        PplError: something is there already.
    """
    if out is None:
        program = Path(config["program"].rpartition(":")[2] or config["program"]).stem
        out = f"runs/compare-{program}-{Path(config['data']).stem}".lower()
    folder = Path(out)
    taken = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if taken and not (overwrite and folder.is_dir()):
        raise PplError(f"{folder} exists already; name another folder by --out, or --overwrite")
    return folder
