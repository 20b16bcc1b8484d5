"""The command ``ppl diagnose``."""

from __future__ import annotations

import json
import re

import pytest

from inference.cli import main
from inference.diagnostics.diagnose import REGISTRY


def test_the_command(capsys, tmp_path):
    run = tmp_path / "run"
    words = ["train", "vae", "--data", "digits", "--epochs", "1", "--model.latent_dim", "2"]
    assert main([*words, "--model.hidden_dims", "[8]", "--out", str(run)]) == 0
    capsys.readouterr()
    few = ["--max_data", "20", "--num_samples", "60"]
    assert main(["diagnose", str(run), *few, "--checks", "importance,evidence"]) == 0
    out = capsys.readouterr().out
    assert "pareto_k" in out
    assert "evidence_gap" in out
    assert (run / "diagnosis" / "diagnosis.html").is_file()
    other = tmp_path / "other"
    words = ["diagnose", str(run), *few, "--checks", "[surgery]", "--out", str(other), "--json"]
    assert main(words) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["checks"][0]["name"] == "posterior_collapse[z]"
    assert str(other / "diagnosis.json") in told["files"]
    assert main(["diagnose", str(run), "--checks", "importnace"]) == 2
    assert "Did you mean 'importance'" in capsys.readouterr().err


def test_the_help_names_every_diagnostic(capsys):
    with pytest.raises(SystemExit):
        main(["diagnose", "--help"])
    words = re.findall(r"\w+", capsys.readouterr().out.partition("--checks CHECKS")[2])
    assert [name for name in REGISTRY if name not in words] == []
    costly = [name for name, diagnostic in REGISTRY.items() if diagnostic.costly]
    assert costly == [*REGISTRY][-3:]  # "all but the last three"
