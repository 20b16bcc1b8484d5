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
        if "Expected a <class 'collections.abc.Sequence'>" in message or "list[" in message:
            hint += " Write several numbers in brackets: [4,4]."
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


def several_values(argv: list[str]) -> tuple[str, list[list[str]]]:
    """The option that is given several values, as ``--model.beta 0.5,1,2``, and an argument list
    for each of them.

    A comma within brackets separates nothing: ``[100],[200,100]`` are two values.

    Raises:
        PplError: no option has several values, or more than one has.
    """
    found: list[tuple[str, list[list[str]]]] = []
    for i, word in enumerate(argv):
        option, equals, attached = word.partition("=")
        if not option.startswith("--") or (not equals and i + 1 == len(argv)):
            continue
        values = _split_outside_brackets(attached if equals else argv[i + 1])
        rest = argv[i + 1 if equals else i + 2 :]
        if len(values) > 1:
            found.append((option, [[*argv[:i], option, value, *rest] for value in values]))
    if len(found) != 1:
        given = " and ".join(option for option, _ in found) or "none"
        raise PplError(
            "a sweep is over one setting, which is given several values: --model.beta 0.5,1,2. "
            f"Options with several values here: {given}"
        )
    return found[0]


def _split_outside_brackets(text: str) -> list[str]:
    depth, parts = 0, [""]
    for letter in text:
        depth += (letter in "[{(") - (letter in "]})")
        if letter == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += letter
    return parts
