"""Errors that a user can cause, and the near misses they name."""

from __future__ import annotations

import difflib
import operator
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path


class PplError(ValueError):
    """A mistake that the user can mend; its message says what was expected, what came, what to do.

    The command line prints the message alone; in Python it is an ordinary ``ValueError``.
    """


class UnknownNameError(PplError):
    """A name that is not in the table it was looked up in.

    Args:
        kind: what the name should have named, such as ``"data set"``.
        name: what came.
        known: the names there are.
        hint: what else could have been given.
    """

    def __init__(
        self, kind: str, name: str | None = None, known: Iterable[str] = (), hint: str = ""
    ) -> None:
        if name is None:  # Pyro makes an error anew from its message, to add the trace's shapes
            super().__init__(kind)
            return
        names = sorted(known)
        lower = {known.lower(): known for known in names}
        near = [lower[n] for n in difflib.get_close_matches(name.lower(), lower, n=3, cutoff=0.5)]
        meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        tail = f" {hint}" if hint else ""
        super().__init__(f"unknown {kind} {name!r}.{meant} There are: {', '.join(names)}.{tail}")


class ProgramError(PplError):
    """A Pyro program that cannot be run or trained as it stands."""


def whole_number(name: str, value: object, least: int = 1) -> int:
    """A count that a user gave.

    Args:
        name: of the option.
        value: what came.
        least: the smallest that is taken.

    Raises:
        PplError: it is no whole number, or too small.
    """
    try:
        number = None if isinstance(value, bool) else operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        number = None
    if number is None or number < least:
        raise PplError(f"{name} must be a whole number of at least {least}, got {value!r}")
    return number


def whole_numbers(name: str, values: object, least: int = 1) -> list[int]:
    """Counts that a user gave, one for each of several things.

    Args:
        name: of the option.
        values: what came.
        least: the smallest that is taken.

    Raises:
        PplError: it is no list, or not all are whole numbers, or one is too small.
    """
    if not isinstance(values, Iterable):
        raise PplError(f"{name} must be a list of whole numbers, such as [4,2]; got {values!r}")
    return [whole_number(name, value, least) for value in values]


def without_shapes(message: str) -> str:
    """A message without the table of shapes that Pyro adds to errors within a trace."""
    return message.partition("Trace Shapes:")[0].rstrip()


def describe(error: BaseException, path: Path | None = None) -> str:
    """An exception in one line, with the last place in the user's code.

    Args:
        error: the exception.
        path: the user's file, if it is known.
    """
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} (line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if path is not None and Path(f.filename).resolve() == path]
    own = own or [f for f in frames if not is_machinery(Path(f.filename))]
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    lines = [line for line in str(error).splitlines() if line.strip()]
    message = " ".join(lines[:2])  # Pyro's go on for a screen, with tensors
    return f"{type(error).__name__}: {message[:400]}{place}"


def is_machinery(file: Path) -> bool:
    """Whether a source file is neither a program's nor the user's."""
    here = Path(__file__).parent
    ours = file.parent == here and file.name in ("catalog.py", "program.py", "param_scope.py")
    engine = here.parent / "inference" in file.parents
    library = "site-packages" in file.parts or Path(sysconfig.get_path("stdlib")) in file.parents
    return ours or engine or library
