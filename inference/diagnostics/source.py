"""What a diagnostic is asked of: a program, the result of a fit, or an open run, and data.

Shapes: B data.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import metadata
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.data.dataset import DataSet, Split
from inference.densities import has_global_latents
from inference.devices import isolated_rng
from inference.elbo.traces import run_traces
from inference.runs import read_metrics
from inference.weights import batch_size, evaluation_mode
from ppl_models.errors import PplError
from ppl_models.program import Batch, Program

NOT_DATA = "data must be a batch {'x': x}, an array, a split (data.test) or a data set"


def history(source: object) -> list[dict[str, Any]]:
    """The rows, one an epoch, of a fit or of an open run; none of anything else.

    A history of one number an iteration, such as EM's, is a column of this name.

    Args:
        source: the result of a fit, an open run, or a program.
    """
    folder = getattr(source, "folder", None)
    found = read_metrics(folder) if folder is not None else getattr(source, "history", None)
    return [dict(row) if isinstance(row, Mapping) else {"history": row} for row in found or []]


def batch_of(source: object, program: Program, data: Any, seed: int = 0) -> dict[str, Tensor]:
    """The fields that the program names, all data at once, where its parameters are.

    Args:
        source: the result of a fit, an open run, or a program.
        program: of it.
        data: a batch of fields (B, ...), one array (the field ``x``), a split, or a data set (test
            data, but all training data where latents are global, for these are what their
            posterior is about); that of the source when None.
        seed: of what transforms of the data draw.

    Raises:
        PplError: there are no data, or they are none of these.
    """
    if data is None:
        data = getattr(source, "data", None)
        if not isinstance(data, DataSet):
            raise PplError(
                f"to_arviz needs the data that the posterior of {program.name} is given: a batch "
                "{'x': x}, a split such as data.test, or the result of a fit in the program's place"
            )
    if isinstance(data, DataSet):
        data = data.train if _is_shared(program, data.train) else data.test
    if isinstance(data, Tensor | np.ndarray):
        data = {"x": data}
    if hasattr(data, "batches"):
        with isolated_rng(seed):  # transforms of the data draw too
            parts = list(data.batches(1024))
        data = {name: torch.cat([p[name] for p in parts]) for name in (parts[0] if parts else ())}
    if not isinstance(data, Mapping):
        raise PplError(f"{NOT_DATA}, got {type(data).__name__}")
    named = {name: value for name, value in data.items() if name in program.fields}
    return checked_batch(program, named or data)


def checked_batch(program: Program, batch: Mapping[str, Any]) -> dict[str, Tensor]:
    """A batch's fields as tensors where the program's parameters are.

    Args:
        program: whose.
        batch: fields (B, ...), tensors or arrays.

    Raises:
        PplError: no data, or fields of several lengths.
    """
    fields = {name: torch.as_tensor(value) for name, value in batch.items()}
    lengths = {name: len(value) for name, value in fields.items()}
    if not lengths or 0 in lengths.values() or len(set(lengths.values())) > 1:
        raise PplError(f"data must be fields of one length, one or more; got {lengths or 'none'}")
    return on_device_of(program, fields)


def on_device_of(program: Program, batch: Batch) -> dict[str, Tensor]:
    """A batch where the program's parameters are."""
    like = next(program.parameters(), None)
    return {k: v if like is None else v.to(like.device) for k, v in batch.items()}


def _is_shared(program: Program, split: Split) -> bool:
    """Whether a latent stands outside the data plate."""
    with isolated_rng(0):
        batch = next(iter(split.batches(8)))
        with evaluation_mode(program), program.scope(), torch.no_grad():
            traces = run_traces(program.run_model, program.run_guide, (batch,), {"num_data": None})
    return has_global_latents(traces, batch_size(batch))


def training_size(source: object) -> int | None:
    """How many data a fit or run was trained on; None of anything else.

    Args:
        source: the result of a fit, an open run, or a program.
    """
    data = getattr(source, "data", None)
    return len(data.train) if isinstance(data, DataSet) else None


def attributes(
    source: object, program: Program, batch: Batch, num_samples: int, seed: int
) -> dict[str, str | int]:
    """What is said of the whole; nothing that differs from one time to the next.

    Args:
        source: the result of a fit, an open run, or a program.
        program: of it.
        batch: that the draws are given.
        num_samples: of the posterior.
        seed: of the draws.
    """
    found: dict[str, str | int] = {
        "inference_library": "ppl-models",
        "inference_library_version": metadata.version("ppl-models"),
        "program": program.name,
        "num_data": batch_size(batch),
        "num_samples": num_samples,
        "seed": seed,
    }
    estimator = getattr(source, "config", {}).get("estimator")
    if estimator is not None:
        found["estimator"] = str(estimator)
    if program.deterministic_guide:
        found["note"] = "The guide is a point: the draws of a datum are all the same."
    return found
