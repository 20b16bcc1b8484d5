"""A model's log joint as a function of its latents, for :func:`inference.map_estimate`."""

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

from inference.sites import known_support
from ppl_models.errors import PplError, ProgramError, UnknownNameError
from ppl_models.program import Program, as_program, signature_of


@dataclass
class Latent:
    """A continuous latent site."""

    support: Constraint
    free: Tensor
    """The starting value in unconstrained space."""


class Objective:
    """−log p(values, data) as a function of unconstrained tensors.

    Args:
        program: the program.
        batch: the fields that it names.
        latents: with the values to begin from.
        trace: of the model at these values.
    """

    def __init__(
        self,
        program: Program,
        batch: Mapping[str, Tensor],
        latents: Mapping[str, Latent],
        trace: poutine.Trace,
    ) -> None:
        self.program, self.batch = program, batch
        self.free = {name: latent.free.requires_grad_() for name, latent in latents.items()}
        self.transforms = {name: transform_to(latent.support) for name, latent in latents.items()}
        samples = {n: s for n, s in trace.nodes.items() if s["type"] == "sample"}
        dims = [-f.dim for s in samples.values() for f in s["cond_indep_stack"] if f.dim]
        self.nesting = max(dims, default=0)
        drawn = [n for n, s in samples.items() if not s["is_observed"] and not _is_subsample(s)]
        self.has_discrete = bool(set(drawn) - latents.keys())

    def values(self) -> dict[str, Tensor]:
        """Of the latents, in their supports, with a gradient to ``free``."""
        return {name: transform(self.free[name]) for name, transform in self.transforms.items()}

    def detached(self) -> dict[str, Tensor]:
        """The values as plain numbers."""
        with torch.no_grad():
            return {name: value.clone() for name, value in self.values().items()}

    def _conditioned(self) -> Callable[[], Any]:
        conditioned = poutine.condition(self.program.run_model, data=self.values())
        return lambda: conditioned(self.batch)

    def __call__(self) -> Tensor:
        """−log p(values, data), nats."""
        model = self._conditioned()
        if not self.has_discrete:
            return -poutine.trace(model).get_trace().log_prob_sum()
        elbo = TraceEnum_ELBO(max_plate_nesting=self.nesting, strict_enumeration_warning=False)
        loss = elbo.differentiable_loss(config_enumerate(model), lambda: None)
        return torch.as_tensor(loss)


def as_modelled(thing: Any) -> Program:
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


def as_batch(program: Program, data: Mapping[str, Tensor] | Tensor | None) -> dict[str, Tensor]:
    """The fields of the data; a tensor stands for the first one.

    Raises:
        ProgramError: the model does not name them.
    """
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


def find_latents(
    program: Program, batch: Mapping[str, Tensor], init: Mapping[str, Tensor]
) -> tuple[dict[str, Latent], poutine.Trace]:
    """The continuous latents of the model with the values to begin from, and the model's trace.

    Raises:
        PplError: there are none, or one cannot be moved; or ``init`` does not fit.
    """

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
    _check_fixed_supports(program, batch, found)
    return found, trace


def _check_fixed_supports(
    program: Program, batch: Mapping[str, Tensor], latents: Mapping[str, Latent]
) -> None:
    """Refuse a support that moves with other latents: each is moved in a space of its own."""
    if len(latents) < 2:
        return
    moved = {k: transform_to(v.support)(v.free + 0.1) for k, v in latents.items()}
    with torch.no_grad():
        trace = poutine.trace(poutine.condition(program.run_model, data=moved)).get_trace(batch)
    for name, latent in latents.items():
        if name not in trace.nodes:
            continue
        support = known_support(trace.nodes[name]["fn"])
        if not torch.equal(transform_to(support)(latent.free + 0.1), moved[name]):
            raise ProgramError(
                f"the support of site {name!r} depends on other latents; draw a site of a fixed "
                "support and shift or scale it, say Uniform(0, 1) times the other latent"
            )


def _free_value(name: str, site: Any) -> Latent:
    support = known_support(site["fn"])
    if support is None or support.is_discrete:
        raise ProgramError(
            f"site {name!r} is of {type(site['fn']).__name__}, which has no continuous support "
            "and no list of its states; give its value as data, or write it as continuous"
        )
    return Latent(support, transform_to(support).inv(site["value"]).detach().clone())


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
