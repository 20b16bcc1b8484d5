"""Single gradients of an estimator at a point, without a trace left on the program.

Shapes: B data, P entries of all parameters.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyro
import torch
from pyro.infer import ELBO
from torch import Tensor, nn

from inference.compare.groups import Groups, Layout
from inference.data.dataset import MemorySplit
from inference.elbo.base import Estimator, set_plate_nesting
from inference.elbo.checks import require_enumeration
from inference.elbo.traces import Traces, run_traces, sample_sites, scaled_log_prob
from inference.parameters import check_ownership, trainable
from inference.priming import check_fields_named, check_plate_size, prime
from inference.summed_out import enumerates
from inference.vectorize import choose_vectorization
from inference.weights import batch_size
from ppl_models.errors import PplError, ProgramError
from ppl_models.program import Program, as_program


@dataclass
class Problem:
    """A program at a point and the batch on which its gradients are compared."""

    program: Program
    """A copy of the user's, with all its parameters."""
    batch: dict[str, Tensor]
    num_data: int | None
    traces: Traces
    layout: Layout

    @property
    def count(self) -> int:
        """The number of data that a loss is of."""
        rows = batch_size(self.batch)
        return (self.num_data or rows) if "num_data" in self.program.options else rows


def pose(program: object, batch: Any, num_data: int | None, groups: Groups | None) -> Problem:
    """Copy the program, make its lazy parameters, and refuse what has nothing to compare.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (B, ...), or the field ``x`` alone.
        num_data: size of the data set, for programs that name it.
        groups: of parameters.

    Raises:
        PplError: the batch is not the program's, or there is no latent or parameter.
    """
    fields = _fields(batch)
    twin = copy.deepcopy(as_program(program))
    check_fields_named(twin, MemorySplit(fields))
    device = next((p.device for p in twin.parameters()), None)
    fields = {name: value.to(device) for name, value in fields.items()}
    traces = prime(twin, fields, num_data)
    enumerated = enumerates(traces)
    latent = [name for name, site in sample_sites(traces.guide) if not site["is_observed"]]
    if not latent and not enumerated:
        raise ProgramError(
            f"{twin.name} has no latent site, so its gradient is exact under every estimator and "
            "there is nothing to compare; sample its latents in model and guide with pyro.sample"
        )
    rows = batch_size(fields)
    if num_data is not None and num_data > rows and not enumerated:
        check_plate_size(traces, twin, rows, num_data)
    trainable(twin)
    twin.sealed = True
    named = {name: p for name, p in twin.named_parameters() if p.requires_grad}
    problem = Problem(twin, fields, num_data, traces, Layout(named, groups))
    _check_owned(problem)
    return problem


def _fields(batch: Any) -> dict[str, Tensor]:
    fields = {"x": batch} if isinstance(batch, Tensor) else batch
    if not isinstance(fields, Mapping) or not fields:
        raise PplError(
            f"batch must be a dict of tensors (B, ...) by field, or the field x alone, not "
            f"{type(batch).__name__}; take one of load_data(...).train.batches(100)"
        )
    for name, value in fields.items():
        if not isinstance(value, Tensor) or value.dim() == 0:
            raise PplError(f"field {name!r} of the batch must be a tensor (B, ...), got {value!r}")
    lengths = {name: len(value) for name, value in fields.items()}
    if len(set(lengths.values())) > 1 or 0 in lengths.values():
        raise PplError(f"the batch's fields must have one length above zero, got {lengths}")
    return dict(fields)


def _check_owned(problem: Problem) -> None:
    """Refuse a program whose densities depend on a parameter that it does not hold."""
    program, options = problem.program, {"num_data": problem.num_data}
    with program.scope(), pyro.validation_enabled(False):
        traces = run_traces(program.run_model, program.run_guide, (problem.batch,), options)
        terms = [scaled_log_prob(site).sum() for t in traces for _, site in sample_sites(t)]
    check_ownership(torch.stack(terms).sum(), program)


class Draw(NamedTuple):
    """One gradient of the loss per datum."""

    loss: Tensor
    gradient: Tensor
    """(P,), float64."""
    seconds: float


class Sampler:
    """Draws gradients of an estimator at the problem's point.

    Args:
        problem: program and batch.
        estimator: its own state (baselines) changes with every draw.
    """

    def __init__(self, problem: Problem, estimator: ELBO) -> None:
        self.problem = problem
        self.estimator: Any = estimator
        self.differentiable = hasattr(estimator, "differentiable_loss")
        # The others (TraceGraph_ELBO, RenyiELBO) write gradients and baselines into a program.
        self.program = problem.program if self.differentiable else copy.deepcopy(problem.program)
        self.parameters = trainable(self.program)
        self.own: list[nn.Parameter] = []
        """The estimator's, in its state."""

    def start(self, adapt_steps: int) -> None:
        """Take the first evaluation, with Pyro's validation, and those that warm up.

        Args:
            adapt_steps: steps by which the estimator's own state is fitted to the program.

        Raises:
            Exception: what the estimator says to a program that it cannot serve.
        """
        if enumerates(self.problem.traces):
            require_enumeration(self.estimator)
        if isinstance(self.estimator, Estimator):
            problem = self.problem
            choose_vectorization(
                self.estimator, problem.program, problem.batch, problem.traces, problem.num_data
            )
        else:
            set_plate_nesting(self.estimator, self.problem.traces)
        with pyro.validation_enabled(True):
            self._check(self())
        state = getattr(self.estimator, "state", None)
        if isinstance(state, nn.Module) and state.state_dict():  # it is made in the first run
            self.own = [p for p in state.parameters() if p.requires_grad]
            self._adapt(adapt_steps)
        self()

    def _check(self, first: Draw) -> None:
        if not bool(torch.isfinite(first.loss)) or not bool(torch.isfinite(first.gradient).all()):
            raise ProgramError("its first loss or gradient is not finite")

    def _adapt(self, steps: int) -> None:
        """Fit baselines and control variates, with the program held where it is."""
        optimizer = torch.optim.Adam(self.own, lr=1e-2) if self.own else None
        with self.program.scope():
            for _ in range(steps):
                self._evaluate()
                if optimizer is not None:
                    optimizer.step()

    def __call__(self) -> Draw:
        """One more gradient."""
        with self.program.scope():
            self._synchronize()
            started = time.perf_counter()
            loss, gradients = self._evaluate()
            self._synchronize()
            seconds = time.perf_counter() - started
        count = self.problem.count
        vector = self.problem.layout.flatten(gradients) / count
        return Draw(loss.detach().double() / count, vector, seconds)

    def _evaluate(self) -> tuple[Tensor, list[Tensor]]:
        """Loss of the batch and its gradients; those of the estimator's state are left on it."""
        arguments = (self.program.run_model, self.program.run_guide, self.problem.batch)
        options = {"num_data": self.problem.num_data}
        if not self.differentiable:
            return self._written(arguments, options)
        loss = self.estimator.differentiable_loss(*arguments, **options)
        if not isinstance(loss, Tensor) or not loss.requires_grad:
            raise ProgramError("its loss depends on no parameter of the program")
        found = torch.autograd.grad(loss, [*self.parameters, *self.own], allow_unused=True)
        split = len(self.parameters)
        for parameter, gradient in zip(self.own, found[split:], strict=True):
            parameter.grad = gradient
        return loss, filled(found[:split], self.parameters)

    def _written(self, arguments: Any, options: Any) -> tuple[Tensor, list[Tensor]]:
        """As an estimator without a differentiable loss writes them into ``.grad``."""
        # Networks of plain functions are shared with the user's program, their .grad too.
        before = [p.grad for p in self.parameters]
        try:
            for parameter in self.parameters:
                parameter.grad = None
            loss = self.estimator.loss_and_grads(*arguments, **options)
            found = [p.grad for p in self.parameters]
        finally:
            for parameter, gradient in zip(self.parameters, before, strict=True):
                parameter.grad = gradient
        if all(gradient is None for gradient in found):
            raise ProgramError(
                f"{type(self.estimator).__name__} gives no parameter a gradient: stock Pyro sees "
                "those alone that pyro.param, pyro.module or a PyroModule announces"
            )
        return torch.as_tensor(loss), filled(found, self.parameters)

    def _synchronize(self) -> None:
        device = self.parameters[0].device
        if device.type == "cuda":
            torch.cuda.synchronize(device)


def filled(found: Any, parameters: list[nn.Parameter]) -> list[Tensor]:
    """Gradients with zeros where none came."""
    return [torch.zeros_like(p) if g is None else g for g, p in zip(found, parameters, strict=True)]
