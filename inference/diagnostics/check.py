"""What a diagnostic says: a value, a threshold, and a verdict in plain language."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

from matplotlib.figure import Figure

from ppl_models.errors import PplError

VERDICTS = ("ok", "warning", "bad", "cannot tell")
"""From nothing found to a posterior that should not be believed; the last: no answer here."""


@dataclass(frozen=True)
class Check:
    """One question that was asked of a posterior, and its answer."""

    name: str
    """Of the question, such as ``pareto_k``; with ``[site]`` where it was asked of one site."""
    verdict: str
    """One of :data:`VERDICTS`."""
    message: str
    """What was found, what it means, and what to do about it; one or two sentences."""
    value: float | None = None
    """The number that the verdict rests on."""
    threshold: float | None = None
    """What that number was held against."""
    numbers: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else was measured, ready for JSON."""

    def __post_init__(self) -> None:
        if self.verdict not in VERDICTS:
            raise ValueError(f"verdict must be one of {VERDICTS}, got {self.verdict!r}")

    def to_dict(self) -> dict[str, Any]:
        """All of it, ready for JSON."""
        return asdict(self) | {"numbers": dict(self.numbers)}


class Finding(Protocol):
    """What a diagnostic returns: its numbers as attributes, and these two views of them."""

    def checks(self) -> list[Check]:
        """The questions that it answers."""

    def figures(self) -> dict[str, Figure]:
        """Its pictures by name; none where there is nothing to draw."""


class CannotTell(PplError):
    """A diagnostic has no answer for this program or these data; the message is the reason."""


def cannot_tell(name: str, reason: object) -> Check:
    """The answer of a diagnostic that has none.

    Args:
        name: of the question.
        reason: why, as a sentence without a full stop or as the error that says so.
    """
    return Check(name, "cannot tell", f"Cannot tell, because {reason}")
