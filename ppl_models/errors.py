"""Errors that a user can cause, and the near misses they name."""

from __future__ import annotations

import difflib
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

    def __init__(self, kind: str, name: str, known: Iterable[str], hint: str = "") -> None:
        names = sorted(known)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5)
        meant = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        tail = f" {hint}" if hint else ""
        super().__init__(f"unknown {kind} {name!r}.{meant} There are: {', '.join(names)}.{tail}")


class ProgramError(PplError):
    """A Pyro program that cannot be run or trained as it stands."""


def describe(error: BaseException, path: Path | None = None) -> str:
    """An exception in one line, with the last place in the user's file (or at all)."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg} (line {error.lineno})"
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if path is not None and Path(f.filename) == path] or frames
    place = f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""
    lines = [line for line in str(error).splitlines() if line.strip()]
    message = " ".join(lines[:2])  # Pyro's go on for a screen, with tensors
    return f"{type(error).__name__}: {message[:400]}{place}"
