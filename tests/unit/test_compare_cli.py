"""``ppl compare``: what it prints, writes and refuses."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import xarray as xr

from inference.cli import main

SMALL = ["--model.hidden_dims", "[8]", "--model.latent_dim", "2"]
FILES = ["comparison.csv", "comparison.md", "comparison.nc"]
FIGURES = ["bias.png", "cost.png", "snr.png", "variance.png"]


def ppl(capsys, *words: str) -> tuple[int, str, str]:
    status = main(list(words))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_compare_writes_tables_figures_and_curves(tmp_path, capsys):
    out = tmp_path / "cmp"
    words = ["--estimators", "pathwise,analytic_kl,enumerate", "--num_reps", "6", "--seeds", "0,1"]
    status, printed, _ = ppl(
        capsys, "compare", "vae", "--data", "digits", *SMALL, *words, "--epochs", "1",
        "--out", str(out), "--json",
    )  # fmt: skip
    assert status == 0
    names = sorted(path.name for path in out.iterdir())
    assert names == sorted([*FILES, *FIGURES, "training.nc", "training.png"])
    numbers = json.loads(printed)
    assert numbers["pathwise"]["variance"] > 0
    assert numbers["enumerate"].startswith("not applicable: estimator 'enumerate' sums over")
    with xr.open_dataset(out / "comparison.nc", engine="h5netcdf") as table:
        assert table["estimator"].values.tolist() == ["pathwise", "analytic_kl", "enumerate"]
        assert table.attrs["batch_size"] == 100
        variance = table["variance"].sel(estimator="pathwise", group="all").item()
    assert variance == numbers["pathwise"]["variance"]
    with open(out / "comparison.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 4  # encoder, decoder, likelihood, all
    assert float(rows[3]["variance"]) == variance
    assert "| pathwise | ELBO | 1 |" in (out / "comparison.md").read_text()
    with xr.open_dataset(out / "training.nc", engine="h5netcdf") as training:
        assert dict(training.sizes) == {"estimator": 3, "seed": 2, "epoch": 1}

    status, _, error = ppl(capsys, "compare", "vae", "--data", "digits", "--out", str(out))
    assert status == 2
    assert "exists already; name another folder by --out, or --overwrite" in error


def test_compare_before_and_after_a_runs_training(tmp_path, capsys):
    run, out = tmp_path / "run", tmp_path / "cmp"
    words = ["train", "vae", "--data", "digits", *SMALL, "--epochs", "1", "--out", str(run)]
    assert main(words) == 0
    before = sorted(run.rglob("*"))
    status, printed, _ = ppl(
        capsys, "compare", "--checkpoint", str(run), "--estimators", "pathwise",
        "--num_reps", "4", "--batch_size", "20", "--out", str(out),
    )  # fmt: skip
    assert status == 0
    assert "pathwise @ initialization" in printed
    with xr.open_dataset(out / "comparison.nc", engine="h5netcdf") as table:
        assert table["checkpoint"].values.tolist() == ["initialization", "after epoch 1"]
        loss = table["loss"].sel(estimator="pathwise").values
        assert np.diff(loss) < 0
    assert sorted(run.rglob("*")) == before


def test_the_parameters_of_initialization_are_those_that_training_began_with(tmp_path):
    """A run of seed 3 is compared from the initialization of seed 3, whatever --seed is."""
    run, out = tmp_path / "run", tmp_path / "cmp"
    common = ["vae", "--data", "digits", *SMALL, "--seed", "3"]
    assert main(["train", *common, "--epochs", "1", "--out", str(run)]) == 0
    options = ["--estimators", "pathwise", "--num_reps", "4", "--batch_size", "1437"]
    compare = ["compare", "--checkpoint", str(run), *options]
    assert main([*compare, "--seed", "8", "--out", str(out)]) == 0
    assert main(["compare", *common, *options, "--out", str(tmp_path / "new")]) == 0
    tables = []
    for folder in (out, tmp_path / "new"):
        with xr.open_dataset(folder / "comparison.nc", engine="h5netcdf") as table:
            tables.append(table.load())
    norms = [t["squared_norm"].sel(estimator="pathwise", group="all").values for t in tables]
    assert norms[0][0] == pytest.approx(norms[1], rel=0.1)  # one initialization, other draws


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["vae", "--data", "digits", "--estimators", "pathwize"], "Did you mean 'pathwise'?"),
        (["vae", "--data", "digits", "--seeds", "a,b"], "seeds must be whole numbers"),
        (["vae", "--data", "digits", "--num_reps", "2"], "num_reps must be at least 4"),
        (["vae", "--data", "digits", "--num_rep", "5"], "Did you mean --num_reps"),
        (["vae", "--data", "digits", "--batch_size", "0"], "batch_size must be at least 1"),
        (["vae", "--data", "digits", "--reference", "closed_form"], "no method closed_form_elbo"),
        (["--checkpoint", "nowhere"], "nowhere does not exist"),
        (["vae"], "data"),
        ([], "which model?"),
    ],
)
def test_mistakes_are_one_line_messages(tmp_path, monkeypatch, capsys, words, message):
    monkeypatch.chdir(tmp_path)
    status, _, error = ppl(capsys, "compare", *words)
    assert status == 2
    assert message in error
    assert len(error.strip().splitlines()) == 1
    assert not list(Path(tmp_path).iterdir())


def test_help_tells_the_options(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["compare", "vae", "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for option in ("--estimators", "--num_reps", "--seeds", "--model.latent_dim", "--binarize"):
        assert option in text
