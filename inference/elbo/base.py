"""What the ELBO estimators share.

An estimator is a ``pyro.infer.ELBO``: it works in stock ``pyro.infer.SVI`` and in
:func:`inference.fit`. Its objective is a pure function of the guide's and the model's trace,
as one tensor, and reads no tensor's value in Python, so that a whole step can be traced.

Shapes: K particles.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, ClassVar

import pyro
import torch
from pyro.infer import ELBO
from pyro.infer.util import is_validation_enabled
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from inference.elbo.checks import check_traces
from inference.elbo.traces import (
    PARTICLES,
    Traces,
    log_prob_of,
    run_traces,
    same_subsample,
    sample_sites,
    structure,
)
from ppl_models.errors import PplError
from ppl_models.program import within_a_program


class Estimator(ELBO):
    """Base class: subclasses say what the traces of K particles contribute to the objective.

    Args:
        num_particles: K, draws from the guide per step.
        vectorize_particles: take them in one pass, through an outermost plate; None: where
            ``fit`` or ``compare_estimators`` find that the program allows it.
        max_plate_nesting: as in Pyro; read off the first run when left out.

    Raises:
        PplError: fewer particles than the estimator needs.
    """

    name: ClassVar[str]
    """The name that ``fit(..., estimator=)`` takes."""
    objective: ClassVar[str] = "ELBO"
    """What the loss is an estimate of (its negative)."""
    target: ClassVar[str] = "ELBO"
    """Whose gradient it estimates."""
    latents: ClassVar[str]
    """Which latents it serves."""
    bias: ClassVar[str] = "none"
    """Of the gradient, against that of the target."""
    min_particles: ClassVar[int] = 1
    reference: ClassVar[str]
    sums_out: ClassVar[bool] = False
    """Whether it serves latents that the guide leaves out."""

    def __init__(
        self,
        num_particles: int = 1,
        *,
        vectorize_particles: bool | None = False,
        max_plate_nesting: float = float("inf"),
    ) -> None:
        if num_particles < self.min_particles:
            raise PplError(
                f"estimator {self.name!r} needs at least {self.min_particles} particles, got "
                f"num_particles={num_particles}: {self._why_particles()}"
            )
        super().__init__(
            num_particles=num_particles,
            vectorize_particles=vectorize_particles,
            max_plate_nesting=max_plate_nesting,
        )
        self.state = nn.Module()
        """What it keeps from step to step: baselines and the like. Trained with the program."""
        self.vectorize_asked = vectorize_particles
        self._given_nesting = max_plate_nesting
        self._prepared = False
        self._seen: set[tuple[Any, ...]] = set()

    def _why_particles(self) -> str:
        return "each particle's baseline is the mean of the others"

    @abstractmethod
    def surrogate(self, runs: list[Traces]) -> Tensor:
        """The objective (a scalar; higher is better), whose gradient is the estimate.

        Args:
            runs: one a particle, or a single one with the particles' plate outermost.
        """

    def check(self, traces: Traces) -> None:
        """Refuse a program that it cannot serve.

        Raises:
            ProgramError: naming the site, why, and what to use instead.
        """

    def prepare(self, traces: Traces) -> None:
        """Take in a program's structure, before the first step.

        Args:
            traces: of a plain run, without vectorized particles.

        Raises:
            ProgramError: it cannot serve the program.
        """
        self.check(traces)
        self.max_plate_nesting = self._given_nesting + self.vectorized
        set_plate_nesting(self, traces)
        self._prepared = True

    def run(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Traces:
        """One run of guide and model, as the estimator wants them drawn."""
        return run_traces(model, guide, args, kwargs)

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Traces:
        traces = self.run(model, guide, args, kwargs)
        if is_validation_enabled() and not self.sums_out:
            check_traces(traces, self.max_plate_nesting)
        return traces

    @property
    def vectorized(self) -> bool:
        """Whether particles are taken in one pass."""
        return bool(self.vectorize_particles) and self.num_particles > 1

    def draw(self, model: Any, guide: Any, args: Any, kwargs: Any) -> list[Traces]:
        """Runs of all particles: one a particle, or a single vectorized one."""
        if not self.vectorized:
            runs: list[Traces] = []
            for _ in range(self.num_particles):
                if runs:  # a minibatch drawn at random is one for all particles
                    model, guide = (same_subsample(fn, runs[0]) for fn in (model, guide))
                runs.append(self._get_trace(model, guide, args, kwargs))
                if self.num_particles > 1:
                    self._take_densities(runs[-1])
            return runs
        over_particles = pyro.plate(PARTICLES, self.num_particles, dim=-int(self.max_plate_nesting))
        return [self._get_trace(over_particles(model), over_particles(guide), args, kwargs)]

    def _take_densities(self, traces: Traces) -> None:
        """Take the densities before the next particle's draws: a flow knows its last alone."""
        for trace in traces:
            for _, site in sample_sites(trace):
                log_prob_of(site)

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """−objective, with auxiliary losses, as a scalar that backpropagates; nats per batch."""
        if not self._prepared:
            self._look(model, guide, args, kwargs)
        try:
            runs = self.draw(model, guide, args, kwargs)
        except ValueError:  # plates of another program that collide with what was seen of the last
            plan = self.plan()
            self._look(model, guide, args, kwargs)
            if self.plan() == plan:
                raise
            runs = self.draw(model, guide, args, kwargs)
        kind = structure(runs[0])
        if self._seen and kind not in self._seen:  # another program, or of changing structure
            plan = self.plan()
            self._look(model, guide, args, kwargs)
            if self.plan() != plan:
                runs = self.draw(model, guide, args, kwargs)
                kind = structure(runs[0])
        self._seen.add(kind)
        self._announce()
        return -self.surrogate(runs)

    def plan(self) -> tuple[Any, ...]:
        """What it took from the program's structure for the way it draws."""
        return (self.max_plate_nesting,)

    def _look(self, model: Any, guide: Any, args: Any, kwargs: Any) -> None:
        """Prepare from a run of its own, which leaves no trace: no draw, no gradient, no graph."""
        with forked_rng(), torch.no_grad(), disable_proxy_modes_tracing():
            self.prepare(run_traces(model, guide, args, kwargs))

    def _announce(self) -> None:
        """Tell stock ``pyro.infer.SVI`` of the parameters in ``state``; ``fit`` knows them."""
        if not within_a_program():
            for name, parameter in self.state.named_parameters():
                pyro.param(f"{self.name}.{name}.{id(parameter)}", parameter)

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss, as Pyro's ``SVI.evaluate_loss`` wants it."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Backpropagate the loss and return it, as Pyro's ``SVI.step`` wants it."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(loss.detach())


def forked_rng() -> Any:
    """Within, draws leave torch's generators as they were."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else []
    return torch.random.fork_rng(devices)


def set_plate_nesting(estimator: ELBO, traces: Traces) -> None:
    """Tell an estimator the depth of plates, which it would else find out by a run of its own.

    That run would draw random numbers anew after every resume.
    """
    if estimator.max_plate_nesting < float("inf"):
        return
    vectorized = bool(estimator.vectorize_particles) and estimator.num_particles > 1
    estimator.max_plate_nesting = plate_depth(traces) + vectorized


def plate_depth(traces: Traces) -> int:
    """How many plates stand in one another."""
    dims = [
        frame.dim
        for trace in traces
        for _, site in sample_sites(trace)
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    return max((-d for d in dims), default=0)


def value_neutral(term: Tensor) -> Tensor:
    """A term that has the gradient of ``term`` and the value zero."""
    return term - term.detach()
