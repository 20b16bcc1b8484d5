"""Log densities of a program by a compiled graph: evaluation without Python's share of it.

Shapes: K particles, B data.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, fields
from typing import Any

import pyro
from torch import Tensor, nn
from torch.func import functional_call

from inference.densities import SiteDensities
from inference.elbo.base import forked_rng
from inference.graphs import (
    Compiled,
    Held,
    NotCompiledError,
    check_alike,
    compile_graph,
    shapes_of,
    trace,
)
from inference.weights import batch_size, run_densities
from ppl_models.errors import PplError
from ppl_models.program import Batch, Program

log = logging.getLogger(__name__)

MANY_ROWS = 2**20
"""Rows of one shape (64 blocks of the default size) after which ``auto`` compiles it.

A number, not a measurement, so that an evaluation does the same whatever the machine is busy with.
"""


class CompiledDensities:
    """Runs a program by one compiled graph for each shape of the batch; see ``weights.Take``.

    Args:
        after: rows of a shape that are run eagerly before it is compiled; None: all are.
    """

    def __init__(self, after: int | None = 0) -> None:
        self.after = after
        self.failure: str | None = None
        """Why runs are eager after all."""
        self._rows: Counter[Hashable] = Counter()
        self._graphs: dict[Hashable, _Graph] = {}

    @classmethod
    def asked(cls, compile: bool | str) -> CompiledDensities:
        """As options ask for it: True, False, or ``auto``: shapes that come often.

        Raises:
            PplError: it is none of these.
        """
        if compile not in (True, False, "auto"):
            raise PplError(f"compile must be 'auto', True or False, got {compile!r}")
        return cls(MANY_ROWS if compile == "auto" else 0 if compile else None)

    def __call__(
        self, program: Program, batch: Batch, num_particles: int, num_data: int | None
    ) -> SiteDensities:
        """Log densities by site; ``batch`` has the K·B rows."""
        if self.after is None or self.failure is not None:
            return run_densities(program, batch, num_particles, num_data)
        key = (id(program), program.training, shapes_of(batch), num_particles, num_data)
        if key not in self._graphs:
            made = None
            if self._rows[key] >= self.after:
                made = self._make(program, batch, num_particles, num_data)
            if made is None:
                self._rows[key] += batch_size(batch)
                return run_densities(program, batch, num_particles, num_data)
            self._graphs[key] = made
        return self._graphs[key].run(batch)

    def _make(
        self, program: Program, batch: Batch, num_particles: int, num_data: int | None
    ) -> _Graph | None:
        started = time.monotonic()
        try:
            graph = _Graph(program, batch, num_particles, num_data)
        except NotCompiledError as error:
            self.failure = str(error)
            log.warning("evaluation goes on without compiling: %s", error)
            return None
        log.info("compiled the evaluation in %.1f seconds", time.monotonic() - started)
        return graph


@dataclass(frozen=True)
class _Layout:
    """What of :class:`SiteDensities` is no tensor, and the names of what is."""

    names: dict[str, list[str]]
    rest: dict[str, Any]

    @classmethod
    def of(cls, densities: SiteDensities) -> _Layout:
        values = {f.name: getattr(densities, f.name) for f in fields(densities)}
        names = {k: list(v) for k, v in values.items() if isinstance(v, dict)}
        return cls(names, {k: v for k, v in values.items() if k not in names})

    def flatten(self, densities: SiteDensities) -> list[Tensor]:
        return [v for part in self.names for v in getattr(densities, part).values()]

    def unflatten(self, flat: list[Tensor]) -> SiteDensities:
        values = iter(flat)
        parts: dict[str, Any] = {
            part: {n: next(values) for n in names} for part, names in self.names.items()
        }
        return SiteDensities(**parts, **self.rest)


class _Run(nn.Module):
    """A program's densities as a module, which remembers how they were laid out."""

    def __init__(self, program: Program, num_particles: int, num_data: int | None) -> None:
        super().__init__()
        self.program = program
        self.options = (num_particles, num_data)
        self.layout: _Layout | None = None

    def forward(self, batch: Batch) -> list[Tensor]:
        """All densities, in a row."""
        found = run_densities(self.program, batch, *self.options)
        self.layout = _Layout.of(found)
        return self.layout.flatten(found)


class _Graph:
    """A compiled run for batches of one shape."""

    def __init__(
        self, program: Program, batch: Batch, num_particles: int, num_data: int | None
    ) -> None:
        self.module = _Run(program, num_particles, num_data)
        self.held = Held(self.module)
        flat = self._flat(batch)
        with pyro.validation_enabled(False):
            self.compiled: Compiled = compile_graph(trace(self._function(batch), flat), flat)
            self._check(batch)

    def _flat(self, batch: Batch) -> list[Tensor]:
        return [*self.held.trained.values(), *self.held.kept.values(), *batch.values()]

    def _function(self, batch: Batch) -> Any:
        names, fields = [*self.held.trained, *self.held.kept], list(batch)

        def run(*flat: Tensor) -> list[Tensor]:
            named = dict(zip(names, flat, strict=False))
            given = dict(zip(fields, flat[len(names) :], strict=True))
            return functional_call(self.module, named, (given,))

        return run

    def _check(self, batch: Batch) -> None:
        """Compare with an eager run on the same random numbers.

        Raises:
            NotCompiledError: they differ.
        """
        with forked_rng():
            ours = self.compiled(self._flat(batch))
        with forked_rng():
            theirs = self._function(batch)(*self._flat(batch))
        assert self.module.layout is not None
        names = [n for part in self.module.layout.names.values() for n in part]
        check_alike(names, ours, theirs, floor=1e-3)

    def run(self, batch: Batch) -> SiteDensities:
        """The densities, with the program's parameters as they are now."""
        assert self.module.layout is not None
        return self.module.layout.unflatten(list(self.compiled(self._flat(batch))))
