"""Runs of guide and model, and their sites."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

Site = Mapping[str, Any]
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
    """Trace the model with a guide's values."""
    return poutine.trace(poutine.replay(model, trace=guide_trace)).get_trace(*args, **kwargs)


def sample_sites(trace: poutine.Trace) -> Iterator[tuple[str, Site]]:
    """The sample sites of a trace, without those by which plates record their subsample."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not isinstance(site["fn"], _Subsample):
            yield name, site


def log_prob_of(site: Site) -> Tensor:
    """Log density of a site's value, with its mask and without its scale: batch shape."""
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, 1.0, site["mask"])


def scaled_log_prob(site: Site) -> Tensor:
    """Log density of a site's value, with the site's scale and mask: batch shape."""
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, site["scale"], site["mask"])


def site_names(traces: Traces) -> tuple[str, ...]:
    """Names of the sites, guide's and model's: the structure of a program."""
    return tuple(name for trace in (traces.guide, traces.model) for name, _ in sample_sites(trace))
