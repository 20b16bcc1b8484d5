"""The training loop: epochs, validation, checkpoints, and going on where it was left."""

from __future__ import annotations

import math
import time
import warnings
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from inference.averaging import WeightAverage
from inference.checkpoint import load_checkpoint, load_parameters, save_checkpoint
from inference.data.dataset import DataSet
from inference.data.order import epoch_order
from inference.devices import rng_state, set_rng_state
from inference.handlers import KLWarmup, KLWeight
from inference.kl_balance import KLBalance
from inference.nonfinite import NonFiniteLossError
from inference.parameters import trainable, trained
from inference.position import Position, check_same_run
from inference.progress import Progress
from inference.runs import versions
from inference.settings import Settings
from inference.signals import StopRequest, TrainingInterrupted
from inference.step import SVIStep
from inference.validation import Validator
from inference.weights import batch_size
from ppl_models.errors import PplError
from ppl_models.program import Program

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LAST, BEST = "last.ckpt", "best.ckpt"


class TrainingLoop:
    """Everything that changes while a program is trained.

    Args:
        program: primed: all its parameters exist.
        data: on the device.
        settings: of the run.
        estimator: of the objective.
        fabric: device, precision, loggers.
        validator: of every epoch.
        run_dir: where checkpoints go, or None.
        progress: the bar.
    """

    def __init__(
        self,
        program: Program,
        data: DataSet,
        settings: Settings,
        estimator: ELBO,
        fabric: Fabric,
        validator: Validator,
        run_dir: Path | None,
        progress: Progress,
    ) -> None:
        self.program = program
        self.data = data
        self.settings = settings
        self.fabric = fabric
        self.validator = validator
        self.run_dir = run_dir
        self.progress = progress
        self.num_data = len(data.train)
        self.batches_per_epoch = math.ceil(self.num_data / settings.batch_size)
        self.estimator = estimator
        self.optimizer = settings.make_optimizer(trained(program, estimator))
        num_steps = settings.epochs * self.batches_per_epoch
        self.schedule = settings.make_schedule(self.optimizer, num_steps)
        self.kl_warmup = KLWarmup(round(settings.kl_warmup * self.batches_per_epoch))
        balance = [KLBalance(self.kl_warmup.num_steps)] if settings.kl_balance else []
        decay = settings.average_decay
        self.average = WeightAverage(trainable(program), decay) if decay else None
        if self.average is not None:
            self.average.warn_of_statistics(program)
        self.step = SVIStep(
            program,
            estimator,
            self.optimizer,
            fabric,
            [self.kl_warmup, *balance, *settings.handlers],
            self.num_data,
            settings.clip_grad_norm,
            settings.compile_worth(self.num_data),
            settings.max_skipped,
            self.average,
        )
        self.at = Position()
        self.loss_sum = torch.zeros((), dtype=torch.float64, device=fabric.device)
        self.norm_sum = torch.zeros((), dtype=torch.float64, device=fabric.device)
        self.best_parameters: dict[str, Tensor] | None = None

    def run(self, stop: StopRequest) -> None:
        """Train to the end, or until stopped.

        Raises:
            TrainingInterrupted: a signal came; a checkpoint was written.
        """
        self._save()
        # The program was validated when it was primed; within the loop that costs a fifth.
        with self.program.scope(), pyro.validation_enabled(False):
            self.program.sealed = True
            while self.at.epoch < self.settings.epochs and not self._out_of_patience():
                self._train_epoch(stop)
                self._end_epoch()
                self._heed(stop)

    def _train_epoch(self, stop: StopRequest) -> None:
        self.program.train()
        started = saved = time.monotonic()
        order = epoch_order(
            self.data.train, self.settings.batch_size, self.settings.seed, self.at.epoch
        )
        rest = order[self.at.batch * self.settings.batch_size :]
        for batch in self.data.train.batches(self.settings.batch_size, rest):
            self._train_step(batch)
            self._heed(stop)
            now = time.monotonic()
            if now - saved >= self.settings.checkpoint_every:
                self._save()
                saved = now
        self.at.seconds += time.monotonic() - started

    def _heed(self, stop: StopRequest) -> None:
        """Write a checkpoint and stop, if a signal asked for it."""
        if stop.signum is not None and self.run_dir is not None:
            self._save()
            raise TrainingInterrupted(stop.signum, self.run_dir)

    def _train_step(self, batch: dict[str, Tensor]) -> None:
        self.step.at(self.at.step)
        loss, norm = self.step(batch)
        count = batch_size(batch)
        if self.step.skips.count > self.at.skipped:
            self.at.skip(count)
        else:
            self.loss_sum += loss * count
            self.norm_sum += norm
        self._step_schedule()
        self.at.step += 1
        self.at.batch += 1
        self.at.data_seen += count
        self.progress.advance(count, loss)

    def _step_schedule(self) -> None:
        if self.schedule is None:
            return
        with nullcontext() if self.step.started else warnings.catch_warnings():
            if not self.step.started:  # torch warns of a schedule ahead of the optimizer
                warnings.simplefilter("ignore", UserWarning)
            self.schedule.step()

    def _averaged(self) -> AbstractContextManager[None]:
        """Within, the parameters are their averages, if the run keeps these."""
        return nullcontext() if self.average is None else self.average.in_place()

    def _row(self) -> dict[str, Any]:
        """The metrics of the epoch that is done."""
        with self._averaged():
            numbers = self.validator(self.program)
        data = self.at.data_seen - self.at.skipped_data
        batches = self.at.batch - self.at.skipped_batches
        return {
            "epoch": self.at.epoch + 1,
            "step": self.at.step,
            "train_loss": float(self.loss_sum) / data if data else math.nan,
            **numbers,
            "grad_norm": float(self.norm_sum) / batches if batches else math.nan,
            **({"skipped": self.at.skipped_batches} if self.settings.max_skipped else {}),
            "kl_weight": self._kl_weight(),
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "seconds": round(self.at.seconds, 3),
        }

    def _end_epoch(self) -> None:
        self.step.settle()
        row = self._row()
        if not math.isfinite(row["valid_elbo"]):
            raise NonFiniteLossError(
                f"the validation ELBO became {row['valid_elbo']} after epoch {row['epoch']}. The "
                "checkpoint before it stays. Usual remedies: a smaller learning rate, a floor "
                "under scales."
            )
        self.at.end_epoch(row)
        self.loss_sum.zero_()
        self.norm_sum.zero_()
        if self._is_best(row["valid_elbo"]):
            self._save(BEST, LAST)
        else:
            self._save(LAST)
        self.fabric.log_dict(row, step=self.at.step)
        self.progress.epoch_done(row)

    def _kl_weight(self) -> float:
        """Of all latent sites, by all schedules together."""
        weights = [h.weight for h in self.step.handlers if isinstance(h, KLWeight) and not h.sites]
        return math.prod(weights)

    def _is_best(self, elbo: float) -> bool:
        """Whether this epoch is the best so far; without a folder its parameters are kept here."""
        if not elbo > self.at.best_elbo:
            return False
        self.at.best_elbo, self.at.best_epoch = elbo, self.at.epoch
        if self.run_dir is None:
            with self._averaged():
                self.best_parameters = {k: v.clone() for k, v in self.program.state_dict().items()}
        return True

    def _out_of_patience(self) -> bool:
        patience = self.settings.patience
        return patience is not None and self.at.epoch - self.at.best_epoch >= patience

    @property
    def stopped_early(self) -> bool:
        """Whether patience ran out before the last epoch."""
        return self.at.epoch < self.settings.epochs and self._out_of_patience()

    def _save(self, *names: str) -> None:
        if self.run_dir is not None:
            self.step.settle()
            first, *others = (self.run_dir / "checkpoints" / name for name in names or (LAST,))
            with self._averaged():
                save_checkpoint(first, self._state(), *others)

    def _estimator_state(self) -> nn.Module:
        """What the estimator keeps from step to step; nothing, for one of Pyro's."""
        return getattr(self.estimator, "state", nn.Module())

    def _state(self) -> dict[str, Any]:
        return {
            "program": self.program.state_dict(),
            "average": None if self.average is None else self.average.state(),
            "estimator": self._estimator_state().state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": None if self.schedule is None else self.schedule.state_dict(),
            "position": asdict(self.at),
            "sums": [self.loss_sum, self.norm_sum],
            "rng": rng_state(),
            "settings": self.settings.plain(),
            "num_data": self.num_data,
            "versions": versions(),
        }

    def resume(self, path: Path) -> None:
        """Take up the state of a checkpoint.

        Raises:
            PplError: it is of a run with other settings, data or parameters.
        """
        state = load_checkpoint(path)
        check_same_run(state, self.settings, self.num_data, path)
        load_parameters(self.program, state, path)
        if self.average is not None:
            self.average.load(state["average"])
        self._estimator_state().load_state_dict(state.get("estimator", {}))
        self.optimizer.load_state_dict(state["optimizer"])
        if self.schedule is not None:
            self.schedule.load_state_dict(state["schedule"])
        self.at = Position(**state["position"])
        if self.at.epoch > self.settings.epochs:
            raise PplError(
                f"{path} is at epoch {self.at.epoch} already; give epochs above that, not "
                f"{self.settings.epochs}"
            )
        for total, saved in zip((self.loss_sum, self.norm_sum), state["sums"], strict=True):
            total.copy_(saved)
        set_rng_state(state["rng"])
        self.step.skips.count = self.at.skipped
        # Or the next would be eager in a compiled run.
        self.step.started = self.at.step > self.at.skipped
        self.step.at(max(0, self.at.step - 1))  # no step may be left in the epoch to set it
        for row in self.at.history:
            self.fabric.log_dict(row, step=row["step"])
        self.progress.resume(self.at.epoch * self.num_data + self.at.data_seen, self.at.history)

    def give(self, keep: str) -> None:
        """Give the program the parameters that are kept: averages, if the run keeps these.

        Args:
            keep: ``best``: of the epoch with the best validation ELBO; or ``last``.
        """
        if self.average is not None:
            self.average.swap()
        if keep == "last":
            return
        if self.run_dir is not None and (path := self.run_dir / "checkpoints" / BEST).is_file():
            load_parameters(self.program, load_checkpoint(path), path)
        elif self.best_parameters is not None:
            self.program.load_state_dict(self.best_parameters)
