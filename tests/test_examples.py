"""Every example runs; one that no test runs does not exist."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ARGUMENTS = {"first_steps.py": ["--epochs", "2"]}
"""Arguments that make each example short."""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_it_runs(name, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / name), *ARGUMENTS[name]]
    environment = os.environ | {"MPLBACKEND": "agg"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*.png"))


def test_every_example_is_run():
    assert {p.name for p in (ROOT / "examples").iterdir() if p.is_file()} == set(ARGUMENTS)


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_benchmarks_compile_and_say_how_they_run(path):
    text = path.read_text()
    compile(text, str(path), "exec")
    assert path.name == "harness.py" or f"python benchmarks/{path.name}" in text
