"""From the quantizer's run to pictures of draws: ``ppl train vqvae_prior --codes RUN``."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import yaml

from inference.checkpoint import load_checkpoint, save_checkpoint
from inference.cli import main
from inference.evaluation import evaluate
from inference.runs import load_run

TINY = ["--model.hidden_channels", "8", "--model.residual_blocks", "1", "--model.num_codes", "8"]
SHORT = ["--epochs", "1", "--progress", "false"]
LONGER = ["--epochs", "6", "--batch_size", "50", "--learning_rate", "0.01"]
NETWORK = ["--model.channels", "8", "--model.num_layers", "2"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A quantizer's run and one of a class-conditional prior over its codes."""
    folder = tmp_path_factory.mktemp("codes")
    levels = ["--model.likelihood", "discretized_logistic_mixture"]
    words = ["train", "vqvae", "--data", "digits", "--out", str(folder / "vqvae")]
    assert main([*words, *TINY, *SHORT, *levels]) == 0
    words = ["train", "vqvae_prior", "--codes", str(folder / "vqvae"), "--out"]
    conditional = ["--model.class_conditional", "true"]
    assert main([*words, str(folder / "prior"), *NETWORK, *LONGER, *conditional]) == 0
    return folder


def test_the_run_is_the_composed_program(runs):
    base, run = load_run(runs / "vqvae"), load_run(runs / "prior")
    assert run.config["fingerprint"] == base.program.owner.fingerprint()
    assert run.program.name == "WithPrior"
    numbers = json.loads((runs / "prior" / "evaluation.json").read_text())
    found = evaluate(run.program, run.data.test)
    assert numbers["bits_per_dim"] == pytest.approx(found.bits_per_dim, rel=1e-5)
    assert numbers["bits_per_code"]["codes"] < numbers["bits_per_code_uniform"] == 3
    uniform = evaluate(base.program, base.data.test)
    gap = (uniform.rate - found.rate) / 64 / np.log(2)
    assert found.bits_per_dim == pytest.approx(uniform.bits_per_dim - gap, rel=1e-5)
    assert found.distortion == pytest.approx(uniform.distortion, rel=1e-5)


def test_both_runs_may_be_moved(runs, tmp_path, capsys):
    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(runs, elsewhere)
    path = elsewhere / "prior" / "config.yaml"
    config = yaml.safe_load(path.read_text())
    path.write_text(yaml.safe_dump(config | {"codes": str(tmp_path / "gone" / "vqvae")}))
    assert load_run(elsewhere / "prior").config["codes"] == str(elsewhere / "vqvae")
    shutil.rmtree(elsewhere / "vqvae")
    assert main(["sample", str(elsewhere / "prior")]) == 2
    message = capsys.readouterr().err
    assert str(tmp_path / "gone" / "vqvae") in message
    assert str(elsewhere / "vqvae") in message


def test_numbers_of_a_grid_stand_in_brackets(tmp_path, capsys):
    words = ["train", "vqvae", "--data", "digits", "--out", str(tmp_path / "run")]
    assert main([*words, "--model.grid", "3,3"]) == 2
    assert "[4,4]" in capsys.readouterr().err


def test_draws_of_a_class_by_temperature_and_top_k(runs, capsys, tmp_path):
    words = ["sample", str(runs / "prior"), "--num", "4", "--y", "3", "--temperature", "0.9"]
    out = tmp_path / "drawn.npz"
    words += ["--top_k", "5", "--progress", "true", "--out", str(out)]
    assert main(words) == 0
    assert "codes: 100%" in capsys.readouterr().err
    drawn = np.load(out)
    assert drawn["x"].shape == (4, 1, 8, 8)
    assert drawn["codes"].shape == (4, 2, 2)
    assert main([*words[:-2], "--out", str(tmp_path / "drawn.png")]) == 0
    assert (tmp_path / "drawn.png").is_file()


def test_going_on_with_it(runs, tmp_path):
    shutil.copytree(runs / "prior", tmp_path / "prior")
    assert main(["train", "--resume", str(tmp_path / "prior"), "--epochs", "7"]) == 0
    assert load_checkpoint(tmp_path / "prior/checkpoints/last.ckpt")["position"]["epoch"] == 7


def refusal(capsys, *words):
    capsys.readouterr()
    assert main(list(map(str, words))) == 2
    message = capsys.readouterr().err
    assert "Trace Shapes" not in message
    return message


def test_a_codebook_that_has_changed_is_refused(runs, tmp_path, capsys):
    other = tmp_path / "vqvae"
    shutil.copytree(runs / "vqvae", other)
    path = other / "checkpoints" / "best.ckpt"
    state = load_checkpoint(path)
    name = next(name for name in state["program"] if name.endswith("codebook.vectors"))
    state["program"][name] = torch.randn_like(state["program"][name])
    save_checkpoint(path, {k: v for k, v in state.items() if k != "format"})
    prior = tmp_path / "prior"
    shutil.copytree(runs / "prior", prior)
    config = yaml.safe_load((prior / "config.yaml").read_text()) | {"codes": str(other)}
    (prior / "config.yaml").write_text(yaml.safe_dump(config))
    for words in (("sample", prior), ("evaluate", prior), ("train", "--resume", prior)):
        message = refusal(capsys, *words)
        assert f"trained on codes of the codebook {config['fingerprint']}" in message
        assert "Train the prior anew: ppl train vqvae_prior --codes" in message
    shutil.rmtree(other)
    assert "is gone" in refusal(capsys, "sample", prior)


def test_what_cannot_be_asked_is_refused(runs, capsys, tmp_path):
    prior, vqvae = runs / "prior", runs / "vqvae"
    assert "temperature must be positive" in refusal(capsys, "sample", prior, "--temperature", "0")
    message = refusal(capsys, "sample", prior, "--top_k", "0")
    assert "top_k must be a whole number of at least 1" in message
    assert "draws none" in refusal(capsys, "sample", vqvae, "--temperature", "0.5")
    assert "--y" in refusal(capsys, "sample", prior, "--y", "12")
    out = ["--out", tmp_path / "new"]
    assert "--codes RUN" in refusal(capsys, "train", "vqvae_prior", "--data", "digits", *out)
    assert "leave out --data" in refusal(
        capsys, "train", "vqvae_prior", "--codes", vqvae, "--data", "digits", *out
    )
    assert "has no codes" in refusal(capsys, "train", "vqvae_prior", "--codes", prior, *out)
    assert "does not exist" in refusal(
        capsys, "train", "vqvae_prior", "--codes", tmp_path / "none", *out
    )
