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
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide.initialization import InitMessenger, init_to_median, init_to_value
from torch import Tensor
from torch.distributions import transform_to
from torch.distributions.constraints import Constraint

from inference.settings import FUSED, OptimizerFactory, optimizers
from inference.sites import known_support
from ppl_models.errors import PplError, ProgramError, UnknownNameError
from ppl_models.program import Program, as_program, signature_of

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
    callback: Callback | None = None,
) -> MapResult:
    """Values of the latents that are likeliest, with the data, under a program's model.

    The program's own parameters stay as they are. A guide is not needed.

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
        callback: called after each step with its number, and the log joint and the values
            before it.

    Returns:
        A :class:`MapResult`.

    Raises:
        PplError: the model has no latents, or they cannot be moved; or the density is not finite.

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
    wrapped = _as_program(program)
    batch = _as_batch(wrapped, data)
    with wrapped.scope():
        sites = _latent_sites(wrapped, batch, init or {})
        free = {name: site.free.requires_grad_() for name, site in sites.items()}
        objective = _Objective(wrapped, batch, {k: s.support for k, s in sites.items()}, free)
        stepper = _make_optimizer(optimizer, learning_rate, list(free.values()))
        trajectory, converged = _climb(objective, stepper, max_steps, tolerance, callback)
    return MapResult(objective.detached(), trajectory, converged)


@dataclass
class _Latent:
    support: Constraint
    free: Tensor
    """The starting value in unconstrained space."""


class _Objective:
    """−log p(values, data) as a function of unconstrained tensors."""

    def __init__(
        self,
        program: Program,
        batch: Mapping[str, Tensor],
        supports: Mapping[str, Constraint],
        free: Mapping[str, Tensor],
    ) -> None:
        self.program, self.batch, self.free = program, batch, free
        self.transforms = {name: transform_to(support) for name, support in supports.items()}
        with torch.no_grad():
            trace = poutine.trace(self._conditioned()).get_trace()
        samples = [s for s in trace.nodes.values() if s["type"] == "sample"]
        dims = [-f.dim for s in samples for f in s["cond_indep_stack"] if f.dim]
        self.nesting = max(dims, default=0)
        self.has_discrete = any(not s["is_observed"] and not _is_subsample(s) for s in samples)

    def values(self) -> dict[str, Tensor]:
        return {name: transform(self.free[name]) for name, transform in self.transforms.items()}

    def detached(self) -> dict[str, Tensor]:
        with torch.no_grad():
            return {name: value.clone() for name, value in self.values().items()}

    def _conditioned(self) -> Callable[[], Any]:
        conditioned = poutine.condition(self.program.run_model, data=self.values())
        return lambda: conditioned(self.batch)

    def __call__(self) -> Tensor:
        model = self._conditioned()
        if not self.has_discrete:
            return -poutine.trace(model).get_trace().log_prob_sum()
        elbo = TraceEnum_ELBO(max_plate_nesting=self.nesting, strict_enumeration_warning=False)
        loss = elbo.differentiable_loss(config_enumerate(model), lambda: None)
        return torch.as_tensor(loss)


def _climb(
    objective: _Objective,
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


def _as_program(thing: Any) -> Program:
    """A program, with an empty guide where there is none."""
    if isinstance(thing, Program) or hasattr(thing, "guide") or hasattr(thing, "program"):
        return as_program(thing)
    if hasattr(thing, "model"):
        return Program(thing.model, _no_guide, owner=thing)
    if callable(thing):
        return Program(thing, _no_guide)
    return as_program(thing)  # which says what is missing


def _no_guide() -> None:
    """The guide of a program whose mode alone is asked for."""


def _as_batch(program: Program, data: Mapping[str, Tensor] | Tensor | None) -> dict[str, Tensor]:
    fields = signature_of(program.model).fields
    if isinstance(data, Tensor):
        if not fields:
            raise ProgramError(f"the model of {program.name} names no field that data could fill")
        return {fields[0]: data}
    batch = dict(data or {})
    unknown = sorted(batch.keys() - set(fields))
    if unknown:
        raise ProgramError(
            f"the model of {program.name} names no field {', '.join(map(repr, unknown))}; "
            f"it names: {', '.join(fields) or 'none'}"
        )
    return batch


def _latent_sites(
    program: Program, batch: Mapping[str, Tensor], init: Mapping[str, Tensor]
) -> dict[str, _Latent]:
    """The continuous latents of the model with the values to begin from."""

    def begin(site: Any) -> Tensor:
        if site["name"] in given:
            _check_start(site, given[site["name"]])
        try:
            return start(site)
        except NotImplementedError as error:
            raise ProgramError(
                f"site {site['name']!r} is of {type(site['fn']).__name__}, which cannot be drawn "
                f"from; say where to begin: init={{{site['name']!r}: value}}"
            ) from error

    given = dict(init)
    start = init_to_value(values=given, fallback=init_to_median(num_samples=15))
    with torch.no_grad():
        trace = poutine.trace(InitMessenger(begin)(program.run_model)).get_trace(batch)
    found = {}
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or site["is_observed"] or _is_subsample(site):
            continue
        if getattr(site["fn"], "has_enumerate_support", False):
            continue  # summed out
        found[name] = _free_value(name, site)
    unknown = sorted(init.keys() - found.keys())
    if unknown:
        raise UnknownNameError("latent site in init", unknown[0], found)
    if not found:
        raise ProgramError(
            f"the model of {program.name} has no continuous latent site to move; what is observed "
            "must be given as data, and what is sought must be a pyro.sample without obs"
        )
    return found


def _free_value(name: str, site: Any) -> _Latent:
    support = known_support(site["fn"])
    if support is None or support.is_discrete:
        raise ProgramError(
            f"site {name!r} is of {type(site['fn']).__name__}, which has no continuous support "
            "and no list of its states; give its value as data, or write it as continuous"
        )
    return _Latent(support, transform_to(support).inv(site["value"]).detach().clone())


def _check_start(site: Any, value: Tensor) -> None:
    fn, support = site["fn"], known_support(site["fn"])
    if value.shape != fn.shape():
        raise PplError(
            f"init of site {site['name']!r} must be of shape {tuple(fn.shape())}; "
            f"got {tuple(value.shape)}"
        )
    inside = support is None or bool(support.check(value).all())
    if not inside or not bool(value.isfinite().all()):
        raise PplError(f"init of site {site['name']!r} is outside its support, {support}")


def _is_subsample(site: Any) -> bool:
    """Whether a site is a plate's choice of data."""
    return type(site["fn"]).__name__ == "_Subsample"


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
