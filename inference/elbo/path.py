"""The gradient that reaches a guide through its draws alone, not through log q itself."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from inference.elbo.base import Estimator
from inference.elbo.checks import ELBO_FOR_DISCRETE, check_densities, check_reparameterized
from inference.elbo.traces import Traces, run_model, sample_sites, with_value
from inference.sites import is_point


class Gate:
    """The identity on tensors; its gradient passes only while it is open."""

    def __init__(self) -> None:
        self.open = True

    def __call__(self, value: Tensor) -> Tensor:
        """The value, behind the gate."""
        return _Gated.apply(value, self)


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, value: Tensor, gate: Gate) -> Tensor:
        ctx.gate = gate
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None]:
        return (gradient if ctx.gate.open else None), None


class GatedDraws(Messenger):
    """Puts a gate behind each draw of a guide; a point mass is no draw.

    While the gate is closed, a gradient with respect to a draw is the partial one: the draws
    that depend on it are held fixed.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate()
        self.before: dict[str, Tensor] = {}
        """The draws, as functions of the guide's parameters."""
        self.behind: dict[str, Tensor] = {}
        """The same values behind the gate, as the guide and the model use them."""

    def _pyro_post_sample(self, msg: Any) -> None:
        value = msg["value"]
        fn = msg["fn"]
        if msg["is_observed"] or isinstance(fn, _Subsample) or is_point(fn):
            return
        if not value.requires_grad:
            return
        self.before[msg["name"]] = value
        msg["value"] = self.behind[msg["name"]] = self.gate(value)


class PathTraces(Traces):
    """A run of guide and model with gates behind the draws."""

    draws: GatedDraws
    into_model: Gate
    """Between the draws and the model."""


class PathEstimator(Estimator):
    """Base class of estimators that leave out ∂ log q / ∂φ, whose expectation is zero.

    The guide's parameters φ have the gradient Σ_j (∂f/∂z_j) dz_j/dφ. One run of the guide serves:
    the partial derivatives come from a backward pass with the gates closed, and multiply the
    draws in the surrogate.
    """

    latents: ClassVar[str] = "continuous"
    instead: ClassVar[str] = ELBO_FOR_DISCRETE

    def check(self, traces: Traces) -> None:
        """Refuse draws without gradient."""
        check_reparameterized(traces, self.name, self.instead)
        check_densities(traces, [name for name, _ in sample_sites(traces.guide)], self.name)

    def run(self, model: Any, guide: Any, args: Any, kwargs: Any) -> PathTraces:
        """The guide with a gate behind each draw, and the model with one before it."""
        with GatedDraws() as draws:
            guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        into_model = Gate()
        given = guide_trace.copy()
        for name, value in draws.behind.items():
            given.nodes[name] = with_value(given.nodes[name], into_model(value))
        traces = PathTraces(run_model(model, given, args, kwargs), guide_trace)
        traces.draws, traces.into_model = draws, into_model
        return traces


def through_draws(objective: Tensor, runs: list[PathTraces]) -> Tensor:
    """A scalar with the gradient that an objective sends through the draws, and no other.

    Args:
        objective: a scalar.
        runs: of the particles.
    """
    pairs = [(r.draws.before[n], r.draws.behind[n]) for r in runs for n in r.draws.behind]
    if not pairs or not objective.requires_grad:
        return torch.zeros(())
    for run in runs:
        run.draws.gate.open = False
    behind = [b for _, b in pairs]
    partial = torch.autograd.grad(objective, behind, retain_graph=True, allow_unused=True)
    for run in runs:
        run.draws.gate.open = True
    found = [
        (g.detach() * z).sum() for g, (z, _) in zip(partial, pairs, strict=True) if g is not None
    ]
    return sum(found, torch.zeros(()))
