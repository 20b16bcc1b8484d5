"""The potential of NUTS as one traced function: the handlers of Pyro run once, not at every step.

A trace keeps what the model's Python did the first time. Its values and gradients are therefore
held against those of the model at a few points, and a model that goes another way there (a branch
on a latent's value, chance) stays as it is.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pyro
import torch
from pyro.infer import NUTS
from pyro.ops.integrator import potential_grad
from torch import Tensor

Point = dict[str, Tensor]
Potential = Callable[[Point], Tensor]
POINTS = 4
"""At which trace and model are compared; TorchScript optimizes at its second and third call."""
ROUNDING = 1e-3
"""Of float32 sums over a data set, relative to the largest."""


class TracedNUTS(NUTS):
    """NUTS whose potential is traced at the start of every run, where that changes nothing."""

    potential_fn: Any

    def _initialize_model_properties(self, args: Any, kwargs: Any) -> None:
        super()._initialize_model_properties(args, kwargs)
        self.potential_fn = traced(self.potential_fn, self.initial_params)


def traced(potential: Potential, start: Point) -> Potential:
    """The potential, traced at a point; itself where it cannot be traced or differs.

    Args:
        potential: of unconstrained latents by site, a scalar. What else it reads is kept as it
            is now: trace again for other data or parameters.
        start: where it is traced.
    """
    names = sorted(start)
    if not names:
        return potential

    def positional(*values: Tensor) -> Tensor:
        return potential(dict(zip(names, values, strict=True)))

    # `torch.jit` is deprecated, and warns of every shape that a trace keeps.
    with warnings.catch_warnings(), pyro.validation_enabled(False):
        warnings.simplefilter("ignore")
        try:
            begin = tuple(start[name].detach().clone() for name in names)
            compiled = torch.jit.trace(positional, begin, check_trace=False)
        except Exception:  # whatever the tracer cannot do, the model itself can
            return potential

        def fast(point: Point) -> Tensor:
            return compiled(*(point[name] for name in names))

        same = all(_agree(potential, fast, point) for point in _around(start))
    return fast if same else potential


def _around(start: Point) -> list[Point]:
    """The start and points about it, without touching the global random state."""
    rng = torch.Generator().manual_seed(0)
    steps = [0.0, *torch.linspace(0.1, 1.0, POINTS - 1).tolist()]
    return [
        {
            name: (value + step * torch.randn(value.shape, generator=rng).to(value)).detach()
            for name, value in start.items()
        }
        for step in steps
    ]


def _agree(potential: Potential, fast: Potential, point: Point) -> bool:
    """Whether values and gradients are the same up to rounding."""
    ours, energy = potential_grad(potential, dict(point))
    theirs, other = potential_grad(fast, dict(point))
    pairs = [(energy, other), *((ours[name], theirs[name]) for name in ours)]
    return all(
        torch.allclose(a, b, rtol=ROUNDING, atol=ROUNDING * float(a.abs().max()), equal_nan=True)
        for a, b in pairs
    )
