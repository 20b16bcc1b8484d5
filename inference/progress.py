"""The progress bar: loss, validation ELBO, data a second, time left."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm


def watched() -> bool:
    """Whether somebody is looking: a terminal, or a notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return sys.stderr.isatty() or ("ipykernel" in sys.modules and shell is not None)


class Progress:
    """A bar over all data of all epochs.

    Args:
        total: data times epochs.
        enabled: show it; when left out, if somebody is looking.
    """

    def __init__(self, total: int, enabled: bool | None = None) -> None:
        shown = watched() if enabled is None else enabled
        self.bar = tqdm(total=total, unit=" data", unit_scale=True, disable=not shown)
        self._loss: Tensor | None = None
        self._elbo = ""

    def advance(self, count: int, loss: Tensor) -> None:
        """A step of this many data is done."""
        if not self.bar.disable:
            self._loss = loss
            if self.bar.update(count):  # drawn just now
                self._describe()

    def epoch_done(self, row: Mapping[str, Any]) -> None:
        """An epoch is done, with these metrics."""
        self._elbo = f" · epoch {row['epoch']} · valid ELBO {row['valid_elbo']:.2f}"
        if not self.bar.disable:
            self._describe()

    def _describe(self) -> None:
        loss = f"loss {float(self._loss):.2f}" if self._loss is not None else ""
        self.bar.set_description_str(f"{loss}{self._elbo}", refresh=False)

    def resume(self, done: int, history: Sequence[Mapping[str, Any]]) -> None:
        """Start from where a resumed run is."""
        self.bar.initial = self.bar.n = done
        if history:
            self.epoch_done(history[-1])

    def close(self) -> None:
        """Leave the bar as it is."""
        self.bar.close()
