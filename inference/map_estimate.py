"""The mode of any Pyro program: maximum a posteriori values of its latents, by gradient.

Latent sites are moved in the unconstrained space of their supports; the density that is
maximized is that of the values themselves, without the Jacobian of the map between the two, so
the mode does not depend on it. Discrete latents are summed out exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference.devices import isolated_rng
from inference.map_objective import Objective, as_batch, as_modelled, find_latents
from inference.settings import FUSED, OptimizerFactory, optimizers
from ppl_models.errors import PplError, UnknownNameError

Callback = Callable[[int, float, dict[str, Tensor]], None]
"""Called with the number of a step, the log joint, and the values of the latents before it."""

PATIENCE = 20
"""Steps over which the log joint must stand still: momentum swings past the mode and back."""


@dataclass(repr=False)
class MapResult:
    """The mode that was found, and the way there."""

    values: dict[str, Tensor]
    """Of the latent sites, in their supports."""
    trajectory: list[float]
    """log p(latents, data) before each step, and at the end; nats."""
    converged: bool

    @property
    def log_joint(self) -> float:
        """At the values."""
        return self.trajectory[-1]

    def __repr__(self) -> str:
        sites = ", ".join(f"{k} {tuple(v.shape)}" for k, v in self.values.items())
        steps = len(self.trajectory) - 1
        return f"MapResult({sites}; log joint {self.log_joint:.6g} after {steps} steps)"


def map_estimate(
    program: Any,
    data: Mapping[str, Tensor] | Tensor | None = None,
    *,
    init: Mapping[str, Tensor] | None = None,
    optimizer: str | OptimizerFactory = "Adam",
    learning_rate: float = 1e-2,
    max_steps: int = 1000,
    tolerance: float = 1e-6,
    seed: int = 0,
    callback: Callback | None = None,
) -> MapResult:
    """Values of the latents that are likeliest, with the data, under a program's model.

    The program's own parameters stay as they are, and so does the global random state. A guide
    is not needed.

    Args:
        program: any object with a ``model``, or a model function.
        data: fields of the data that the model names; a tensor stands for its first field.
        init: values of latent sites to begin from; the others begin at their prior's median.
        optimizer: a name of ``torch.optim``, ``LBFGS``, or a function from parameters to an
            optimizer.
        learning_rate: for an optimizer given by name.
        max_steps: at most so many steps.
        tolerance: the search ends when the log joint has moved by less than this share of its
            size over twenty steps; 0 takes every step.
        seed: of what the model draws, such as the starting points of latents without ``init``.
        callback: called after each step with its number, and the log joint and the values
            before it.

    Returns:
        A :class:`MapResult`.

    Raises:
        PplError: the model has no latents, or they cannot be moved (of unknown support, or of one
            that other latents set); or the density is not finite.

    Example:
        >>> import pyro.distributions as dist
        >>> def model(x):
        ...     loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        ...     with pyro.plate("data", len(x)):
        ...         pyro.sample("x", dist.Normal(loc, 1.0), obs=x)
        >>> found = map_estimate(model, torch.tensor([1.0, 2.0]), learning_rate=0.1)
        >>> round(float(found.values["loc"]), 2)
        1.0
    """
    if max_steps < 0:
        raise PplError(f"max_steps must not be negative, got {max_steps}")
    wrapped = as_modelled(program)
    batch = as_batch(wrapped, data)
    with wrapped.scope(), isolated_rng(seed):
        objective = Objective(wrapped, batch, *find_latents(wrapped, batch, init or {}))
        stepper = _make_optimizer(optimizer, learning_rate, list(objective.free.values()))
        trajectory, converged = _climb(objective, stepper, max_steps, tolerance, callback)
    return MapResult(objective.detached(), trajectory, converged)


def _climb(
    objective: Objective,
    optimizer: torch.optim.Optimizer,
    max_steps: int,
    tolerance: float,
    callback: Callback | None,
) -> tuple[list[float], bool]:
    """The log joint at every step, and whether it has ceased to rise."""
    seen: list[float] = []

    def closure() -> Tensor:
        loss = objective()
        free = list(objective.free.values())  # the program's parameters are left alone
        for value, grad in zip(free, torch.autograd.grad(loss, free), strict=True):
            value.grad = grad
        seen.append(-float(loss.detach()))
        return loss

    trajectory: list[float] = []
    for step in range(max_steps):
        seen.clear()
        before = objective.detached() if callback is not None else {}
        optimizer.step(closure)  # type: ignore[arg-type]
        now = seen[0]
        _check_finite(now, step)
        trajectory.append(now)
        if callback is not None:
            callback(step, now, before)
        if _stands_still(trajectory, tolerance):
            break
    converged = _stands_still(trajectory, tolerance)
    # Pyro sums out discrete latents with a gradient or not at all.
    with torch.set_grad_enabled(objective.has_discrete):
        trajectory.append(-float(objective().detach()))
    _check_finite(trajectory[-1], len(trajectory) - 1)
    return trajectory, converged


def _stands_still(trajectory: list[float], tolerance: float) -> bool:
    late = trajectory[-PATIENCE:]
    return len(late) == PATIENCE and max(late) - min(late) < tolerance * max(1.0, abs(late[-1]))


def _check_finite(log_joint: float, step: int) -> None:
    if log_joint != log_joint or log_joint in (float("inf"), -float("inf")):
        raise PplError(
            f"the log joint is {log_joint} at step {step}; begin elsewhere (init), or take a "
            "smaller learning_rate"
        )


def _make_optimizer(
    optimizer: str | OptimizerFactory, learning_rate: float, parameters: list[Tensor]
) -> torch.optim.Optimizer:
    if not isinstance(optimizer, str):
        return optimizer(parameters)  # type: ignore[arg-type]
    if not learning_rate > 0:
        raise PplError(f"learning_rate must be positive, got {learning_rate}")
    if optimizer == "LBFGS":
        return torch.optim.LBFGS(parameters, lr=learning_rate, line_search_fn="strong_wolfe")
    if optimizer not in optimizers():
        raise UnknownNameError("optimizer", optimizer, [*optimizers(), "LBFGS"])
    fused: dict[str, Any] = {"fused": True} if optimizer in FUSED else {}
    return optimizers()[optimizer](parameters, lr=learning_rate, **fused)
