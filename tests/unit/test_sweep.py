"""Sweeps: a run a value, resumed where it was, and the curve of rate against distortion."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import yaml

from inference import commands
from inference.cli import main
from inference.parser import several_values
from inference.plotting import rate_distortion
from inference.sweep import sweep
from ppl_models.errors import PplError


@pytest.fixture(scope="module", autouse=True)
def _no_pictures():
    """A run's own pictures are tested elsewhere and take longer than all of its training."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(commands.report, "make_pictures", lambda run: {})
        yield


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """Of a small program on 100 images of 4×4 pixels that two numbers make."""
    draw = np.random.default_rng(0)
    folder = tmp_path_factory.mktemp("data")
    images = draw.normal(size=(100, 2)) @ draw.normal(size=(2, 16)) + 0.1 * draw.normal(
        size=(100, 16)
    )
    np.save(folder / "x.npy", images.reshape(100, 1, 4, 4))
    return {
        "program": "beta_vae",
        "data": str(folder / "x.npy"),
        "model": {"latent_dim": 2, "hidden_dims": [16]},
        "epochs": 3,
        "batch_size": 10,
        "learning_rate": 0.03,
        "device": "cpu",
    }


@pytest.fixture(scope="module")
def swept(config, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sweep") / "betas"
    return folder, sweep(config, "model.beta", [0.1, 8.0], folder)


def test_every_value_has_a_run_of_its_own(swept):
    folder, found = swept
    assert [run.name for run in found.runs] == ["beta=0.1", "beta=8.0"]
    for run, beta in zip(found.runs, (0.1, 8.0), strict=True):
        written = yaml.safe_load((run / "config.yaml").read_text())
        assert written["model"] == {"latent_dim": 2, "hidden_dims": [16], "beta": beta}
        assert (run / "report.html").is_file()
    rows = json.loads((folder / "sweep.json").read_text())
    assert [row["model.beta"] for row in rows] == [0.1, 8.0]
    assert [row["epoch"] for row in rows] == [3, 3]  # the last, not the best
    assert (folder / "rate_distortion.png").read_bytes().startswith(b"\x89PNG")


def test_a_dearer_rate_is_lower_and_the_elbo_is_not_scaled(swept):
    _, found = swept
    cheap, dear = found.rows
    assert cheap["rate"] > dear["rate"]
    assert cheap["distortion"] < dear["distortion"]
    for row in found.rows:
        assert row["elbo"] == pytest.approx(-row["rate"] - row["distortion"])


def test_the_same_command_goes_on_and_trains_nothing_twice(config, swept, tmp_path, monkeypatch):
    _, first = swept
    out = tmp_path / "betas"
    trained = []
    train = commands.train
    monkeypatch.setattr(
        commands, "train", lambda plan, run: (trained.append(run.name), train(plan, run))
    )
    sweep(config, "model.beta", [0.1], out)
    assert trained == ["beta=0.1"]
    (out / "beta=0.1" / "report.html").unlink()  # as of a run that was stopped at the end
    again = sweep(config, "model.beta", [0.1, 8.0], out)
    assert trained == ["beta=0.1", "beta=8.0"]
    assert (out / "beta=0.1" / "report.html").is_file()
    assert again.rows == first.rows


def test_a_run_that_was_stopped_on_the_way_is_resumed_to_its_end(config, swept, tmp_path):
    _, first = swept
    run = tmp_path / "beta=0.1"
    short = config | {"model": config["model"] | {"beta": 0.1}, "epochs": 1}
    commands.train(short, run)
    longer = yaml.safe_load((run / "config.yaml").read_text()) | {"epochs": 3}
    (run / "config.yaml").write_text(yaml.safe_dump(longer))  # it was to have three
    (run / "report.html").unlink()
    again = sweep(config, "model.beta", [0.1], tmp_path)
    assert again.rows[0] == first.rows[0]
    assert len((run / "metrics.csv").read_text().splitlines()) == 4


def test_other_settings_in_the_folder_are_refused(config, swept):
    folder, _ = swept
    with pytest.raises(PplError, match=r"another epochs \(3, asked for: 5\); name another folder"):
        sweep(config | {"epochs": 5}, "model.beta", [0.1], folder)
    with pytest.raises(PplError, match="another model"):
        sweep(config | {"model": {"latent_dim": 4}}, "model.beta", [0.1], folder)


@pytest.mark.parametrize("values", [[], [1.0, 1.0]])
def test_values_are_needed_each_once(values, config, tmp_path):
    with pytest.raises(PplError, match="needs values, each once"):
        sweep(config, "model.beta", values, tmp_path)


def test_the_command_sweeps_any_option(config, tmp_path, capsys):
    line = f"sweep vae --data {config['data']} --learning_rate 1e-3,1e-2 --epochs 1"
    assert main([*line.split(), "--model.hidden_dims=[8]", "--out", str(tmp_path), "--json"]) == 0
    numbers = json.loads(capsys.readouterr().out)
    assert list(numbers) == ["learning_rate=0.001", "learning_rate=0.01", "table", "file"]
    assert Path(numbers["file"]).is_file()
    assert {"elbo", "rate", "distortion", "active_units"} <= set(numbers["learning_rate=0.01"])


ERRORS = [
    ("vae --data digits --out DIR", "is over one setting.*here: none"),
    ("vae --data digits --epochs 1,2 --seed 1,2 --out DIR", "here: --epochs and --seed"),
    ("vae --data digits --epochs 1,two --out DIR", "epochs"),
    ("vae --data digits --epochs 1,2", "out"),
    ("vae --data digits --model.bet 1,2 --out DIR", "Did you mean --model.beta"),
    ("vea --data digits --epochs 1,2 --out DIR", "Did you mean 'vae'"),
]


@pytest.mark.parametrize(("words", "message"), ERRORS, ids=[words for words, _ in ERRORS])
def test_what_cannot_be_swept_is_told_before_anything_is_trained(words, message, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["sweep", *words.replace("DIR", str(out)).split()]) == 2
    error = capsys.readouterr().err
    assert re.search(message, error), error
    assert not out.exists()


def test_help_of_a_sweep_tells_the_models_options(capsys):
    with pytest.raises(SystemExit):
        main(["sweep", "beta_vae", "--help"])
    assert "--model.beta" in capsys.readouterr().out


def test_several_values_are_split_outside_brackets():
    option, lines = several_values(["vae", "--hidden", "[1,2],[3]", "--epochs=4"])
    assert option == "--hidden"
    assert lines == [["vae", "--hidden", v, "--epochs=4"] for v in ("[1,2]", "[3]")]
    assert several_values(["--a=1,2"])[1] == [["--a", "1"], ["--a", "2"]]


def test_the_curve_shows_the_line_of_the_best_elbo():
    figure = rate_distortion([1.0, 9.0, 4.0], [100.0, 94.0, 95.0], ["4", "0.5", "1"], "beta")
    axes = figure.axes[0]
    curve, line = axes.get_lines()
    assert curve.get_xdata().tolist() == [1, 4, 9]
    assert curve.get_ydata().tolist() == [100, 95, 94]
    total = line.get_xdata() + line.get_ydata()
    assert total.tolist() == pytest.approx([99, 99])  # the best: 4 + 95
    assert axes.get_legend().get_texts()[0].get_text() == "ELBO = -99.0"
    assert [t.get_text() for t in axes.texts] == ["beta = 4", "beta = 0.5", "beta = 1"]
