"""Metrics of a run: CSV and JSON lines beside whatever other Fabric loggers there are."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_fabric.loggers import Logger

from inference.checkpoint import to_json, write_atomically


class MetricsFile(Logger):
    """A Fabric logger that keeps ``metrics.csv`` and ``metrics.jsonl`` of a run folder.

    The files are rewritten whole from the rows so far, so after a resume they hold exactly the
    rows that the run without the interruption would have.

    Args:
        folder: the run folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.rows: list[dict[str, Any]] = []

    @property
    def name(self) -> str:
        """Name for Fabric."""
        return "metrics"

    @property
    def version(self) -> str:
        """Version for Fabric."""
        return ""

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The configuration is in ``config.yaml``."""

    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Add a row and write the files."""
        self.rows.append(dict(metrics))
        columns = list(dict.fromkeys(key for row in self.rows for key in row))
        table = io.StringIO()
        writer = csv.DictWriter(table, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.rows)
        write_atomically(self.folder / "metrics.csv", table.getvalue().encode())
        lines = "".join(to_json(row) + "\n" for row in self.rows)
        write_atomically(self.folder / "metrics.jsonl", lines.encode())
