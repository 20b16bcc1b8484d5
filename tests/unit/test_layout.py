"""The rules of the house, read off the source: who imports whom, length, docstrings."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import inference
import ppl_models

ROOT = Path(ppl_models.__file__).resolve().parents[1]
MODELS = sorted((ROOT / "ppl_models").rglob("*.py"))
ENGINE = sorted((ROOT / "inference").rglob("*.py"))
MAX_LINES = 330

FRAME = ("ppl_models.errors", "ppl_models.program", "ppl_models.quadratic_forms")
"""Modules of ppl_models that every part of it and the engine may import: no model among them."""
MAY_KNOW_MODELS = {
    "inference/cli.py",
    "inference/commands.py",
    "inference/photo_commands.py",
    "inference/runs.py",
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def is_module(name: str) -> bool:
    place = ROOT.joinpath(*name.split("."))
    return place.with_suffix(".py").is_file() or (place / "__init__.py").is_file()


def imported(source: str, package: str = "") -> set[str]:
    """Modules that a source imports anywhere; what it takes from a package, as ``package.x``.

    Names that ``ppl_models`` passes on count as imports of the module that they come from.
    """
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                above = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*above, base] if base else above)
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                origin = getattr(getattr(ppl_models, alias.name, None), "__module__", None)
                if is_module(inner):
                    found.add(inner)
                elif base == "ppl_models" and origin:
                    found.add(origin)
                elif inner == "ppl_models.CATALOG":
                    found.add("ppl_models.catalog")
                else:
                    found.add(base)
    return found


def imports_of(path: Path) -> set[str]:
    module = module_of(path)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    return imported(path.read_text(), package)


def within(name: str, *packages: str) -> bool:
    return any(name == package or name.startswith(package + ".") for package in packages)


def below(part: str) -> list[Path]:
    """Files of a module or subpackage of ppl_models, none if it is not there."""
    return [path for path in MODELS if within(module_of(path), f"ppl_models.{part}")]


def test_the_import_reader_sees_every_kind_of_import():
    source = """
import inference.svi as s
from ppl_models import vae, build
from ppl_models.likelihoods import positive
def late():
    from ppl_models.catalog import CATALOG
    from .sources import digits
"""
    assert imported(source, "inference.data") == {
        "inference.svi",
        "ppl_models.vae",
        "ppl_models.catalog",
        "ppl_models.likelihoods",
        "inference.data.sources",
    }


def test_both_packages_are_read():
    assert Path(inference.__file__) in ENGINE
    assert ROOT / "ppl_models" / "vae.py" in MODELS


@pytest.mark.parametrize("path", MODELS, ids=name_of)
def test_ppl_models_never_imports_inference(path):
    assert not {name for name in imports_of(path) if within(name, "inference")}


@pytest.mark.parametrize("path", below("nets") + below("distributions"), ids=name_of)
def test_nets_and_distributions_import_no_likelihood_and_no_model(path):
    own = {name for name in imports_of(path) if within(name, "ppl_models")}
    allowed = (*FRAME, "ppl_models.nets", "ppl_models.distributions")
    assert not {name for name in own if not within(name, *allowed)}


@pytest.mark.parametrize("path", below("likelihoods"), ids=name_of)
def test_likelihoods_import_no_model(path):
    own = {name for name in imports_of(path) if within(name, "ppl_models")}
    parts = ("ppl_models.nets", "ppl_models.distributions", "ppl_models.likelihoods")
    assert not {name for name in own if not within(name, *FRAME, *parts)}


@pytest.mark.parametrize("path", MODELS, ids=name_of)
def test_the_catalog_is_imported_by_the_package_alone(path):
    if path != ROOT / "ppl_models" / "__init__.py":
        assert "ppl_models.catalog" not in imports_of(path)


@pytest.mark.parametrize("path", ENGINE, ids=name_of)
def test_the_engine_knows_no_model(path):
    if name_of(path) in MAY_KNOW_MODELS:
        return
    own = {name for name in imports_of(path) if within(name, "ppl_models")}
    assert not {name for name in own if not within(name, *FRAME)}


def test_the_exceptions_are_needed():
    for name in MAY_KNOW_MODELS:
        own = {i for i in imports_of(ROOT / name) if within(i, "ppl_models")}
        assert {i for i in own if not within(i, *FRAME)}, f"{name} needs no exception"


@pytest.mark.parametrize("path", MODELS + ENGINE, ids=name_of)
def test_no_file_is_long(path):
    assert len(path.read_text().splitlines()) <= MAX_LINES


def without_docstring(source: str) -> list[str]:
    """Public functions, classes and methods of a source that have none."""
    tree = ast.parse(source)
    bare = [] if ast.get_docstring(tree) else ["the module"]
    places: list[tuple[str, ast.AST]] = [("", tree)]
    while places:
        prefix, place = places.pop()
        for node in place.body:
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
                continue
            if node.name.startswith("_"):
                continue
            if not ast.get_docstring(node):
                bare.append(prefix + node.name)
            if isinstance(node, ast.ClassDef):
                places.append((f"{prefix}{node.name}.", node))
    return bare


def test_the_docstring_reader_finds_what_has_none():
    source = '"""M."""\nclass A:\n    """A."""\n    def f(self): ...\n    def _g(self): ...\n'
    assert without_docstring(source + "def h(): ...\n") == ["h", "A.f"]
    assert without_docstring("x = 1\n") == ["the module"]


@pytest.mark.parametrize("path", MODELS + ENGINE, ids=name_of)
def test_everything_public_has_a_docstring(path):
    assert without_docstring(path.read_text()) == []
