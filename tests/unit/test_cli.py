"""The command ``ppl``: what it prints, writes and refuses."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from inference import evaluate
from inference.cli import main, print_table
from inference.runs import load_run

MINE = '''
import pyro
import pyro.distributions as dist
import torch
from torch import nn


class Mine(nn.Module):
    """My model.

    Args:
        x_shape: from the data.
        width: of the code.
    """

    def __init__(self, x_shape=(1, 8, 8), width: int = 2):
        super().__init__()
        self.decoder = nn.Linear(width, 64)
        self.encoder = nn.Linear(64, 2 * width)
        self.width = width

    def model(self, x=None, *, size=1):
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            zeros = self.decoder.bias.new_zeros(self.width)
            z = pyro.sample("z", dist.Normal(zeros, 1.0).to_event(1))
            loc = self.decoder(z).unflatten(-1, (1, 8, 8))
            return pyro.sample("x", dist.Normal(loc, 0.3).to_event(3), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            loc, raw = self.encoder(x.flatten(1)).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, raw.exp()).to_event(1))


class NoModel:
    def guide(self, x): ...


class Conditional(Mine):
    def model(self, x, label):
        return super().model(x)
'''


def ppl(capsys, *words: str) -> tuple[int, str, str]:
    status = main(list(words))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    words = ["train", "vae", "--data", "digits", "--epochs", "2", "--model.latent_dim", "3"]
    assert main([*words, "--model.hidden_dims", "[16]", "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def mine(tmp_path) -> str:
    (tmp_path / "my_model.py").write_text(MINE)
    return str(tmp_path / "my_model.py")


def test_a_run_folder_holds_everything(run):
    names = {p.name for p in run.iterdir()}
    pictures = {"samples", "reconstructions", "learning_curves", "latent_space"}
    assert names == {
        *("config.yaml", "metrics.csv", "metrics.jsonl", "checkpoints", "evaluation.json"),
        *("environment.json", "report.html"),
        *(f"{name}.png" for name in pictures),
    }
    config = yaml.safe_load((run / "config.yaml").read_text())
    given = {"latent_dim": 3, "hidden_dims": [16]}
    left_out = {"likelihood": "normal_shared_scale", "posterior": "diagonal", "beta": 1.0}
    assert config["model"].items() >= (given | left_out).items()
    page = (run / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 4
    assert "latent_dim: 3" in page
    assert "http" not in page.replace("<!doctype html>", "")  # self-contained
    environment = json.loads((run / "environment.json").read_text())
    assert torch.__version__.startswith(environment["versions"]["torch"])


def test_evaluate_gives_one_json_object_with_the_names_of_the_house(run, capsys):
    status, out, _ = ppl(capsys, "evaluate", str(run), "--num_particles", "20", "--json")
    numbers = json.loads(out)
    assert status == 0
    assert {"elbo", "rate", "distortion", "iwae", "iwae_se", "ess", "active_units"} <= set(numbers)
    assert numbers["num_particles"] == 20
    assert json.loads((run / "evaluation.json").read_text()) == numbers
    opened = load_run(run)
    direct = evaluate(opened.program, opened.data.test.batches(512), num_particles=20)
    assert numbers["elbo"] == pytest.approx(direct.elbo)


def test_evaluate_prints_a_table_and_takes_the_split(run, capsys):
    status, out, _ = ppl(capsys, "evaluate", str(run), "--split", "valid", "--checkpoint", "last")
    assert status == 0
    rows = dict(line.split(maxsplit=1) for line in out.splitlines())
    assert rows["split"] == "valid"
    assert float(rows["iwae"]) > float(rows["elbo"])


def test_sample_and_reconstruct(run, capsys, tmp_path):
    png, arrays, pairs = (str(tmp_path / name) for name in ("s.png", "s.npz", "r.png"))
    assert ppl(capsys, "sample", str(run), "--num", "9", "--out", png)[0] == 0
    assert ppl(capsys, "sample", str(run), "--num", "5", "--out", arrays)[0] == 0
    assert ppl(capsys, "reconstruct", str(run), "--num", "4", "--out", pairs)[0] == 0
    for picture in (png, pairs):
        assert Path(picture).read_bytes().startswith(b"\x89PNG")
    with np.load(arrays) as drawn:
        assert drawn["x"].shape == (5, 1, 8, 8)
        assert drawn["z"].shape == (5, 3)


def test_a_config_makes_the_same_run_again(run, capsys, tmp_path):
    config, again = str(run / "config.yaml"), tmp_path / "again"
    assert ppl(capsys, "train", "--config", config, "--out", str(again))[0] == 0
    for name in ("metrics.jsonl", "config.yaml"):
        ours, theirs = ((folder / name).read_text() for folder in (again, run))
        if name.endswith("jsonl"):
            ours, theirs = (
                [
                    {k: v for k, v in json.loads(line).items() if k != "seconds"}
                    for line in text.splitlines()
                ]
                for text in (ours, theirs)
            )
        assert ours == theirs


def test_resume_with_more_epochs(run, capsys, tmp_path):
    folder = str(tmp_path / "run")
    words = ("train", "vae", "--data", "digits", "--epochs", "1", "--model.hidden_dims", "[8]")
    assert ppl(capsys, *words, "--out", folder)[0] == 0
    status, out, _ = ppl(capsys, "train", "--resume", folder, "--epochs", "3", "--json")
    assert status == 0
    assert json.loads(out)["epoch"] <= 3
    assert len((Path(folder) / "metrics.csv").read_text().splitlines()) == 4
    status, _, err = ppl(capsys, "train", "--resume", folder, "--learning_rate", "1")
    assert status == 2
    assert "--learning_rate" in err


def test_a_users_own_file_goes_through_the_same_door(mine, capsys, tmp_path):
    folder = str(tmp_path / "run")
    words = (f"{mine}:Mine", "--data", "digits", "--model.width", "3")
    assert ppl(capsys, "check", *words)[0] == 0
    assert ppl(capsys, "train", *words, "--epochs", "1", "--out", folder)[0] == 0
    for words in (("evaluate",), ("sample", "--num", "4"), ("reconstruct",)):
        assert ppl(capsys, words[0], folder, *words[1:])[0] == 0
    assert ppl(capsys, "train", "--resume", folder, "--epochs", "2")[0] == 0
    assert (tmp_path / "run" / "source" / "my_model.py").read_text() == MINE
    assert load_run(folder).program.owner.width == 3


def test_plain_functions_in_a_file(capsys, tmp_path):
    (tmp_path / "plain.py").write_text(
        "import pyro, torch\nimport pyro.distributions as dist\n"
        "def model(x=None, *, size=1):\n"
        "    with pyro.plate('data', size if x is None else len(x), dim=-1):\n"
        "        z = pyro.sample('z', dist.Normal(0., 1.))\n"
        "        loc = z[..., None, None, None].expand(*z.shape, 1, 8, 8)\n"
        "        return pyro.sample('x', dist.Normal(loc, 1.).to_event(3), obs=x)\n"
        "def guide(x):\n"
        "    w = pyro.param('w', torch.tensor(0.1))\n"
        "    with pyro.plate('data', len(x), dim=-1):\n"
        "        pyro.sample('z', dist.Normal(w * x.mean((1, 2, 3)), .3))\n"
    )
    folder = str(tmp_path / "run")
    words = (str(tmp_path / "plain.py"), "--data", "digits", "--epochs", "1", "--out", folder)
    assert ppl(capsys, "train", *words)[0] == 0
    assert ppl(capsys, "evaluate", folder)[0] == 0


def test_check_lists_what_is_broken(mine, capsys):
    status, _, err = ppl(capsys, "check", f"{mine}:Conditional", "--data", "digits")
    assert status == 2
    assert "names the field(s) 'label', which the data lack" in err


@pytest.mark.parametrize("command", ["list", "--help", "train --help", "train vae --help"])
def test_help_and_list(command, capsys):
    try:
        status = main(command.split())
    except SystemExit as stop:  # argparse's --help
        status = stop.code
    out = capsys.readouterr().out
    assert status == 0
    assert "data" in out
    if command == "train vae --help":
        assert "--model.latent_dim" in out
        assert "--kl_warmup" in out


ERRORS = [
    ("trian vae", "unknown command 'trian'. Did you mean 'train'"),
    ("train vea --data digits", "unknown model 'vea'. Did you mean 'vae'"),
    ("train --data digits", "which model?"),
    ("train vae", "data"),
    ("train vae --data digit", "unknown data set 'digit'. Did you mean 'digits'"),
    ("train vae --data digits --epoch 3", "Did you mean --epochs"),
    ("train --resume RUN --data mnist5k", "--data"),
    ("train vae --data digits --model.latent_dim 0", "latent_dim must be at least 1"),
    ("sample RUN --num 0", "num must be at least 1"),
    ("train vae --data digits --model.latnet_dim 3", "Did you mean --model.latent_dim"),
    ("train vae --data digits --model.latent_dim three", "latent_dim"),
    ("train vae --data digits --model.likelihood normel", "Did you mean 'normal'"),
    ("train vae --data digits --model.likelihood bernoulli", "--binarize dynamic"),
    ("train vae --data digits --estimator pathwize", "Did you mean 'pathwise'"),
    ("train vae --data digits --device gpu", "unknown device 'gpu'"),
    ("train vae --data digits --binarize statik", "Did you mean 'static'"),
    ("train vae --config nowhere.yaml", "does not exist: .*nowhere.yaml"),
    ("train --config nowhere.yaml", "no configuration file 'nowhere.yaml'"),
    ("train MINE:NoModel --data digits", "class NoModel of .* has no `model`"),
    ("train MINE:Mien --data digits", "Did you mean 'Mine'"),
    ("train MINE --data digits", "no function model and no function guide"),
    ("train nowhere.py:Mine --data digits", "there is no file 'nowhere.py'"),
    ("train no.module:Mine --data digits", "cannot import 'no.module'"),
    ("train MINE:Conditional --data digits", "names the field.*'label', which the data lack"),
    ("train --resume nowhere", "nowhere does not exist"),
    ("evaluate nowhere", "nowhere does not exist"),
    ("evaluate RUN --split trian", "unknown split 'trian'"),
    ("evaluate RUN --checkpoint first", "there is no checkpoint"),
    ("evaluate RUN --num_particles 0", "num_particles must be at least 1"),
    ("evaluate RUN --num_particels 3", "Did you mean --num_particles"),
    ("sample RUN --out picture.jpg", "cannot write '.jpg'"),
    ("sample RUN --draw median", "draw must be one of mean, sample"),
    ("train vae --data digits --out RUN", "exists already; go on with it by --resume"),
]


@pytest.mark.parametrize(("words", "message"), ERRORS, ids=[words for words, _ in ERRORS])
def test_what_a_user_can_cause_is_told_without_a_traceback(
    words, message, run, mine, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    line = words.replace("RUN", str(run)).replace("MINE", mine).split()
    status, out, err = ppl(capsys, *line)
    assert status == 2
    assert out == ""
    assert err.startswith("ppl: error: ")
    assert "Traceback" not in err
    assert re.search(message, err), err
    assert not (tmp_path / "runs" / "vae-digits").exists()  # no folder of a run that never was


def test_module_and_console_script_are_the_same_command(tmp_path):
    script = Path(sys.executable).parent / "ppl"
    outputs = [
        subprocess.run([*words, "list", "--json"], capture_output=True, check=True, cwd=tmp_path)
        for words in ([sys.executable, "-m", "inference"], [str(script)])
    ]
    assert outputs[0].stdout == outputs[1].stdout
    assert "vae" in json.loads(outputs[0].stdout)["models"]


def test_a_nan_in_training_is_told_and_the_checkpoint_stays(capsys, tmp_path):
    folder = str(tmp_path / "run")
    words = ("train", "vae", "--data", "digits", "--learning_rate", "1e6", "--out", folder)
    status, _, err = ppl(
        capsys, *words, "--epochs", "30", "--optimizer", "SGD", "--checkpoint_every", "0"
    )
    assert status == 2
    assert "log density is not finite at site" in err
    assert (tmp_path / "run" / "checkpoints" / "last.ckpt").is_file()


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"PK\x03\x04 truncated"])
def test_a_damaged_checkpoint_is_told(run, capsys, tmp_path, content):
    copy = tmp_path / "copy"
    shutil.copytree(run, copy)
    (copy / "checkpoints" / "best.ckpt").write_bytes(content)
    status, _, err = ppl(capsys, "evaluate", str(copy))
    assert status == 2
    assert "best.ckpt" in err


def test_a_refused_overwrite_keeps_the_old_run(run, capsys, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}
    for wrong in (["--data", "digitss"], ["--data", "digits", "--model.likelihood", "bernoulli"]):
        words = ("train", "vae", *wrong, "--out", str(folder), "--overwrite")
        assert ppl(capsys, *words)[0] == 2
        assert {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()} == before
    assert [p.name for p in tmp_path.iterdir()] == ["run"]
    words = ("train", "vae", "--data", "digits", "--epochs", "1", "--out", str(folder))
    assert ppl(capsys, *words, "--overwrite")[0] == 0
    assert len((folder / "metrics.csv").read_text().splitlines()) == 2
    assert [p.name for p in tmp_path.iterdir()] == ["run"]


def test_a_model_file_that_is_gone_or_changed_is_told(mine, capsys, tmp_path):
    folder = str(tmp_path / "run")
    words = ("train", f"{mine}:Mine", "--data", "digits", "--epochs", "1", "--out", folder)
    assert ppl(capsys, *words)[0] == 0
    Path(mine).write_text(MINE + "# changed\n")
    with pytest.warns(UserWarning, match="has changed since the run"):
        load_run(folder)
    Path(mine).unlink()
    status, _, err = ppl(capsys, "evaluate", folder)
    assert status == 2
    assert "is gone; the run's copy of it is" in err


def test_a_refused_resume_leaves_the_run_as_it_was(run, capsys, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    before = (folder / "config.yaml").read_text()
    assert ppl(capsys, "train", "--resume", str(folder), "--device", "gpu")[0] == 2
    assert (folder / "config.yaml").read_text() == before
    assert ppl(capsys, "train", "--resume", str(folder))[0] == 0


def test_pictures_never_end_a_run(capsys, tmp_path):
    """A global latent, an autoguide, and an observed site of another name than the field."""
    (tmp_path / "odd.py").write_text(
        "import pyro, torch\nimport pyro.distributions as dist\n"
        "from pyro.infer.autoguide import AutoNormal\n"
        "class Odd:\n"
        "    def __init__(self):\n"
        "        self.guide = AutoNormal(self.model)\n"
        "    def model(self, x=None, *, size=1, num_data=None):\n"
        "        n = size if x is None else len(x)\n"
        "        mu = pyro.sample('mu', dist.Normal(torch.zeros(1, 8, 8), 1.).to_event(3))\n"
        "        with pyro.plate('data', num_data or n, subsample=torch.arange(n), dim=-1):\n"
        "            return pyro.sample('image', dist.Normal(mu, 1.).to_event(3), obs=x)\n"
    )
    words = (f"{tmp_path}/odd.py:Odd", "--data", "digits", "--epochs", "1")
    status, _, err = ppl(capsys, "train", *words, "--out", str(tmp_path / "run"))
    assert status == 0, err
    assert (tmp_path / "run" / "report.html").is_file()
    status, _, err = ppl(capsys, "reconstruct", str(tmp_path / "run"))
    assert status == 2
    assert "nothing to draw" in err


def test_the_table_shows_zeros(capsys):
    print_table({"elbo": -3.0, "rate": 0.0, "active_units": 0, "iwae": None})
    assert capsys.readouterr().out.split() == ["elbo", "-3.00", "rate", "0", "active_units", "0"]


def test_an_unexpected_error_hides_its_traceback_unless_asked(run, monkeypatch, capsys):
    monkeypatch.setattr("inference.commands.evaluate", lambda *a, **k: 1 / 0)
    status, _, err = ppl(capsys, "evaluate", str(run))
    assert status == 1
    assert "ZeroDivisionError" in err
    assert "PPL_TRACEBACK=1" in err
    monkeypatch.setitem(os.environ, "PPL_TRACEBACK", "1")
    with pytest.raises(ZeroDivisionError):
        main(["evaluate", str(run)])
