"""Runs of guide and model, and their sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from pyro import poutine
from pyro.distributions import Unit
from pyro.distributions.util import scale_and_mask
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from inference.sites import innermost

Site = dict[str, Any]
PARTICLES = "num_particles_vectorized"
"""Name of the plate of vectorized particles, as in Pyro."""


class Traces(NamedTuple):
    """One run of the guide and of the model replayed against it."""

    model: poutine.Trace
    guide: poutine.Trace


def run_traces(
    model: Callable[..., Any], guide: Callable[..., Any], args: Sequence[Any], kwargs: Any
) -> Traces:
    """Trace the guide, then the model with the guide's values."""
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    return Traces(run_model(model, guide_trace, args, kwargs), guide_trace)


def run_model(
    model: Callable[..., Any], guide_trace: poutine.Trace, args: Sequence[Any], kwargs: Any
) -> poutine.Trace:
    """Trace the model with a guide's values, and the guide's auxiliary losses beside its own."""
    trace = poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)
    for name, site in guide_trace.nodes.items():
        if is_guide_loss(site):
            trace.add_node(name, **_as_of_model(site))
    return trace


def is_guide_loss(site: Site) -> bool:
    """Whether a site is an auxiliary loss that was recorded as one of the guide."""
    return site.get("type") == "sample" and bool(site["infer"].get("in_guide"))


def _as_of_model(loss: Site) -> Site:
    """A guide's auxiliary loss as one of the model, whose log densities are added."""
    infer = {"is_auxiliary_loss": True}
    return loss | {"fn": Unit(-loss["fn"].log_factor, has_rsample=True), "infer": infer}


def sample_sites(trace: poutine.Trace) -> Iterator[tuple[str, Site]]:
    """The sample sites of a trace, without plates' subsamples and ``pyro.deterministic`` values.

    A guide's auxiliary losses are left out: they stand in the model's trace (:func:`run_model`).
    """
    for name, site in trace.nodes.items():
        if site.get("type") != "sample" or isinstance(site["fn"], _Subsample):
            continue
        if not site["infer"].get("_deterministic") and not is_guide_loss(site):
            yield name, site


_DENSITY = "_ppl_log_prob"


def log_prob_of(site: Site) -> Tensor:
    """Log density of a site's value, without mask and scale: batch shape.

    It is taken once: a flow without an inverse knows that of its last draw alone.
    """
    if _DENSITY not in site:
        site[_DENSITY] = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    found: Tensor = site[_DENSITY]
    return found


def with_value(site: Site, value: Tensor) -> Site:
    """The site with another value."""
    return {k: v for k, v in site.items() if k != _DENSITY} | {"value": value}


def masked_log_prob(site: Site) -> Tensor:
    """Log density of a site's value, with its mask and without its scale: batch shape."""
    return scale_and_mask(log_prob_of(site), 1.0, site["mask"])


def scaled_log_prob(site: Site) -> Tensor:
    """Log density of a site's value, with the site's scale and mask: batch shape."""
    return scale_and_mask(log_prob_of(site), site["scale"], site["mask"])


def same_subsample(fn: Callable[..., Any], traces: Traces) -> Callable[..., Any]:
    """A model or guide whose plates draw the same data as in a run; as it is, if none draws."""
    drawn = poutine.Trace()
    for trace in traces:
        for name, site in trace.nodes.items():
            subsample = site.get("type") == "sample" and isinstance(site["fn"], _Subsample)
            if subsample and name not in drawn.nodes:
                drawn.add_node(name, **site)
    return poutine.replay(fn, trace=drawn) if len(drawn.nodes) else fn


def structure(traces: Traces) -> tuple[Any, ...]:
    """Names, kinds, events and depth of plates of the sites, guide's and model's."""
    return tuple(
        (name, type(innermost(site["fn"])), site["fn"].event_shape, len(site["cond_indep_stack"]))
        for trace in (traces.guide, traces.model)
        for name, site in sample_sites(trace)
    )
