"""Before the first step: run the program once, and refuse what cannot be trained.

Running it once creates its lazy parameters (``pyro.param``, autoguides) and shows its sites.
"""

from __future__ import annotations

from typing import Any

import pyro
import torch
from pyro.infer.autoguide import AutoGuide, AutoGuideList
from torch import Tensor

from inference.data.checks import check_finite, check_labels
from inference.data.dataset import DataSet, MemorySplit, Split
from inference.densities import data_plate, has_global_latents, is_local
from inference.elbo.checks import check_traces
from inference.elbo.traces import Traces, is_guide_loss, run_traces, sample_sites
from inference.sites import family, known_support
from inference.summed_out import enumerates
from inference.weights import batch_size
from ppl_models.errors import PplError, ProgramError, describe
from ppl_models.program import Batch, Program


def check_fields_named(program: Program, split: Split) -> None:
    """Refuse data that lack a field which the program names and needs.

    Raises:
        ProgramError: with the program's fields and the data's.
    """
    lacking = [
        name
        for name in program.fields
        if name not in split.fields and name not in program.optional_fields
    ]
    if lacking:
        raise ProgramError(
            f"{program.name} names the field(s) {', '.join(map(repr, lacking))}, which the data "
            f"lack. The program names: {', '.join(program.fields)}; the data have: "
            f"{', '.join(split.fields)}."
        )


def prime(program: Program, batch: Batch, num_data: int | None) -> Traces:
    """Run guide and model once, with Pyro's validation, and match their sites.

    Args:
        program: the program; its lazy parameters exist afterwards.
        batch: a few data, on the program's device.
        num_data: size of the training set.

    Returns:
        The traces, without gradient.

    Raises:
        ProgramError: model or guide fails on the batch, or they do not match.
    """
    check_batch(batch)
    try:
        program.new_params = _placement(batch)
        with torch.no_grad(), pyro.validation_enabled(True), program.scope():
            traces = run_traces(
                program.run_model, program.run_guide, (batch,), {"num_data": num_data}
            )
            for name, fn in _supports(traces, batch):
                _check_support(name, batch[name], fn, "batch")
            check_guide_losses(traces)
            if not enumerates(traces):
                check_autoguides(traces, program, batch_size(batch))
                check_traces(traces)
    except PplError:
        raise
    except Exception as error:
        shapes = {name: tuple(value.shape) for name, value in batch.items()}
        raise ProgramError(
            f"{program.name} fails on a batch with fields {shapes}: {describe(error)}"
            + pixel_hint(str(error))
        ) from error
    return traces


def _placement(batch: Batch) -> tuple[torch.device, torch.dtype]:
    """Device and floating dtype of a batch."""
    values = list(batch.values())
    floating = [v.dtype for v in values if v.is_floating_point()]
    return values[0].device, floating[0] if floating else torch.get_default_dtype()


def check_guide_losses(traces: Traces) -> None:
    """Refuse auxiliary losses that do not know where they are: their sign would be turned.

    Raises:
        ProgramError: naming the site.
    """
    for name, site in sample_sites(traces.guide):
        if site["infer"].get("is_auxiliary_loss"):
            raise ProgramError(
                f"auxiliary_loss {name!r} is in the guide, where it would be maximized; say so: "
                f"auxiliary_loss({name!r}, ..., in_guide=True)"
            )
    for name, site in traces.model.nodes.items():
        if is_guide_loss(site):
            raise ProgramError(
                f"auxiliary_loss {name!r} is in the model, where in_guide=True would maximize it; "
                "leave in_guide out"
            )


def check_autoguides(traces: Traces, program: Program, rows: int) -> None:
    """Refuse an automatic guide over latents of the data plate.

    Raises:
        ProgramError: it would keep one value for every row of its first batch.
    """
    plate = data_plate(traces.model, rows)
    for guide in program.modules():
        if not isinstance(guide, AutoGuide) or isinstance(guide, AutoGuideList):
            continue
        sites = [] if guide.prototype_trace is None else sample_sites(guide.prototype_trace)
        local = [n for n, s in sites if is_local(s, plate) and not s["is_observed"]]
        if local:
            raise ProgramError(
                f"{type(guide).__name__} covers the latent(s) {', '.join(map(repr, local))} of the "
                f"data plate {plate[0]!r}: it would keep one value for every row of its first "
                "batch. Write an amortized guide for them (a network that reads z off x), and use "
                "automatic guides for global latents."
            )


def check_plate_size(traces: Traces, program: Program, rows: int, num_data: int) -> None:
    """Refuse minibatches of a program with global latents that knows nothing of the whole.

    Args:
        traces: of the program on some data.
        program: the program.
        rows: how many data those were.
        num_data: size of the training set.

    Raises:
        ProgramError: every minibatch would pay the whole KL of the global latents.
    """
    if not has_global_latents(traces, rows):
        return
    plate = data_plate(traces.model, rows)
    sizes = {
        frame.full_size or frame.size
        for _, site in sample_sites(traces.model)
        for frame in site["cond_indep_stack"]
        if (frame.name, frame.dim) == plate
    }
    if sizes != {num_data}:
        raise ProgramError(
            f"{program.name} has global latents, but its plate {plate[0]!r} has size "
            f"{', '.join(map(str, sizes))} instead of the {num_data} training data: every "
            "minibatch would pay their whole KL. Name the keyword-only option num_data in model "
            "(and in the guide, if it has the plate) and write pyro.plate('data', num_data or "
            "len(x), subsample=torch.arange(len(x)), dim=-1); or train with one batch of all data."
        )


def check_batch(batch: Batch) -> None:
    """Refuse NaN and infinity in a batch.

    Raises:
        PplError: naming field and index.
    """
    for name, value in batch.items():
        check_finite(name, value, "batch")


def check_data(traces: Traces, batch: Batch, data: DataSet) -> None:
    """Check all in-memory data: finite, labels in range, and in the support of their sites.

    Args:
        traces: of the program on ``batch``.
        batch: the batch.
        data: the data set.

    Raises:
        PplError: naming split, field, index and remedy.
    """
    supports = dict(_supports(traces, batch))
    if len(data.valid) == 0:
        raise PplError(
            f"data {data.info.name!r} have no validation data; leave some, as "
            "from_tensors(..., fractions=(0.1, 0.1)) does"
        )
    for part in ("train", "valid", "test"):
        split = data.split(part)
        if not isinstance(split, MemorySplit):
            continue  # a stream is checked batch by batch, by the loss
        where = f"data {data.info.name!r} ({part})"
        for name, value in split.tensors.items():
            check_finite(name, value, where)
            if name == "y" and data.info.num_classes is not None:
                check_labels(value, data.info.num_classes, where)
            if name in supports and split.transform is None:
                _check_support(name, value, supports[name], where)


def _supports(traces: Traces, batch: Batch) -> list[tuple[str, Any]]:
    """Fields that are observed as they are, with the distribution that they must fit."""
    found = []
    for _, site in sample_sites(traces.model):
        if site["is_observed"]:
            found += [(field, site["fn"]) for field, v in batch.items() if v is site["value"]]
    return found


def _check_support(name: str, value: Tensor, fn: Any, where: str) -> None:
    support = known_support(fn)
    if support is None:
        return
    for start in range(0, len(value), 4096):
        part = value[start : start + 4096]
        try:
            ok = support.check(part)
        except RuntimeError:
            return  # the support is that of this batch's shape alone
        ok = ok.reshape(len(part), -1).all(-1)
        if not bool(ok.all()):
            index = start + int((~ok).nonzero()[0])
            kind = family(fn)
            raise PplError(
                f"{where}: field {name!r} at index {index} is outside the support of the model's "
                f"{kind} at site {name!r} (values from {float(value[index].min()):g} to "
                f"{float(value[index].max()):g}).{pixel_hint(kind)}"
            )


def pixel_hint(text: str) -> str:
    """What to do about pixels that do not fit, if a message is about them; else nothing."""
    if "ContinuousBernoulli" in text:
        return " A continuous Bernoulli takes values from 0 to 1."
    if "DiscretizedLogisticMixture" in text:
        return (
            " It takes grey levels k / (levels - 1) in [0, 1], which dequantized data are not; "
            "levels are 256 if the data do not say (from_tensors(..., levels=16) says so)."
        )
    if "AutoregressiveGrid" in text:
        return (
            " An autoregressive model takes the levels k / (num_values - 1) of images, or the "
            "integers below num_values: binarize images for two values (--binarize dynamic, static "
            "or threshold), or give as many as the data have (--model.num_values)."
        )
    if "Bernoulli" not in text:
        return ""
    return (
        " A Bernoulli takes 0 and 1 alone: binarize the data (--binarize dynamic, static or "
        "threshold), or use a likelihood that fits grey values (such as --model.likelihood normal)."
    )
