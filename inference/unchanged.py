"""A run of a program that leaves it as it was, and tells what it would have changed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Transform

from inference.devices import rng_state, set_rng_state
from ppl_models.program import Program

Plain = int | float | str


class Changes:
    """What a run changed that is no parameter, no buffer and no draw of torch's."""

    def __init__(self) -> None:
        self.attributes: list[str] = []
        """Attributes of the program whose number or text is another, or whose tensor was
        written to."""
        self.replaced: dict[str, Tensor] = {}
        """The old tensors of attributes that hold another."""
        self.random: list[str] = []
        """Generators that were drawn from: ``numpy``, ``random``."""


@contextmanager
def unchanged(program: Program) -> Iterator[Changes]:
    """Within, a program may run; afterwards it and all generators are as they were.

    Yields:
        What the run changed, filled in at the end.
    """
    objects = _objects(program)
    before = {name: _Snapshot(thing) for name, thing in objects.items()}
    generators, changes = rng_state(), Changes()
    numpy_state, python_state = _numpy_state(), random.getstate()
    try:
        yield changes
    finally:
        for name, snapshot in before.items():
            snapshot.tell(name, changes)
            snapshot.restore()
        changes.random += ["numpy"] if _numpy_state() != numpy_state else []
        changes.random += ["random"] if random.getstate() != python_state else []
        set_rng_state(generators)


def _numpy_state() -> tuple[Any, ...]:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return (kind, np.asarray(keys).tobytes(), *rest)


def _objects(program: Program) -> dict[str, Any]:
    """The program's modules, its owner, and distributions that they hold, by name."""
    found = {name: module for name, module in program.named_modules() if module is not program}
    owner = program.owner
    if not any(owner is module for module in found.values()) and hasattr(owner, "__dict__"):
        found[program.name] = owner
    held = {
        f"{name}.{key}": value
        for name, thing in found.items()
        for key, value in vars(thing).items()
        if isinstance(value, torch.distributions.Distribution)
    }
    return {"": program} | found | held


class _Snapshot:
    """The attributes of an object, one level deep, and the tensors among them."""

    def __init__(self, thing: Any) -> None:
        self.thing = thing
        # A transform keeps its last value, a distribution what it has worked out: no state.
        self.tells = not isinstance(thing, Transform | torch.distributions.Distribution)
        self.attributes = dict(vars(thing))
        self.tables = {
            key: dict(value)
            for key, value in self.attributes.items()
            if key in ("_parameters", "_buffers", "_modules") and isinstance(value, dict)
        }
        self.versions = {
            key: (value, value._version, value.detach().clone())
            for key, value in self.attributes.items()
            if isinstance(value, Tensor) and not value.is_inference()
        }

    def tell(self, name: str, changes: Changes) -> None:
        """Add what is another now than it was."""
        if not self.tells:
            return
        prefix = name + "." if name else ""
        for key, new in vars(self.thing).items():
            old = self.attributes.get(key)
            if isinstance(old, Tensor) and new is not old:
                changes.replaced[prefix + key] = old
            elif isinstance(new, Plain) and not (type(new) is type(old) and new == old):
                changes.attributes.append(prefix + key)
        for key, (tensor, version, _) in self.versions.items():
            if tensor._version != version:
                changes.attributes.append(prefix + key)

    def restore(self) -> None:
        """Put everything back."""
        for tensor, version, copy in self.versions.values():
            if tensor._version != version:
                tensor.data.copy_(copy)
        now = vars(self.thing)
        now.clear()
        now.update(self.attributes)
        for key, table in self.tables.items():
            now[key].clear()
            now[key].update(table)
