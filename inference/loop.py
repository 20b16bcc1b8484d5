"""The training loop: epochs, validation, checkpoints, and going on where it was left."""

from __future__ import annotations

import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from inference.checkpoint import load_checkpoint, load_parameters, save_checkpoint
from inference.data.dataset import DataSet
from inference.devices import rng_state, set_rng_state
from inference.handlers import KLWarmup, KLWeight
from inference.nonfinite import NonFiniteLossError
from inference.parameters import trained
from inference.progress import Progress
from inference.runs import versions
from inference.settings import FIXED_ON_RESUME, Settings
from inference.signals import StopRequest, TrainingInterrupted
from inference.step import SVIStep
from inference.validation import Validator
from inference.weights import batch_size
from ppl_models.errors import PplError
from ppl_models.program import Program

if TYPE_CHECKING:
    from lightning_fabric import Fabric

LAST, BEST = "last.ckpt", "best.ckpt"


@dataclass
class Position:
    """Where in the run it is; all of it is in the checkpoint."""

    epoch: int = 0
    step: int = 0
    batch: int = 0
    """Batches of this epoch that are done."""
    data_seen: int = 0
    """Data of this epoch that are done."""
    best_elbo: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)


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
        self.step = SVIStep(
            program,
            estimator,
            self.optimizer,
            fabric,
            [self.kl_warmup, *settings.handlers],
            self.num_data,
            settings.clip_grad_norm,
            settings.compile_worth(self.num_data),
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
        order = epoch_order(self.num_data, self.settings.seed, self.at.epoch)
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
        if self.schedule is not None:
            self.schedule.step()
        count = batch_size(batch)
        self.loss_sum += loss * count
        self.norm_sum += norm
        self.at.step += 1
        self.at.batch += 1
        self.at.data_seen += count
        self.progress.advance(count, loss)

    def _end_epoch(self) -> None:
        self.step.settle()
        row = {
            "epoch": self.at.epoch + 1,
            "step": self.at.step,
            "train_loss": float(self.loss_sum) / max(1, self.at.data_seen),
            **self.validator(self.program),
            "grad_norm": float(self.norm_sum) / max(1, self.at.batch),
            "kl_weight": self._kl_weight(),
            "learning_rate": float(self.optimizer.param_groups[0]["lr"]),
            "seconds": round(self.at.seconds, 3),
        }
        if not math.isfinite(row["valid_elbo"]):
            raise NonFiniteLossError(
                f"the validation ELBO became {row['valid_elbo']} after epoch {row['epoch']}. The "
                "checkpoint before it stays. Usual remedies: a smaller learning rate, a floor "
                "under scales."
            )
        self.at.history.append(row)
        self.at.epoch += 1
        self.at.batch = self.at.data_seen = 0
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
            save_checkpoint(first, self._state(), *others)

    def _estimator_state(self) -> nn.Module:
        """What the estimator keeps from step to step; nothing, for one of Pyro's."""
        return getattr(self.estimator, "state", nn.Module())

    def _state(self) -> dict[str, Any]:
        return {
            "program": self.program.state_dict(),
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
        _check_same_run(state, self.settings, self.num_data, path)
        load_parameters(self.program, state, path)
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
        self.step.started = self.at.step > 0  # or the next would be eager in a compiled run
        self.step.at(max(0, self.at.step - 1))  # no step may be left in the epoch to set it
        for row in self.at.history:
            self.fabric.log_dict(row, step=row["step"])
        self.progress.resume(self.at.epoch * self.num_data + self.at.data_seen, self.at.history)

    def restore_best(self) -> None:
        """Give the program the parameters of its best epoch."""
        if self.run_dir is not None and (path := self.run_dir / "checkpoints" / BEST).is_file():
            load_parameters(self.program, load_checkpoint(path), path)
        elif self.best_parameters is not None:
            self.program.load_state_dict(self.best_parameters)


def _check_same_run(state: dict[str, Any], settings: Settings, num_data: int, path: Path) -> None:
    now = settings.plain()
    for name in FIXED_ON_RESUME:
        if state["settings"].get(name, []) != now[name]:
            raise PplError(
                f"cannot resume {path} with {name}={now[name]!r}: it was trained with "
                f"{state['settings'][name]!r}. Only the number of epochs, patience, device, "
                "validation and checkpoint intervals may change."
            )
    if settings.lr_schedule != "constant" and state["settings"]["epochs"] != settings.epochs:
        raise PplError(
            f"cannot resume {path} with epochs={settings.epochs}: its learning rate falls over "
            f"{state['settings']['epochs']} epochs (lr_schedule={settings.lr_schedule!r}). Only a "
            "run with a constant learning rate can be given more."
        )
    if state["num_data"] != num_data:
        raise PplError(f"cannot resume {path} on {num_data} data: it had {state['num_data']}")


def epoch_order(num_data: int, seed: int, epoch: int) -> Tensor:
    """The permutation of an epoch, a function of seed and epoch alone."""
    mixed = (seed * 1_000_003 + epoch) % 2**63
    return torch.randperm(num_data, generator=torch.Generator().manual_seed(mixed))
