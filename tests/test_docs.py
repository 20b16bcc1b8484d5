"""README and docs do what they say: their code runs, their links lead somewhere."""

from __future__ import annotations

import re
import runpy
import shlex
import sys
import warnings
from pathlib import Path

import pytest
import torch
from patch_helpers import smooth_images
from programs import GaussianToy
from pyro import poutine

from inference import estimators
from inference.cli import main
from inference.diagnostics import REGISTRY
from inference.explore import KINDS
from inference.images import Photo, write_photo
from inference.linter import RULES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.slow
def test_readme_example_runs_and_is_twenty_lines(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (code,) = blocks(ROOT / "README.md", "python")
    start = code.index("class ")
    lines = [line for line in code[start:].splitlines() if line.strip()]
    assert len(lines) <= 20
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert "elbo  " in capsys.readouterr().out


def commands(page: Path) -> list[list[str]]:
    """The page's commands, with fewer particles than it advises."""
    lines = (
        "".join(blocks(page, "sh")).replace("num_particles 1000", "num_particles 50").splitlines()
    )
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("ppl ")]


def shortened(words: list[str]) -> list[str]:
    """A command with a tenth of its epochs, and at least one."""
    epochs = [words[i - 1] == "--epochs" for i in range(len(words))]
    return [
        str(max(1, int(w) // 10)) if is_epochs else w
        for w, is_epochs in zip(words, epochs, strict=True)
    ]


@pytest.mark.slow
def test_readme_commands_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_photo(tmp_path / "photo.png", Photo(smooth_images(3, 40, 50), None, "uint8"))
    found = commands(ROOT / "README.md")
    assert {words[0] for words in found} == {
        *("list", "train", "evaluate", "sample", "reconstruct", "compare", "denoise"),
        *("explore", "sweep", "diagnose"),
    }
    for words in found:
        assert main(shortened(words)) == 0, words
    assert (tmp_path / "samples.png").is_file()


@pytest.mark.slow
def test_a_model_written_from_the_docs_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    page = ROOT / "docs" / "adding_a_model.md"
    model, usage, test, rest, start, linting = blocks(page, "python")
    (tmp_path / "my_model.py").write_text(model)
    found = commands(page)
    assert {words[0] for words in found} == {"check", "train", "evaluate", "sample"}
    for words in found:
        assert main(words) == 0, words
    code = "\n".join([usage, test, "test_factor_analysis()"])
    prelude = "import torch, pyro\nimport pyro.distributions as dist\nfrom torch import nn\n"
    started = f"{start}\ncentred = fitted.program.owner.centre\n"
    (tmp_path / "usage.py").write_text(prelude + code + "\n" + started + rest + linting)
    names = runpy.run_path(str(tmp_path / "usage.py"))
    assert float(names["centred"].detach()) == pytest.approx(3.0, abs=0.3)
    assert float(names["fitted"].program.param("loc")) == pytest.approx(3.0, abs=0.3)
    sys.modules.pop("my_model", None)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_pictures_are_there(page):
    targets = re.findall(r"\]\(([^)#]+)\)", page.read_text())
    local = [t for t in targets if not t.startswith("http")]
    assert [t for t in local if not (page.parent / t).exists()] == []


def test_every_model_of_the_catalog_has_a_page_and_a_row():
    from ppl_models import CATALOG

    readme = (ROOT / "README.md").read_text()
    for name in CATALOG:
        assert (ROOT / "docs" / f"{name}.md").is_file()
        assert f"| `{name}` |" in readme


def test_every_estimator_has_a_row():
    page = (ROOT / "docs" / "estimators.md").read_text()
    for name, row in estimators().iterrows():
        cells = [f"`{name}`", *row[["objective", "latents", "bias"]], f"{row.min_particles}+"]
        assert " | ".join([*cells, row.reference]) in page, name


def test_every_rule_of_the_linter_has_a_row():
    page = (ROOT / "docs" / "adding_a_model.md").read_text()
    for rule in RULES.values():
        row = f"| `{rule.code}` | {rule.severity} | {rule.what} | {rule.remedy} |"
        assert row in page, rule.code


@pytest.mark.slow
def test_the_estimators_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    stock, handler, comparison = blocks(ROOT / "docs" / "estimators.md", "python")
    exec(compile(stock, "estimators.md", "exec"), {})
    toy = GaussianToy()
    names = {"guide": toy.guide}
    exec(compile(handler, "estimators.md", "exec"), names)
    assert (
        not poutine.trace(names["guide_by_score"])
        .get_trace(torch.zeros(2))
        .nodes["z"]["fn"]
        .has_rsample
    )
    exec(compile(comparison, "estimators.md", "exec"), {})
    assert "score_function" in capsys.readouterr().out
    assert (tmp_path / "variance.png").is_file()


def test_the_epll_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_photo(tmp_path / "photo.png", Photo(smooth_images(1, 24, 24), None, "uint8"))
    names: dict = {}
    for code in blocks(ROOT / "docs" / "epll.md", "python"):
        exec(compile(code, "epll.md", "exec"), names)
    assert "after 20 steps" in capsys.readouterr().out
    assert names["sharp"].shape == names["filled"].shape == (1, 24, 24)


def test_the_training_page_runs(capsys):
    (code,) = blocks(ROOT / "docs" / "training.md", "python")
    exec(compile(code, "training.md", "exec"), {})
    assert capsys.readouterr().out.startswith("0 ")


def test_every_diagnostic_has_a_row_and_a_section():
    page = (ROOT / "docs" / "diagnostics.md").read_text()
    for name, diagnostic in REGISTRY.items():
        when = "if `thorough`" if diagnostic.costly else "yes"
        row = rf"\| `{name}` \| [^|]+ \| [^|]+ \| {when} \| `{diagnostic.ask.__name__}` \|"
        assert re.search(row, page), name
        assert f"\n### {name}\n" in page, name


def test_the_diagnostics_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning)  # ArviZ's, of one chain
        for code in blocks(ROOT / "docs" / "diagnostics.md", "python"):
            exec(compile(code, "diagnostics.md", "exec"), names)
    assert "z[0, 0]" in capsys.readouterr().out
    assert names["log_weights"].sizes["draw"] == 100
    assert float(names["k"]) > -1
    assert (tmp_path / "diagnosis" / "diagnosis.html").is_file()


@pytest.mark.slow
def test_the_latent_space_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / "latent_space.md"
    names: dict = {}
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), names)
    assert names["walks"].shape == (2, 9, 1, 8, 8)
    assert names["edited"].shape == (3, 3, 1, 8, 8)
    assert "'mig': " in capsys.readouterr().out
    for words in commands(page):
        assert main([*words, "--epochs", "1"] if words[0] in ("train", "sweep") else words) == 0
    assert (tmp_path / "plane.png").is_file()
    assert (tmp_path / "runs" / "vae" / "interpolation.gif").is_file()


def test_every_kind_and_data_set_has_a_row():
    text = (ROOT / "docs" / "latent_space.md").read_text()
    for name in (*KINDS, "shapes", "faces", "frey_faces", "olivetti_faces", "celeba"):
        assert f"| `{name}` |" in text, name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("autoencoder", "MMD²"),
        ("beta_vae", None),
        ("vqvae", "(8, 4, 4)"),
        ("hierarchical_vae", None),
    ],
)
def test_the_pages_of_the_vae_family_run(name, printed, capsys):
    for code in blocks(ROOT / "docs" / f"{name}.md", "python"):
        exec(compile(code.replace("epochs=10", "epochs=1"), f"{name}.md", "exec"), {})
    shown = capsys.readouterr().out
    assert shown == "" if printed is None else printed in shown


@pytest.mark.slow
@pytest.mark.parametrize("name", ["pixelcnn", "vqvae_prior"])
def test_the_pages_of_autoregressive_models_run(name, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    page = ROOT / "docs" / f"{name}.md"
    names: dict = {}
    for code in blocks(page, "python"):
        exec(compile(code, page.name, "exec"), names)
    assert names["images"].shape == (8, 1, 8, 8)
    for words in commands(page) if name == "vqvae_prior" else []:
        assert main(words) == 0, words
    assert (tmp_path / "drawn.png").is_file() == (name == "vqvae_prior")


@pytest.mark.slow
def test_the_pages_of_sketches_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "start.svg").write_text('<svg><path d="M0 0L30 0L30 40"/></svg>')
    (code,) = blocks(ROOT / "docs" / "sketch_rnn.md", "python")
    names: dict = {}
    exec(compile(code, "sketch_rnn.md", "exec"), names)
    assert names["drawings"].shape == (8, 43, 5)
    for page in ("sketch_rnn", "sketch_rnn_decoder"):
        for words in commands(ROOT / "docs" / f"{page}.md"):
            assert main(shortened(words)) == 0, words
    for name in ("samples", "reconstructions", "interpolate", "temperature"):
        assert (tmp_path / "runs" / "sketch" / f"{name}.svg").is_file(), name


def test_makefile_commands_of_the_readme_exist():
    targets = re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = re.findall(r"^make (\w+)", (ROOT / "README.md").read_text(), flags=re.MULTILINE)
    assert set(named) == {"demo", "test"} <= set(targets)
