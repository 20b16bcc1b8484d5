"""Log densities of a program by a compiled graph: evaluation without Python's share of it.

Shapes: K particles, B data.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable
from dataclasses import dataclass, fields
from typing import Any
from weakref import WeakSet

import pyro
from torch import Tensor, nn
from torch.func import functional_call

from inference.agreement import check_alike, tolerance_of
from inference.densities import SiteDensities
from inference.graphs import (
    Compiled,
    GraphCache,
    Held,
    compile_graph,
    failures,
    shapes_of,
    trace,
)
from inference.unchanged import unchanged
from inference.weights import batch_size, run_densities
from ppl_models.errors import PplError
from ppl_models.program import Batch, Program

MANY_ROWS = 2**20
"""Rows of one shape (64 blocks of the default size) after which ``auto`` compiles it.

A number, not a measurement, so that an evaluation does the same whatever the machine is busy with.
"""


class CompiledDensities:
    """Runs a program by one compiled graph for each shape of the batch; see ``weights.Take``.

    Args:
        after: rows of a shape that are run eagerly before it is compiled; None: all are.
        least: rows of a run from which on it may be compiled.
    """

    def __init__(self, after: int | None = 0, least: int = 1) -> None:
        self.after = after
        self.least = least
        self.graphs = GraphCache("the evaluation", "evaluation")
        self._rows: Counter[Hashable] = Counter()
        self._run_before: WeakSet[Program] = WeakSet()

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
        rows, asked = batch_size(batch), (program, batch, num_particles, num_data)
        if self.after is None or self.graphs.failure is not None or rows < self.least:
            return run_densities(*asked)
        modes = tuple(module.training for module in program.modules())
        key = (id(program), modes, shapes_of(batch), num_particles, num_data)
        # The first run makes what a program makes but once, such as a pyro.param.
        wait = program not in self._run_before or self._rows[key] < self.after
        if key not in self.graphs and wait:
            self._run_before.add(program)
            self._rows[key] += rows
            return run_densities(*asked)
        graph = self.graphs.get(key, lambda: _Graph(*asked))
        return run_densities(*asked) if graph is None else graph.run(batch)


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
            graph = trace(self._function(batch), flat, program)
            self.compiled: Compiled = compile_graph(graph, flat)
            self._check(batch, tolerance_of(graph))

    def _flat(self, batch: Batch) -> list[Tensor]:
        return [*self.held.tensors(), *batch.values()]

    def _function(self, batch: Batch) -> Any:
        names, fields = self.held.names(), list(batch)

        def run(*flat: Tensor) -> list[Tensor]:
            named = dict(zip(names, flat, strict=False))
            given = dict(zip(fields, flat[len(names) :], strict=True))
            found = functional_call(self.module, named, (given,))
            for before, after in zip(flat, named.values(), strict=False):
                if after is not before:  # a buffer that the program has set
                    before.copy_(after)
            return found

        return run

    def _check(self, batch: Batch, tolerance: float) -> None:
        """Compare with an eager run on the same random numbers; nothing is changed.

        Raises:
            NotCompiledError: they differ.
        """
        eager, outcomes = self._function(batch), []
        for run in (self.compiled, lambda flat: eager(*flat)):
            flat = [value.clone() for value in self._flat(batch)]
            with failures("it cannot be run"), unchanged(self.module.program):
                outcomes.append([*run(list(flat)), *flat[: len(self.held.names())]])
        assert self.module.layout is not None
        names = [n for part in self.module.layout.names.values() for n in part]
        for name, ours, theirs in zip([*names, *self.held.names()], *outcomes, strict=True):
            check_alike(name, ours, theirs, tolerance, size=1.0)

    def run(self, batch: Batch) -> SiteDensities:
        """The densities, with the program's parameters as they are now."""
        assert self.module.layout is not None
        return self.module.layout.unflatten(list(self.compiled(self._flat(batch))))
