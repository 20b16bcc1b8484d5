"""EM in a run folder: metrics, checkpoints, and going on where it was left."""

from __future__ import annotations

import logging
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import torch

from inference.checkpoint import load_checkpoint, load_parameters, save_checkpoint
from inference.data.dataset import DataSet
from inference.devices import dtype_of, isolated_rng, make_fabric
from inference.em.fit import EMResult, EMState, fit_em
from inference.em.program import as_mixture
from inference.progress import Progress
from inference.runs import versions
from inference.signals import StopRequest, TrainingInterrupted, stop_on_signals
from inference.validation import Validator
from ppl_models.errors import PplError
from ppl_models.program import Program

log = logging.getLogger(__name__)

LAST, BEST = "last.ckpt", "best.ckpt"


def fit_em_in(
    run_dir: Path,
    program: object,
    data: DataSet,
    *,
    epochs: int = 20,
    seed: int = 0,
    device: str = "auto",
    precision: str = "32",
    progress: bool | None = None,
    resume: bool = False,
) -> EMResult:
    """Fit a Gaussian mixture by EM into a run folder, one epoch an iteration.

    After every iteration the mixture is evaluated on validation data, and a checkpoint written
    from which a resumed run ends as one that was not interrupted; the best is kept as well.

    Args:
        run_dir: the folder.
        program: a Gaussian mixture.
        data: the data set.
        epochs: iterations, at most.
        seed: of the start.
        device: ``auto``, ``cpu`` or ``cuda``.
        precision: ``32`` or ``64``.
        progress: show a bar; when left out, if somebody is looking.
        resume: go on from the checkpoint in the folder.

    Raises:
        PplError: it is no mixture, or the data are not fit for it.
        TrainingInterrupted: SIGINT or SIGTERM; a checkpoint was written.
    """
    wrapped, _ = as_mixture(program)
    if precision not in ("32", "64"):
        raise PplError(f"EM takes precision 32 or 64, got {precision!r}")
    place, dtype = make_fabric(device).device, dtype_of(precision)
    placed = data.map(lambda split: split.to(place, dtype))
    wrapped.to(place, dtype)
    keeper = _Keeper(run_dir, wrapped, placed, Progress(len(placed.train) * epochs, progress))
    state = keeper.take_up() if resume else None
    with isolated_rng(seed), stop_on_signals() as stop, closing(keeper.bar):
        keeper.stop = stop
        found = fit_em(
            wrapped,
            placed.train,
            max_iterations=epochs,
            seed=seed,
            device=str(place),
            callback=keeper.keep,
            state=state,
        )
    keeper.tell(found)
    return found


class _Keeper:
    """Writes down every iteration."""

    def __init__(self, folder: Path, program: Program, data: DataSet, bar: Progress) -> None:
        from inference.metrics import MetricsFile  # with Fabric, which is slow to import

        self.folder = folder
        self.program = program
        self.num_data = len(data.train)
        self.validator = Validator(data.valid, None, False, 1, self.num_data)
        self.metrics = MetricsFile(folder)
        self.bar = bar
        self.stop: StopRequest | None = None
        self.started = time.monotonic()

    def take_up(self) -> EMState | None:
        """Parameters and state of the last checkpoint; None if there is none."""
        path = self.folder / "checkpoints" / LAST
        if not path.is_file():
            return None
        saved = load_checkpoint(path)
        if "em" not in saved:
            raise PplError(f"{path} is of a run by gradient descent; resume it with method svi")
        load_parameters(self.program, saved, path)
        for row in saved["position"]["history"]:
            self.metrics.log_metrics(row)
        self.started -= saved["position"]["seconds"]
        self.bar.resume(saved["position"]["epoch"] * self.num_data, self.metrics.rows)
        return EMState.from_dict(saved["em"])

    def keep(self, state: EMState) -> None:
        """Metrics and checkpoints after an iteration."""
        row = {
            "epoch": state.iteration,
            "step": state.iteration,
            "train_loss": -state.history[-1],
            **self.validator(self.program),
            "repairs": sum(r.iteration == state.iteration for r in state.repairs),
            "seconds": round(time.monotonic() - self.started, 3),
        }
        best = all(row["valid_elbo"] > earlier["valid_elbo"] for earlier in self.metrics.rows)
        self.metrics.log_metrics(row)
        checkpoints = self.folder / "checkpoints"
        files = [checkpoints / BEST, checkpoints / LAST] if best else [checkpoints / LAST]
        save_checkpoint(files[0], self._saved(state, row["seconds"]), *files[1:])
        self.bar.advance(self.num_data, torch.tensor(row["train_loss"]))
        self.bar.epoch_done(row)
        if self.stop is not None and self.stop.signum is not None:
            raise TrainingInterrupted(self.stop.signum, self.folder)

    def tell(self, found: EMResult) -> None:
        """Say how it ended."""
        for done in found.repairs:
            log.info("%s", done)
        count = found.num_iterations
        end = "converged" if found.converged else "has not converged"
        best = max(self.metrics.rows, key=lambda row: row["valid_elbo"])
        log.info(
            "EM %s after %d iterations: log-likelihood %.4f nats a datum in training, %.4f in "
            "validation (best %.4f after iteration %d, whose parameters are kept)%s",
            end,
            count,
            found.history[-1],
            self.metrics.rows[-1]["valid_elbo"],
            best["valid_elbo"],
            best["epoch"],
            "" if found.converged else f"; go on with ppl train --resume {self.folder} --epochs N",
        )

    def _saved(self, state: EMState, seconds: float) -> dict[str, Any]:
        rows = self.metrics.rows
        best = max(rows, key=lambda row: row["valid_elbo"])
        return {
            "program": self.program.state_dict(),
            "em": state.to_dict(),
            "position": {
                "epoch": state.iteration,
                "step": state.iteration,
                "best_epoch": best["epoch"],
                "seconds": seconds,
                "history": rows,
            },
            "num_data": self.num_data,
            "versions": versions(),
        }
