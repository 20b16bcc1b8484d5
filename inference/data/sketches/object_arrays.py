"""Arrays of arrays in ``.npz`` files, without running what a pickle may hold.

QuickDraw's files keep drawings of different lengths as an array of objects, which numpy stores as a
pickle. A pickle can call anything. This reader allows the names by which numpy makes an array,
and puts stand-ins in their place that check what they are given: not even numpy's own code sees a
state that was not checked.

References:
    Ha, Eck: A Neural Representation of Sketch Drawings, 2018, arXiv:1704.03477 (QuickDraw's files).
"""

from __future__ import annotations

import math
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from ppl_models.errors import PplError


class ForbiddenPickleError(PplError):
    """A pickle that holds something else than arrays of numbers."""


class _DType:
    """In the place of ``numpy.dtype``: a type of numbers, or of objects."""

    def __init__(self, code: object, *flags: object) -> None:
        if not isinstance(code, str) or not re.fullmatch(r"[iuf][1248]|O8?", code):
            raise ForbiddenPickleError(f"arrays of type {code!r}, not of numbers")
        self.code = code
        self.order = "="

    def __setstate__(self, state: Any) -> None:
        order = state[1] if isinstance(state, tuple) and len(state) > 1 else None
        if order not in ("<", ">", "|", "="):
            raise ForbiddenPickleError("a number type of unknown byte order")
        self.order = order

    def made(self) -> np.dtype[Any]:
        """Numpy's own, of numbers."""
        return np.dtype(self.order + self.code)


class _Array:
    """In the place of ``numpy.ndarray``: made without a shape, filled by its state."""

    def __init__(self) -> None:
        self.value: Any = None

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, tuple) or len(state) != 5 or not isinstance(state[2], _DType):
            raise ForbiddenPickleError("an array whose state is none")
        _, shape, kind, by_columns, content = state
        if not isinstance(shape, tuple) or not all(type(n) is int and n >= 0 for n in shape):
            raise ForbiddenPickleError(f"an array of shape {shape!r}")
        if kind.code.startswith("O"):
            if not isinstance(content, list) or len(content) != math.prod(shape):
                raise ForbiddenPickleError("an array of objects that are no list")
            self.value = content
            return
        raw = content.encode("latin1") if isinstance(content, str) else content
        made = kind.made()
        if not isinstance(raw, bytes) or len(raw) != math.prod(shape) * made.itemsize:
            raise ForbiddenPickleError(f"an array whose content does not fill its shape {shape}")
        order: Any = "F" if by_columns else "C"
        self.value = np.frombuffer(raw, made).reshape(shape, order=order)


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    if kind is not _Array or shape != (0,):
        raise ForbiddenPickleError("an array that is not made as numpy makes them")
    return _Array()


def _bytes(text: object, codec: object) -> bytes:
    """Bytes as protocol 2 has them, which numpy used until 1.16: letters, to be encoded."""
    if not isinstance(text, str) or codec != "latin1":
        raise ForbiddenPickleError(f"text in {codec!r}")
    return text.encode("latin1")


ALLOWED: Mapping[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _bytes,
}
"""All that a pickle may name, and what it gets."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        found = ALLOWED.get((module, name))
        if found is None:
            raise ForbiddenPickleError(f"{module}.{name}")
        return found

    def persistent_load(self, pid: Any) -> Any:
        raise ForbiddenPickleError("a reference to something outside")


def read_pickled_arrays(file: IO[bytes]) -> list[np.ndarray]:
    """The arrays of a pickled array of arrays.

    Args:
        file: at the start of the pickle.

    Raises:
        ForbiddenPickleError: it holds anything else; nothing of it was run.
    """
    try:
        outer = _Unpickler(file, encoding="latin1").load()
    except ForbiddenPickleError as error:
        raise ForbiddenPickleError(
            f"its pickle holds {error}; arrays of numbers alone are read, because a pickle can run "
            "code"
        ) from None
    except Exception as error:  # a malformed pickle can fail in any way
        raise ForbiddenPickleError(
            f"its pickle is malformed ({type(error).__name__}: {error})"
        ) from error
    content = outer.value if isinstance(outer, _Array) else None
    if isinstance(content, np.ndarray):  # drawings of one length
        content = list(content)
    found = [item.value if isinstance(item, _Array) else item for item in content or ()]
    if not isinstance(content, list) or not all(isinstance(a, np.ndarray) for a in found):
        raise ForbiddenPickleError("its pickle is no array of arrays")
    return found


def objects_in(path: Path) -> list[str]:
    """Names of the arrays of objects in an ``.npz`` file; none in what is no such file."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = [n for n in archive.namelist() if _header(archive, n)[1].hasobject]
            return [name.removesuffix(".npy") for name in found]
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error):
        return []


def read_object_arrays(path: Path) -> dict[str, list[np.ndarray]]:
    """The arrays of arrays of an ``.npz`` file by name, also those that are not pickled.

    Raises:
        PplError: no such file, or another pickle in it.
    """
    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                _, kind = _header(archive, member)
                with archive.open(member) as file:
                    if kind.hasobject:
                        _skip_header(file)
                        arrays = read_pickled_arrays(file)
                    else:
                        arrays = list(np.lib.format.read_array(file, allow_pickle=False))
                found[member.removesuffix(".npy")] = arrays
    except PplError:
        raise
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error) as error:
        raise PplError(f"it cannot be read: {error}") from error
    return found


def _header(archive: zipfile.ZipFile, member: str) -> tuple[tuple[int, ...], np.dtype[Any]]:
    with archive.open(member) as file:
        return _skip_header(file)


def _skip_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    """Shape and type that an ``.npy`` member says; the file stands after them."""
    version = np.lib.format.read_magic(file)
    readers = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f"an array of the format {version}, which is not known")
    shape, _, kind = readers[version](file)
    return shape, kind
