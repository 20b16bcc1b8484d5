"""Rules about plates, shapes and scales.

Shapes: B data.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyro
import torch

from inference.densities import data_plate, has_global_latents
from inference.elbo.checks import weight_disagreements
from inference.elbo.traces import Site, Traces, run_traces
from inference.linter.finding import Lint, Rule
from inference.linter.sighting import Sighting
from inference.priming import check_autoguides, check_plate_size
from ppl_models.errors import ProgramError

NO_DATA_PLATE = Rule(
    "no-data-plate",
    "error",
    "sites of a datum outside `pyro.plate('data', ...)`",
    "only the plate tells that the data are independent: without it there is no number per datum, "
    "and a minibatch cannot be weighed against the whole.",
    "with pyro.plate('data', len(x), dim=-1): around the sites of a datum, in model and guide.",
)
BATCH_IN_EVENT = Rule(
    "batch-in-event",
    "error",
    "a `to_event` that makes the batch a part of the event",
    "the density would be one number for the whole batch, counted once for every datum.",
    "Let to_event(n) cover the dimensions of one datum alone, and leave the batch to the plate.",
)
UNCLAIMED = Rule(
    "dimension-in-no-plate",
    "error",
    "a batch dimension that is in no plate: an event that is too small",
    "its entries would be taken for data of their own: per-datum numbers and K-sample bounds go "
    "wrong, often without an error.",
    "Make it part of the event with .to_event(n), or put it into a plate of its own.",
)
PLATES_DIFFER = Rule(
    "plates-differ",
    "error",
    "a latent in other plates (name, dim, size) in the guide than in the model",
    "log p and log q would be summed over different things.",
    "Use the same plates, with the same dim, in model and guide.",
)
SHAPES_DIFFER = Rule(
    "shapes-differ",
    "error",
    "a value whose shape is not that of the site's distribution",
    "the density broadcasts: every value is scored many times, or against another's parameters.",
    "Give value and distribution one shape: look at squeeze, unsqueeze, keepdim and to_event.",
)
SCALES_DIFFER = Rule(
    "scale-differs",
    "error",
    "`poutine.scale`, a mask or a plate's scale in model or guide alone",
    "log p and log q would be weighed differently: the KL term would be none.",
    "Put it around the latent in model and guide alike.",
)
SIZE_UNKNOWN = Rule(
    "num-data-unknown",
    "warning",
    "global latents with a plate that knows nothing of the whole data set",
    "every minibatch would pay the whole KL of the global latents; only one batch of all data is "
    "right.",
    "Name the keyword-only option num_data and write pyro.plate('data', num_data or len(x), "
    "subsample=torch.arange(len(x)), dim=-1).",
)
SEQUENTIAL = Rule(
    "plate-in-a-loop",
    "warning",
    "a Python loop over the data",
    "it is slow, and no number per datum can be taken.",
    "with pyro.plate('data', len(x), dim=-1): instead of for i in pyro.plate(...).",
)
AUTOGUIDE = Rule(
    "autoguide-of-local-latents",
    "error",
    "an automatic guide over latents of the data plate",
    "it keeps one value a row of its first batch, which the next batch knows nothing of.",
    "Write an amortized guide for them; automatic ones serve global latents.",
)
RULES = (
    *(NO_DATA_PLATE, BATCH_IN_EVENT, UNCLAIMED, PLATES_DIFFER, SHAPES_DIFFER, SCALES_DIFFER),
    *(SIZE_UNKNOWN, SEQUENTIAL, AUTOGUIDE),
)


def _plates(site: Site) -> list[tuple[str, int, int]]:
    """Name, dim and size of the vectorized plates of a site."""
    return sorted((f.name, f.dim, f.size) for f in site["cond_indep_stack"] if f.vectorized)


def plate_mismatches(traces: Traces) -> Iterator[tuple[str, str]]:
    """Latents that stand in other plates in the guide than in the model, and the words for it."""
    for name, site in traces.model.nodes.items():
        other = traces.guide.nodes.get(name)
        if other is None or site["type"] != "sample" or site["is_observed"]:
            continue
        ours, theirs = _plates(site), _plates(other)
        if ours != theirs:
            yield (
                name,
                f"site {name!r} stands in plates {ours} in the model but {theirs} in the guide "
                "(name, dim, size)",
            )


def data(seen: Sighting) -> Iterator[Lint]:
    """The plate of the data, and whether the sites of a datum stand in it."""
    rows, stray = seen.rows, False
    for role, run in seen.roles.items():
        for name, site in run.sites.items():
            if site["infer"].get("is_auxiliary_loss") or _plates(site):
                continue
            if any(f.size == rows and not f.vectorized for f in site["cond_indep_stack"]):
                continue  # said by `loops`
            batch, event = (tuple(s) for s in (site["fn"].batch_shape, site["fn"].event_shape))
            at = seen.place(role, name)
            if _of_rows(seen, role, name):
                stray = True
                yield NO_DATA_PLATE.broken(f"batch shape {batch}, and no plate", **at)
            elif event[:1] == (rows,) and (site["is_observed"] or seen.plate is None):
                stray = True
                fits = len(event) - 1
                yield BATCH_IN_EVENT.broken(
                    f"the event {event} holds all {rows} data of the batch, and the site stands in "
                    "no plate",
                    f"{f'to_event({fits})' if fits else 'no to_event'}, in "
                    "with pyro.plate('data', len(x), dim=-1):",
                    **at,
                )
    complete = seen.model.error is None and seen.observed
    if complete and not stray and seen.plate is None and not any(True for _ in loops(seen)):
        try:
            data_plate(seen.model.trace, rows)
        except ProgramError as error:
            yield NO_DATA_PLATE.broken(str(error), role="model")


def _of_rows(seen: Sighting, role: str, name: str) -> bool:
    """Whether the batch of a site in no plate is that of the data.

    Beside a data plate it may be what all data share, and of as many entries by chance.
    """
    batch = seen.roles[role].sites[name]["fn"].batch_shape
    if seen.rows not in batch or seen.plate is None:
        return seen.rows in batch
    again = seen.on_one_more.roles[role].sites.get(name)
    return again is None or again["fn"].batch_shape != batch


def _is_shared(seen: Sighting, role: str, name: str) -> bool:
    """Whether a site in no plate is one of all data, so far as can be told."""
    return seen.plate is not None and not _of_rows(seen, role, name)


def loops(seen: Sighting) -> Iterator[Lint]:
    """Plates that are gone through one datum after the other."""
    for role, run in seen.roles.items():
        told = set()
        for name, site in run.sites.items():
            for frame in site["cond_indep_stack"]:
                if frame.vectorized or frame.size != seen.rows or frame.name in told:
                    continue
                told.add(frame.name)
                yield SEQUENTIAL.broken(
                    f"the plate {frame.name!r} of size {frame.size} is a loop in Python",
                    **seen.place(role, name),
                )


def shapes(seen: Sighting) -> Iterator[Lint]:
    """Batch dimensions in no plate, and values of another shape than their distribution's."""
    for role, run in seen.roles.items():
        for name, site in run.sites.items():
            if site["infer"].get("is_auxiliary_loss"):
                continue
            claimed = {dim for _, dim, _ in _plates(site)}
            batch = tuple(site["fn"].batch_shape)
            free = [d for d in range(-len(batch), 0) if d not in claimed and batch[d] > 1]
            if free and (claimed or _is_shared(seen, role, name)):
                yield UNCLAIMED.broken(
                    f"batch shape {batch}, of which dim(s) {', '.join(map(str, free))} are in no "
                    f"plate (plates: {_plates(site)}); the value has shape "
                    f"{tuple(site['value'].shape)}",
                    **seen.place(role, name),
                )
            elif role == "model" and seen.joint.error is None:
                yield from _shape(seen, name, site)


def _shape(seen: Sighting, name: str, site: Site) -> Iterator[Lint]:
    value, expected = tuple(site["value"].shape), tuple(site["fn"].shape())
    if value == expected:
        return
    at, event = seen.place("model", name), tuple(site["fn"].event_shape)
    if site["is_observed"] and event == value and event[:1] == (seen.rows,) and _plates(site):
        yield BATCH_IN_EVENT.broken(
            f"the event {event} holds all {seen.rows} data of the batch, inside of a plate",
            f"to_event({len(event) - 1})" if event[1:] else "no to_event",
            **at,
        )
        return
    yield SHAPES_DIFFER.broken(
        f"site {name!r} has values of shape {value}, but the model's distribution has {expected} "
        f"(batch {tuple(site['fn'].batch_shape)}, event {event})",
        **at,
    )


def agreement(seen: Sighting) -> Iterator[Lint]:
    """Plates, scales and masks of latents, in the guide as in the model."""
    different = dict(plate_mismatches(seen.traces))
    for name, text in different.items():
        yield PLATES_DIFFER.broken(text, **seen.place("guide", name))
    for name, text in weight_disagreements(seen.traces):
        if name not in different:
            yield SCALES_DIFFER.broken(text, **seen.place("guide", name))


def whole(seen: Sighting) -> Iterator[Lint]:
    """What global latents know of the size of the whole data set; and automatic guides."""
    if not seen.runs or seen.plate is None or seen.sums_out:
        return
    try:
        check_autoguides(seen.traces, seen.program, seen.rows)
    except ProgramError as error:
        yield AUTOGUIDE.broken(str(error), role="guide")
        return
    if not has_global_latents(seen.traces, seen.rows):
        return
    traces, size = seen.traces, 10 * seen.rows
    if "num_data" in seen.program.options:
        twin = seen.copy()  # what it makes for so many data is gone with it
        with twin.scope(), torch.no_grad(), pyro.validation_enabled(False):
            try:
                traces = run_traces(
                    twin.run_model, twin.run_guide, (seen.batch,), {"num_data": size}
                )
            except Exception:  # a program that takes no other size than that it was run with
                return
    try:
        check_plate_size(traces, seen.program, seen.rows, size)
    except ProgramError as error:
        text = str(error).partition(": every minibatch")[0]
        yield SIZE_UNKNOWN.broken(text.replace(f"the {size} training data", "that of all data"))


CHECKS = (data, loops, shapes, agreement, whole)
