"""The numbers of a local latent, one column a dimension.

Shapes: B data (rows of a run), D dimensions of a site for each of them.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from pyro import poutine
from torch import Tensor

from inference.densities import Plate, is_local
from inference.elbo.traces import Site, Traces, sample_sites
from inference.sites import is_point
from inference.summed_out import enumerates, over_all_states
from ppl_models.program import Batch, Program


def row_axis(site: Site, plate: Plate) -> int:
    """The axis of a local site's value along which the data lie, from the right."""
    return plate[1] - len(site["fn"].event_shape)


def full_value(site: Site) -> Tensor:
    """A site's value with all of its batch dimensions, also those that it does not vary in."""
    fn, value = site["fn"], site["value"]
    return value.expand(fn.batch_shape + fn.event_shape)


def columns_of(site: Site, plate: Plate) -> Tensor:
    """A local site's value as numbers (B, D)."""
    value = full_value(site).movedim(row_axis(site, plate), 0)
    return value.reshape(len(value), -1)


def column_names(name: str, site: Site, plate: Plate) -> list[str]:
    """``z``, or ``z[0]``, ``z[1]``, ... (``z[0,0]``, ...) of a site's D columns."""
    shape = full_value(site).movedim(row_axis(site, plate), 0).shape[1:]
    if not shape:
        return [name]
    return [f"{name}[{','.join(map(str, index))}]" for index in np.ndindex(*shape)]


def spread_over(size: int, most: int) -> list[int]:
    """At most so many of the indices below ``size``, at even distances."""
    count = min(size, most)
    return sorted({round(i) for i in np.linspace(0, size - 1, count)}) if count else []


def guided_sites(traces: Traces, plate: Plate) -> Iterator[tuple[str, Site]]:
    """The guide's local latents that the model has too, and that are no function of others."""
    for name, site in sample_sites(traces.guide):
        prior = traces.model.nodes.get(name)
        if prior is not None and not is_point(prior["fn"]) and is_local(site, plate):
            yield name, site


def model_given(program: Program, batch: Batch, values: dict[str, Tensor]) -> Traces:
    """The model with latents at these values, counted as observed, and no guide.

    What the program sums out is in all its states. Its log weights are log p(x, values).

    Args:
        program: in its scope.
        batch: fields (B, ...).
        values: by site, (B, ...).
    """
    model = poutine.condition(program.run_model, data=values)
    traces = Traces(poutine.trace(model).get_trace(batch), poutine.Trace())
    return over_all_states(traces, model, (batch,), {}) if enumerates(traces) else traces
