"""Drawings from files: QuickDraw's ``.npz`` and ``.ndjson``, SVG, and folders of them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from inference.data.files import IMAGE_ENDINGS
from inference.data.sketches.object_arrays import objects_in, read_object_arrays
from inference.data.sketches.strokes import Strokes, strokes_of
from inference.data.sketches.svg import read_svg
from ppl_models.errors import PplError

PARTS = ("train", "valid", "test")
ENDINGS = (".npz", ".ndjson", ".svg")


@dataclass
class RawDrawings:
    """Drawings as a file has them."""

    parts: dict[str, list[Strokes]]
    """Under train, valid and test; or all of them under ``all``."""
    names: dict[str, list[str]] = field(default_factory=dict)
    """The class of each; empty if there are none."""
    missing: int = 0
    """Drawings that the file holds, but that are no lines of numbers."""


def is_sketch_path(path: Path) -> bool:
    """Whether a path is a sketch file, or a folder that holds one before any image."""
    if path.is_dir():
        known = (f for f in path.rglob("*") if f.suffix.lower() in (*ENDINGS, *IMAGE_ENDINGS))
        first = next(known, None)  # a folder of many images is not gone through
        return first is not None and is_sketch_path(first)
    if path.suffix == ".npz":
        return path.is_file() and bool(set(PARTS) & set(objects_in(path)))
    return path.suffix in ENDINGS and path.is_file()


def read_drawings(path: Path) -> RawDrawings:
    """The drawings of a file or folder.

    Of a folder every ``.npz`` and ``.ndjson`` file is a class, unless an ``.ndjson`` names its own;
    SVG files, one drawing each, have their subfolders for classes.

    Raises:
        PplError: a file that is no sketch file.
    """
    if not path.is_dir():
        return READERS[path.suffix](path)
    files = sorted(f for f in path.rglob("*") if f.suffix in ENDINGS)
    found = [(_class_of(f, path), read_drawings(f)) for f in files]
    together = RawDrawings({}, {}, sum(raw.missing for _, raw in found))
    ready = [set(raw.parts) == set(PARTS) for _, raw in found]
    if any(ready) and not all(ready):
        raise PplError(f"{path}: some files bring their own train, valid and test, others do not")
    for name, raw in found:
        for part, drawings in raw.parts.items():
            names = raw.names.get(part) or [name] * len(drawings)
            together.parts.setdefault(part, []).extend(drawings)
            together.names.setdefault(part, []).extend(names)
    if len({name for names in together.names.values() for name in names}) < 2:
        together.names = {}
    return together


def _class_of(file: Path, folder: Path) -> str:
    if file.suffix != ".svg":
        return file.name.split(".")[0]
    return "" if file.parent == folder else file.parent.name


def read_npz(path: Path) -> RawDrawings:
    """QuickDraw's own format: arrays ``train``, ``valid``, ``test`` of drawings in stroke-3.

    Raises:
        PplError: other arrays, or another pickle.
    """
    try:
        arrays = read_object_arrays(path)
    except PplError as error:
        raise PplError(f"{path} is no sketch file: {error}") from error
    if not set(PARTS) <= set(arrays):
        raise PplError(
            f"{path} is no sketch file: expected the arrays train, valid and test of drawings "
            f"(N, 3), got {', '.join(map(repr, arrays)) or 'none'}"
        )
    raw = RawDrawings({}, {}, 0)
    for part in PARTS:
        fitting = [a.astype(np.float64) for a in arrays[part] if _is_stroke3(a)]
        raw.missing += len(arrays[part]) - len(fitting)
        raw.parts[part] = fitting
    return raw


def _is_stroke3(array: np.ndarray) -> bool:
    return array.ndim == 2 and array.shape[1] == 3 and array.dtype.kind in "iuf"


def read_ndjson(path: Path) -> RawDrawings:
    """QuickDraw's simplified drawings, one JSON object a line: ``word`` and ``drawing``.

    A drawing is a list of lines, each a list of xs, a list of ys, and in raw files of times.

    Raises:
        PplError: a line that is no such object.
    """
    raw = RawDrawings({"all": []}, {"all": []})
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            item = _item(line, f"{path}, line {number}")
            try:
                lines = [np.array(part[:2], dtype=np.float64).T for part in item["drawing"]]
                raw.parts["all"].append(strokes_of(lines))
                raw.names["all"].append(str(item.get("word", "")))
            except (TypeError, ValueError, IndexError, OverflowError):
                raw.missing += 1
    if len(set(raw.names["all"])) < 2:
        raw.names = {}
    return raw


def _item(line: str, where: str) -> Mapping[str, Any]:
    try:
        item = json.loads(line)
    except (json.JSONDecodeError, RecursionError) as error:
        raise PplError(f"{where} is no sketch: not JSON ({error})") from error
    if not isinstance(item, dict) or not isinstance(item.get("drawing"), list):
        raise PplError(
            f'{where} is no sketch: expected {{"word": ..., "drawing": [[[x, ...], [y, ...]], '
            "...]}, an object a line"
        )
    return item


def read_svg_drawing(path: Path) -> RawDrawings:
    """An SVG file as one drawing."""
    return RawDrawings({"all": [strokes_of(read_svg(path))]})


READERS: dict[str, Callable[[Path], RawDrawings]] = {
    ".npz": read_npz,
    ".ndjson": read_ndjson,
    ".svg": read_svg_drawing,
}
"""What reads a file, by its ending."""
