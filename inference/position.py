"""Where in a run the training is, and whether a checkpoint is of the same run."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from inference.settings import FIXED_ON_RESUME, Settings
from ppl_models.errors import PplError


@dataclass
class Position:
    """Where in the run it is; all of it is in the checkpoint."""

    epoch: int = 0
    step: int = 0
    batch: int = 0
    """Batches of this epoch that are done."""
    data_seen: int = 0
    """Data of this epoch that are done."""
    skipped: int = 0
    """Updates of the whole run that were left out, for they were not finite."""
    skipped_batches: int = 0
    """Those of this epoch."""
    skipped_data: int = 0
    """Data of these."""
    best_elbo: float = -math.inf
    best_epoch: int = 0
    seconds: float = 0.0
    history: list[dict[str, Any]] = field(default_factory=list)

    def skip(self, count: int) -> None:
        """The update by a batch of so many data was left out."""
        self.skipped += 1
        self.skipped_batches += 1
        self.skipped_data += count

    def end_epoch(self, row: dict[str, Any]) -> None:
        """An epoch is done, with these metrics."""
        self.history.append(row)
        self.epoch += 1
        self.batch = self.data_seen = self.skipped_batches = self.skipped_data = 0


def check_same_run(state: dict[str, Any], settings: Settings, num_data: int, path: Path) -> None:
    """Refuse the checkpoint of another run.

    Args:
        state: of the checkpoint.
        settings: of the run that is to go on from it.
        num_data: size of its training set.
        path: of the checkpoint.

    Raises:
        PplError: settings or data differ.
    """
    now = settings.plain()
    newer: dict[str, Any] = {f.name: [] if f.default == () else f.default for f in fields(Settings)}
    saved = newer | state["settings"]  # a setting may be newer than the checkpoint
    for name in FIXED_ON_RESUME:
        if saved[name] != now[name]:
            raise PplError(
                f"cannot resume {path} with {name}={now[name]!r}: it was trained with "
                f"{saved[name]!r}. Only the number of epochs, patience, max_skipped, device, "
                "validation and checkpoint intervals may change."
            )
    if settings.lr_schedule != "constant" and saved["epochs"] != settings.epochs:
        raise PplError(
            f"cannot resume {path} with epochs={settings.epochs}: its learning rate falls over "
            f"{saved['epochs']} epochs (lr_schedule={settings.lr_schedule!r}). Only a "
            "run with a constant learning rate can be given more."
        )
    if state["num_data"] != num_data:
        raise PplError(f"cannot resume {path} on {num_data} data: it had {state['num_data']}")
