"""Inputs of a model on the command line: ``ppl sample RUN --y 3``."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from inference import load_data
from inference.cli import main
from inference.inputs import inputs_among, model_inputs
from inference.runs import build_for
from ppl_models import PplError, UnknownNameError

OPTIONS = ("num", "out", "seed")


def test_what_is_no_option_is_an_input():
    words = ["run", "--num", "8", "--y", "3", "--seed=1", "--c=[0,1]", "--help"]
    rest, inputs = inputs_among(words, OPTIONS)
    assert rest == ["run", "--num", "8", "--seed=1", "--help"]
    assert inputs == {"y": "3", "c": "[0,1]"}


@pytest.fixture(scope="module")
def cvae():
    data = load_data("digits")
    return build_for("cvae", {"hidden_dims": [8], "latent_dim": 2}, data.info), data.info


def given(cvae, **texts):
    program, info = cvae
    return model_inputs(texts, program, info, 6, OPTIONS)


def test_one_label_for_all_or_several_in_turn(cvae, tmp_path):
    assert given(cvae) is None
    assert given(cvae, y="3")["y"].tolist() == [3] * 6
    assert given(cvae, y="[0, 1, 2, 3]")["y"].tolist() == [0, 1, 2, 3, 0, 1]
    np.save(tmp_path / "y.npy", np.array([5, 6]))
    assert given(cvae, y=str(tmp_path / "y.npy"))["y"].tolist() == [5, 6] * 3
    assert given(cvae, y="3")["y"].dtype == torch.int64


@pytest.mark.parametrize(
    ("texts", "error", "message"),
    [
        ({"y": "10"}, PplError, r"--y: label 10 at index 0 is out of range.*0 to 9"),
        ({"y": "[1, -1]"}, PplError, "label -1 at index 1 is out of range"),
        ({"y": "1.5"}, PplError, "labels must be integers"),
        ({"y": "three"}, PplError, r"--y must be a number, a list such as \[0,1,2\], or an .npy"),
        ({"y": "no.npy"}, PplError, "--y: there is no file 'no.npy'"),
        ({"nmu": "5"}, UnknownNameError, "field of CVAE '--nmu'. Did you mean '--num'"),
        ({"z": "5"}, UnknownNameError, "There are: --num, --out, --seed, --x, --y"),
    ],
)
def test_errors(cvae, texts, error, message):
    with pytest.raises(error, match=message):
        given(cvae, **texts)


@pytest.mark.slow
def test_a_class_is_asked_for_on_the_command_line(tmp_path, capsys):
    run = str(tmp_path / "run")
    words = ["train", "cvae", "--data", "digits", "--epochs", "1", "--out", run]
    assert main([*words, "--model.hidden_dims", "[8]"]) == 0
    out = tmp_path / "drawn.npz"
    assert main(["sample", run, "--num", "4", "--y", "3", "--out", str(out)]) == 0
    with np.load(out) as drawn:
        assert set(drawn.files) == {"x", "z"}
        assert drawn["x"].shape == (4, 1, 8, 8)
    assert main(["sample", run, "--num", "4", "--out", str(out)]) == 0
    with np.load(out) as drawn:
        assert drawn["y"].shape == (4,)
    assert main(["sample", run, "--y", "12"]) == 2
    assert "out of range; expected integers from 0 to 9" in capsys.readouterr().err
    images = tmp_path / "unlabelled.npy"
    np.save(images, np.random.default_rng(0).integers(0, 256, (40, 8, 8), dtype=np.uint8))
    assert main(["train", "cvae", "--data", str(images), "--out", str(tmp_path / "b")]) == 2
    assert "needs labels (num_classes)" in capsys.readouterr().err
