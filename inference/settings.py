"""What a training run is set to."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from pyro.infer import ELBO
from torch.optim.lr_scheduler import CosineAnnealingLR, LambdaLR, LRScheduler

from inference.compiled_weights import MANY_ROWS
from inference.handlers import Handler
from inference.optimizers import Muon
from ppl_models.errors import PplError, UnknownNameError

OptimizerFactory = Callable[[Iterable[torch.nn.Parameter]], torch.optim.Optimizer]
ScheduleFactory = Callable[[torch.optim.Optimizer], LRScheduler]

WORTH_COMPILING = 10_000
"""Steps of one shape that pay for compiling them (5 to 10 seconds, 1 ms and more saved a step).

A number, not a measurement, so that a run does the same whatever the machine is busy with.
"""

FIXED_ON_RESUME = (
    "estimator",
    "num_particles",
    "optimizer",
    "learning_rate",
    "lr_schedule",
    "batch_size",
    "kl_warmup",
    "kl_balance",
    "handlers",
    "clip_grad_norm",
    "average_decay",
    "seed",
    "precision",
    "compile",
)
"""Settings that a resumed run shares with its first part, or it would be another run."""


@dataclass(frozen=True)
class Settings:
    """Options of :func:`inference.fit`, which documents them."""

    estimator: str | ELBO
    num_particles: int
    optimizer: str | OptimizerFactory
    learning_rate: float
    lr_schedule: str | ScheduleFactory
    epochs: int
    batch_size: int
    kl_warmup: float
    clip_grad_norm: float | None
    patience: int | None
    valid_particles: int | None
    checkpoint_every: float
    seed: int
    precision: str
    compile: str | bool = "auto"
    handlers: tuple[Handler, ...] = ()
    kl_balance: bool = False
    max_skipped: int = 0
    average_decay: float = 0.0

    def __post_init__(self) -> None:
        positive = {
            "epochs": self.epochs,
            "batch_size": self.batch_size,
            "num_particles": self.num_particles,
            "valid_particles": self.valid_particles,
            "learning_rate": self.learning_rate,
            "clip_grad_norm": self.clip_grad_norm,
            "patience": self.patience,
        }
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise PplError(f"{name} must be positive, got {value}")
        if self.compile not in (True, False, "auto"):
            raise PplError(f"compile must be 'auto', True or False, got {self.compile!r}")
        if self.kl_warmup < 0:
            raise PplError(f"kl_warmup must not be negative, got {self.kl_warmup}")
        if self.kl_balance and not self.kl_warmup:
            raise PplError(
                "kl_balance weighs latent sites while the KL term warms up, and kl_warmup is 0: "
                "give the epochs of the warm-up, such as kl_warmup=5"
            )
        if self.max_skipped < 0:
            raise PplError(f"max_skipped must not be negative, got {self.max_skipped}")
        if not 0 <= self.average_decay < 1:
            raise PplError(
                "average_decay must be at least 0 (no average) and below 1, such as 0.999; got "
                f"{self.average_decay}"
            )
        if isinstance(self.lr_schedule, str) and self.lr_schedule not in SCHEDULES:
            raise UnknownNameError("learning-rate schedule", self.lr_schedule, SCHEDULES)
        if isinstance(self.optimizer, str) and self.optimizer not in optimizers():
            raise UnknownNameError("optimizer", self.optimizer, optimizers())

    def compile_worth(self, num_data: int) -> Callable[[int], bool] | None:
        """Whether batches of so many data come often enough to be compiled; None: none do.

        Args:
            num_data: size of the training set.
        """
        full, short = divmod(num_data, self.batch_size)
        often = {self.batch_size: full * self.epochs, short: self.epochs}
        most = max(often, key=lambda rows: often[rows])
        if not self.compile or (self.compile == "auto" and often[most] < WORTH_COMPILING):
            return None
        return lambda rows: rows == most or often.get(rows, 0) >= WORTH_COMPILING

    def compiles_validation(self, num_data: int, num_rows: int) -> bool:
        """Whether validation has so many rows, over all epochs, that compiling it pays.

        Args:
            num_data: size of the training set.
            num_rows: of a validation, data times draws.
        """
        return self.compile_worth(num_data) is not None and self.epochs * num_rows >= MANY_ROWS

    def plain(self) -> dict[str, Any]:
        """The settings as plain values; objects by their type's name."""
        return {
            name: value if isinstance(value, str | int | float | None) else type(value).__name__
            for name, value in vars(self).items()
        } | {"handlers": [repr(handler) for handler in self.handlers]}

    def make_optimizer(self, parameters: Iterable[torch.nn.Parameter]) -> torch.optim.Optimizer:
        """The optimizer over these parameters; fused where torch has it."""
        if not isinstance(self.optimizer, str):
            return self.optimizer(parameters)
        cls = optimizers()[self.optimizer]
        fused: dict[str, Any] = {"fused": True} if self.optimizer in FUSED else {}
        return cls(parameters, lr=self.learning_rate, **fused)

    def make_schedule(self, optimizer: torch.optim.Optimizer, num_steps: int) -> LRScheduler | None:
        """The learning-rate schedule, stepped after every update; None if it is constant."""
        if not isinstance(self.lr_schedule, str):
            return self.lr_schedule(optimizer)
        return SCHEDULES[self.lr_schedule](optimizer, num_steps)


FUSED = ("Adam", "AdamW", "SGD", "Adagrad")


def optimizers() -> dict[str, Any]:
    """Torch's optimizers that take gradients alone, by name; Muon is ours, for all parameters."""
    others = ("LBFGS", "SparseAdam", "Optimizer")
    found = {
        name: cls
        for name, cls in vars(torch.optim).items()
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer) and name not in others
    }
    return found | {"Muon": Muon}


def _constant(optimizer: torch.optim.Optimizer, num_steps: int) -> None:
    return None


def _cosine(optimizer: torch.optim.Optimizer, num_steps: int) -> LRScheduler:
    return CosineAnnealingLR(optimizer, T_max=num_steps)


def _linear(optimizer: torch.optim.Optimizer, num_steps: int) -> LRScheduler:
    return LambdaLR(optimizer, lambda step: max(0.0, 1 - step / num_steps))


SCHEDULES: dict[str, Callable[[torch.optim.Optimizer, int], LRScheduler | None]] = {
    "constant": _constant,
    "cosine": _cosine,
    "linear": _linear,
}
"""Learning-rate schedules: constant, or decaying to zero over the run."""
