"""What the benchmarks share: interleaved timing, and results with hardware and configuration."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from inference.runs import environment

T = TypeVar("T")
RESULTS = Path(__file__).parent / "results"


def _commit() -> str:
    """Of the code that is measured, with "-dirty" if files differ from it."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=7", "--exclude=*"]
    done = subprocess.run(command, cwd=RESULTS, capture_output=True, text=True, check=False)
    return done.stdout.strip() or "unknown"


COMMIT = _commit()
"""When the benchmark began; a long one may see other commits."""


def interleave(
    arms: dict[str, Callable[[], Any]],
    rounds: int,
    per_round: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Time the arms in turns, so that what disturbs the machine disturbs all of them.

    Args:
        arms: what is timed, by name.
        rounds: turns of every arm, after one that does not count.
        per_round: calls in a turn.
        clock: in seconds; ``time.process_time`` on a machine that is busy with other things.

    Returns:
        Seconds a call, one entry a round, by arm.
    """
    seconds: dict[str, list[float]] = {name: [] for name in arms}
    order = list(arms)
    for turn in range(rounds + 1):
        for name in order if turn % 2 else order[::-1]:
            started = clock()
            for _ in range(per_round):
                arms[name]()
            if turn:
                seconds[name].append((clock() - started) / per_round)
    return seconds


def medians(seconds: dict[str, list[float]]) -> dict[str, float]:
    """Median seconds a call by arm."""
    return {name: statistics.median(values) for name, values in seconds.items()}


def ratios(seconds: dict[str, list[float]], to: str) -> dict[str, float]:
    """Median over rounds of each arm's time to another's in the same round."""
    return {
        name: statistics.median(a / b for a, b in zip(values, seconds[to], strict=True))
        for name, values in seconds.items()
    }


def save(name: str, configuration: dict[str, Any], results: dict[str, Any]) -> Path:
    """Write a dated result file and print it."""
    where = environment()
    where.pop("command")
    where["cpu"] = _cpu_model()
    record = {
        "date": datetime.date.today().isoformat(),
        "commit": COMMIT,
        "configuration": configuration,
        "environment": where,
        "results": results,
    }
    path = RESULTS / f"{name}-{record['date']}.json"
    path.write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(results, indent=2))
    return path


class Kept:
    """Numbers of a long benchmark, on disk from the moment they are measured.

    Args:
        name: of the result file.
        configuration: what the numbers depend on; kept ones of another are not taken up.
    """

    def __init__(self, name: str, configuration: dict[str, Any]) -> None:
        self.path = RESULTS / f"{name}.partial.json"
        self.record: dict[str, Any] = {"configuration": configuration | {"commit": COMMIT}}
        self.record["rows"] = {}
        if self.path.is_file():
            found = json.loads(self.path.read_text())
            if found["configuration"] != self.record["configuration"]:
                raise SystemExit(
                    f"{self.path} is of {found['configuration']}, but this run of "
                    f"{self.record['configuration']}; go on with the same, or remove the file"
                )
            self.record = found

    def value(self, name: str, measure: Callable[[], T]) -> T:
        """The number, or table, of that name; measured if it is not there."""
        rows = self.record["rows"]
        if name not in rows:
            rows[name] = measure()
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text(json.dumps(self.record, indent=2))
            os.replace(temporary, self.path)
        return rows[name]

    def remove(self) -> None:
        """When the whole result is saved."""
        self.path.unlink(missing_ok=True)


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    return f"{names[0]} × {len(names)}" if names else "unknown"


def parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser that shows the benchmark's own docstring."""
    return argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter
    )
