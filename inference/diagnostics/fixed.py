"""A program whose parameters are held where they are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from ppl_models.program import Program


@contextmanager
def fixed_parameters(program: Program) -> Iterator[None]:
    """Within, no parameter of the program wants a gradient."""
    wanted = [p for p in program.parameters() if p.requires_grad]
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
