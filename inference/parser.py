"""How the command line is read: errors that name near misses."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any, NoReturn

from jsonargparse import ArgumentError, ArgumentParser, Namespace

from ppl_models.errors import PplError


class Parser(ArgumentParser):
    """A parser whose errors are :class:`PplError` and name near misses."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(exit_on_error=False, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raise instead of exiting."""
        raise PplError(self._with_near_misses(message)) from ex

    def _with_near_misses(self, message: str) -> str:
        options = [
            s for a in self._actions for s in a.option_strings if s[:2] == "--" and s[-1] != "+"
        ]
        words = [w.split("=")[0].strip("'\",.") for w in message.split() if "--" in w]
        unknown = [w for w in words if w.startswith("--") and w not in options]
        near = difflib.get_close_matches(unknown[0], options, n=3, cutoff=0.6) if unknown else []
        hint = f" Did you mean {' or '.join(near)}?" if near else ""
        return f"{message.strip()}{hint} See {self.prog} --help."

    def parse(self, argv: Sequence[str]) -> dict[str, Any]:
        """Parse, with errors as :class:`PplError`."""
        try:
            parsed: Namespace = self.parse_args(list(argv))
        except ArgumentError as error:
            raise PplError(self._with_near_misses(str(error))) from error
        return parsed.as_dict()


def with_value(option: str, value: str, argv: list[str]) -> list[str]:
    """The arguments with a value after an option that stands there without one."""
    found = []
    for word, after in zip(argv, [*argv, "--"][1:], strict=True):
        found += [word, value] if word == option and after.startswith("--") else [word]
    return found
