"""The report of a diagnosis: every check in a table, as JSON, and as a page with its pictures."""

from __future__ import annotations

import base64
import html
import json
import textwrap
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from inference.checkpoint import to_json, write_atomically
from inference.diagnostics.check import VERDICTS, Check, Finding
from inference.report import format_number, png

WIDTH = 100
"""Columns of the printed table."""
COLOURS = {"ok": "#2a7d2a", "warning": "#a86500", "bad": "#b3261e", "cannot tell": "#666"}


@dataclass(frozen=True)
class Diagnosis:
    """What the checks of a posterior said."""

    program: str
    """Name of the program."""
    checks: list[Check]
    findings: Mapping[str, Finding] = field(repr=False)
    """By diagnostic, with all of its numbers; those that had no answer are left out."""
    settings: Mapping[str, Any]
    """What it was asked with: number of draws and data, seed, split."""

    @property
    def verdict(self) -> str:
        """The worst verdict; ``cannot tell`` where half of the checks or more had no answer, and
        all is well in the others.
        """
        given = [c.verdict for c in self.checks if c.verdict != "cannot tell"]
        worst = max(given, key=VERDICTS.index) if given else "cannot tell"
        return "cannot tell" if worst == "ok" and 2 * len(given) <= len(self.checks) else worst

    def __getitem__(self, name: str) -> Check:
        """The check of a name, such as ``diagnosis["pareto_k"]``."""
        for check in self.checks:
            if check.name == name:
                return check
        raise KeyError(f"{name!r}; there are: {', '.join(c.name for c in self.checks)}")

    @property
    def summary(self) -> str:
        """The verdicts counted, in one line."""
        counts = Counter(check.verdict for check in self.checks)
        told = ", ".join(f"{counts[v]} {v}" for v in VERDICTS if counts[v])
        return f"{self.program}: {self.verdict} ({told})"

    def __str__(self) -> str:
        rows = [("check", "verdict", "value", "threshold"), *map(_cells, self.checks)]
        widths = [max(len(row[i]) for row in rows) for i in range(4)]
        lines = [self.summary, "", _line(rows[0], widths)]
        for check, row in zip(self.checks, rows[1:], strict=True):
            lines.append(_line(row, widths))
            lines += textwrap.wrap(
                check.message, WIDTH, initial_indent="    ", subsequent_indent="    "
            )
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """All of it but the findings, ready for JSON."""
        return {
            "program": self.program,
            "verdict": self.verdict,
            "settings": dict(self.settings),
            "checks": [check.to_dict() for check in self.checks],
        }

    def to_json(self, **options: Any) -> str:
        """As :meth:`to_dict`; infinite values and NaN as null.

        Args:
            **options: of ``json.dumps``.
        """
        return to_json(self.to_dict(), **({"indent": 2, "ensure_ascii": False} | options))

    def figures(self) -> dict[str, Figure]:
        """The pictures of all findings by name; named after the diagnostic too, if two clash."""
        found: dict[str, Figure] = {}
        for diagnostic, finding in self.findings.items():
            for name, figure in finding.figures().items():
                found[name if name not in found else f"{diagnostic}_{name}"] = figure
        return found

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write ``diagnosis.json``, the pictures, and ``diagnosis.html`` with both in one page.

        Args:
            folder: made if it is not there; an earlier diagnosis in it is replaced, pictures too.

        Returns:
            The files by name.
        """
        folder = Path(folder)
        pictures = {name: png(figure) for name, figure in self.figures().items()}
        told = self.to_dict() | {"pictures": [f"{name}.png" for name in pictures]}
        contents = {
            "diagnosis.json": to_json(told, indent=2, ensure_ascii=False).encode(),
            "diagnosis.html": self._page(pictures).encode(),
            **{f"{name}.png": content for name, content in pictures.items()},
        }
        for name in _former_pictures(folder / "diagnosis.json"):
            (folder / name).unlink(missing_ok=True)
        for name, content in contents.items():
            write_atomically(folder / name, content)
        return {name: folder / name for name in contents}

    def _repr_html_(self) -> str:
        names = ("check", "verdict", "value", "threshold", "")
        head = "".join(f"<th>{name}</th>" for name in names)
        rows = "".join(_html_row(check) for check in self.checks)
        return (
            f"<p><b>{html.escape(self.summary)}</b></p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        )

    def _page(self, pictures: Mapping[str, bytes]) -> str:
        figures = "".join(
            f'<figure><img alt="{html.escape(name)}" src="data:image/png;base64,'
            f'{base64.b64encode(content).decode()}"></figure>'
            for name, content in pictures.items()
        )
        settings = html.escape(", ".join(f"{k} = {v}" for k, v in self.settings.items()))
        return PAGE.format(
            title=html.escape(f"Diagnosis of {self.program}"),
            table=self._repr_html_(),
            figures=figures,
            settings=settings,
        )


def _number(value: float | None) -> str:
    return "" if value is None else format_number(float(value))


def _cells(check: Check) -> tuple[str, str, str, str]:
    return check.name, check.verdict, _number(check.value), _number(check.threshold)


def _line(cells: tuple[str, ...], widths: list[int]) -> str:
    return "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()


def _html_row(check: Check) -> str:
    name, verdict, value, threshold = map(html.escape, _cells(check))
    colour = COLOURS[check.verdict]
    return (
        f'<tr><td>{name}</td><td style="color: {colour}"><b>{verdict}</b></td><td>{value}</td>'
        f'<td>{threshold}</td><td style="text-align: left">{html.escape(check.message)}</td></tr>'
    )


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem;
color: #222 }}
table {{ border-collapse: collapse }} td, th {{ padding: .25rem .8rem .25rem 0; text-align: left;
vertical-align: top; border-bottom: 1px solid #ddd }}
figure {{ margin: 1.5rem 0 }} img {{ max-width: 100% }}
</style></head><body>
<h1>{title}</h1>
{table}
{figures}
<p>{settings}</p>
</body></html>
"""


def _former_pictures(path: Path) -> list[str]:
    """Pictures that a saved diagnosis names; none where there is none."""
    try:
        named = json.loads(path.read_text())["pictures"]
        return [Path(name).name for name in named if name.endswith(".png")]
    except (OSError, ValueError, KeyError, TypeError):
        return []
