"""Checkpoints: written whole or not at all, loaded without running anything.

A checkpoint is a dict of tensors and plain values: parameters, optimizer, schedules, random
states, the position in the epoch, settings and versions.
"""

from __future__ import annotations

import io
import json
import math
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import torch

from ppl_models.errors import PplError

FORMAT = "ppl-models checkpoint 1"


def write_atomically(path: Path, content: bytes) -> None:
    """Write a file so that a reader, or a crash at any moment, finds the old one or the new.

    Raises:
        PplError: the folder cannot be written to, or the disk is full; the old file stays.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        kept = "; the last good one is kept" if path.exists() else ""
        _remove(temporary)
        raise PplError(f"cannot write {path}: {error.strerror or error}{kept}") from error


def to_json(value: Any, **options: Any) -> str:
    """Plain values as JSON; infinity and NaN, which JSON has not, as null.

    Args:
        value: numbers, text, lists and dicts.
        **options: of ``json.dumps``.
    """
    return json.dumps(_finite(value), allow_nan=False, **options)


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError:
        return  # nothing was made there: its folder is missing or not a folder


def save_checkpoint(path: Path, state: dict[str, Any], *copies: Path) -> None:
    """Write a checkpoint atomically.

    Args:
        path: the file.
        state: tensors and plain values, nested in dicts and lists.
        *copies: further files with the same content, written after it.

    Raises:
        PplError: it cannot be written.
    """
    buffer = io.BytesIO()
    torch.save({"format": FORMAT, **state}, buffer)
    for file in (path, *copies):
        write_atomically(file, buffer.getvalue())


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint onto the CPU; nothing in it is executed.

    Raises:
        PplError: there is none, or it is truncated, foreign, or holds pickled objects.
    """
    if not path.is_file():
        raise PplError(f"there is no checkpoint {path}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            state = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise PplError(
            f"{path} is refused: it is no checkpoint of this package, or holds pickled objects, "
            "which could run code on loading"
        ) from error
    except Exception as error:
        raise PplError(
            f"{path} is damaged or truncated and cannot be read ({error}). Another "
            "checkpoint of the run may be whole (--checkpoint last or best); else train anew."
        ) from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        found = state.get("format") if isinstance(state, dict) else type(state).__name__
        raise PplError(f"{path} is no checkpoint of this package (expected {FORMAT!r}: {found!r})")
    return state


def load_parameters(program: torch.nn.Module, state: dict[str, Any], path: Path) -> None:
    """Put a checkpoint's parameters into a program.

    Raises:
        PplError: they are another program's.
    """
    try:
        program.load_state_dict(state["program"])
    except (RuntimeError, KeyError) as error:
        raise PplError(f"{path} holds another program's parameters: {error}") from error
