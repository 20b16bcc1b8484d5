"""SIGINT and SIGTERM as a request to stop at the next step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by a signal, after a checkpoint was written.

    Args:
        signum: the signal.
        run_dir: folder of the run.
    """

    def __init__(self, signum: int, run_dir: Path) -> None:
        self.signum = signum
        self.run_dir = run_dir
        name = signal.Signals(signum).name
        super().__init__(
            f"{name}: stopped; the checkpoint is in {run_dir}. "
            f"Go on with: ppl train --resume {run_dir}"
        )


class StopRequest:
    """Which signal asked to stop, if any."""

    signum: int | None = None

    def __call__(self, signum: int, _: FrameType | None) -> None:
        """Note the signal; a second SIGINT ends the process at once."""
        if self.signum is not None and signum == signal.SIGINT:
            raise KeyboardInterrupt
        self.signum = signum


@contextmanager
def stop_on_signals() -> Iterator[StopRequest]:
    """Within, SIGINT and SIGTERM set the request instead of ending the process.

    Outside the main thread, where Python allows no handlers, the request is never set.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before: dict[int, Any] = {s: signal.signal(s, request) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
