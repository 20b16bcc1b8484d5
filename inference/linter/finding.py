"""What the linter says: a rule, and a place where a program breaks it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Lint:
    """One place where a program breaks a rule."""

    code: str
    """Of the rule, such as ``support-differs``."""
    severity: str
    """``error``: wrong numbers, or none; ``warning``: right, and most likely not what is meant."""
    message: str
    """What is wrong."""
    why: str
    """Why it matters."""
    remedy: str
    """What to write instead."""
    role: str | None = None
    """``model`` or ``guide``, where it is one of them."""
    site: str | None = None
    """Name of the sample site, where it is one."""
    place: str | None = None
    """``file.py:41``, the sample statement's line, where it is known."""

    @property
    def where(self) -> str:
        """Site and place, as far as they are known; else nothing."""
        at = f"{f'{self.role} ' if self.role else ''}site {self.site!r}" if self.site else self.role
        place = f"({self.place})" if self.place else None
        return " ".join(part for part in (at, place) if part)

    def __str__(self) -> str:
        where = f", {self.where}" if self.where else ""
        message, why, remedy = (_sentence(t) for t in (self.message, self.why, self.remedy))
        return f"{self.severity} {self.code}{where}: {message}\n  why: {why}\n  do:  {remedy}"

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self)


def _sentence(text: str) -> str:
    text = text.strip()
    return text if text.endswith((".", "?", "!")) else f"{text}."


@dataclass(frozen=True)
class Rule:
    """What programs should keep to."""

    code: str
    severity: str
    what: str
    """What it finds, for the table in ``docs/adding_a_model.md``."""
    why: str
    remedy: str
    """What to do in general; a finding may say it of its site."""

    def broken(
        self,
        message: str,
        remedy: str | None = None,
        *,
        role: str | None = None,
        site: str | None = None,
        place: str | None = None,
    ) -> Lint:
        """A finding of this rule."""
        remedy = self.remedy if remedy is None else remedy
        return Lint(self.code, self.severity, message, self.why, remedy, role, site, place)
