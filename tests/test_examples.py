"""Every example runs; one that no test runs does not exist."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
import warnings
from pathlib import Path

import nbformat
import pytest
import torch
from nbclient import NotebookClient

ROOT = Path(__file__).parents[1]
ARGUMENTS = {
    "autoencoder_or_vae.py": ["--epochs", "2"],
    "first_steps.py": ["--epochs", "2"],
    "iwae_table.py": [
        *("--rows", "vae", "--short", "--data", "mnist5k", "--epochs", "1"),
        *("--num_particles", "5"),
    ],
    "latent_space.py": ["--data", "digits", "--epochs", "1", "--betas", "0.5", "4"],
    "restore_photograph.py": ["--steps", "2", "--side", "40"],
    "why_blurry.py": ["--data", "digits", "--epochs", "1"],
}
"""Arguments that make each script short."""
PARAMETERS = {
    "compare_estimators.ipynb": "NUM_REPS, EPOCHS, SEEDS = 8, 1, (0,)",
    "diagnose_vae.ipynb": "EPOCHS, SIMULATIONS = 2, 50",
    "diagnose_bayesian_gmm.ipynb": "EPOCHS, NUM_DRAWS = 5, 60\n"
    "NUTS = {'num_samples': 20, 'warmup': 10, 'num_draws': 60, 'starts': 'guide'}",
    "discrete_latents.ipynb": "EPOCHS = 1",
    "new_model.ipynb": "EPOCHS = 2",
}
"""What takes the place of each notebook's cell that is tagged ``parameters``."""


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_it_runs(name, tmp_path):
    command = [sys.executable, str(ROOT / "examples" / name), *ARGUMENTS[name]]
    environment = os.environ | {"MPLBACKEND": "agg"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert list(tmp_path.rglob("*.png"))


def test_the_psnr_of_a_noisy_photograph_is_that_of_its_noise(tmp_path, capsys):
    """20 log10(255 / 25) = 20.17 dB; clipped to [0, 1] first, it would be up to 0.5 dB more."""
    example = runpy.run_path(str(ROOT / "examples" / "restore_photograph.py"))
    clean = torch.zeros(1, 64, 64)
    noisy = example["add_noise"](clean, example["SIGMA"])
    example["draw"]({"noisy": noisy, "reference": clean}, clean, tmp_path / "views.png")
    found = float(capsys.readouterr().out.split()[-2])
    assert found == pytest.approx(20.17, abs=0.2)


def test_every_example_is_run():
    assert {p.name for p in (ROOT / "examples").iterdir() if p.is_file()} == {
        *ARGUMENTS,
        *PARAMETERS,
    }


def outputs(notebook):
    return [o for cell in notebook.cells for o in cell.get("outputs", [])]


def kinds_of_outputs(notebook):
    """The set of each cell: how often a printed text is flushed is a matter of the clock."""
    return [{o["output_type"] for o in cell.get("outputs", [])} for cell in notebook.cells]


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(PARAMETERS))
def test_a_notebook_runs_from_top_to_bottom(name, monkeypatch):
    monkeypatch.setenv("PYTHONWARNINGS", "ignore")  # of what is not installed, such as ipywidgets
    notebook = nbformat.read(ROOT / "examples" / name, as_version=4)
    shown = kinds_of_outputs(notebook)
    chosen = [c for c in notebook.cells if "parameters" in c.metadata.get("tags", [])]
    assert len(chosen) == 1
    chosen[0].source = PARAMETERS[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the kernel's own: ports, event loops
        NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    assert kinds_of_outputs(notebook) == shown  # as committed: executed
    assert sum("image/png" in o.get("data", {}) for o in outputs(notebook)) >= 5
    assert not [o for o in outputs(notebook) if o["output_type"] == "stream" and o.name == "stderr"]


PARTS_OF_BENCHMARKS = {"harness.py", "numpyro_arm.py", "programs.py"}


@pytest.mark.parametrize("path", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda p: p.name)
def test_benchmarks_compile_and_say_how_they_run(path):
    text = path.read_text()
    compile(text, str(path), "exec")
    assert path.name in PARTS_OF_BENCHMARKS or f"python benchmarks/{path.name}" in text


def test_a_long_benchmark_goes_on_where_it_was(tmp_path, monkeypatch):
    """What is measured is on disk at once, and only for the same code and configuration."""
    harness = runpy.run_path(str(ROOT / "benchmarks" / "harness.py"))
    kept = harness["Kept"]
    monkeypatch.setitem(kept.__init__.__globals__, "RESULTS", tmp_path)
    assert harness["COMMIT"]
    first = kept("long", {"prior": "a"})
    assert first.value("one", lambda: 1.5) == 1.5
    again = kept("long", {"prior": "a"})
    assert again.value("one", lambda: pytest.fail("measured twice")) == 1.5
    with pytest.raises(SystemExit, match="go on with the same, or remove the file"):
        kept("long", {"prior": "b"})
    again.remove()
    assert list(tmp_path.iterdir()) == []
