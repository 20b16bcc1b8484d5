"""What the contract's clauses look at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pyro
import torch
from pyro import poutine
from torch import Tensor

from inference.elbo.traces import Traces, run_traces, sample_sites
from inference.weights import batch_size
from ppl_models.program import Batch, Program


@dataclass(frozen=True)
class Subject:
    """What a check looks at: a fresh copy of the program, a batch, and one run of it."""

    program: Program
    batch: dict[str, Tensor]
    traces: Traces

    @property
    def num_data(self) -> int:
        """B."""
        return batch_size(self.batch)


def run(program: Program, batch: Batch) -> Traces:
    """Guide and model once, without gradient and without Pyro's validation."""
    options = {"num_data": batch_size(batch)}
    with program.scope(), torch.no_grad(), pyro.validation_enabled(False):
        return run_traces(program.run_model, program.run_guide, (batch,), options)


def sites_of(trace: poutine.Trace) -> dict[str, Any]:
    """Sample sites by name."""
    return dict(sample_sites(trace))
