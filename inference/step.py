"""One step of stochastic variational inference."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from lightning_fabric import Fabric
from pyro.infer import ELBO
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from inference.compiled import CompiledStep
from inference.devices import rng_state, set_rng_state
from inference.elbo.traces import run_traces, sample_sites, scaled_log_prob
from inference.handlers import KLWeight
from inference.weights import batch_size
from ppl_models.errors import ProgramError
from ppl_models.program import Batch, Program


class NonFiniteLossError(ProgramError):
    """The loss or a gradient became NaN or infinite; the parameters are as before the step."""


class SVIStep:
    """Loss, gradient, update.

    Args:
        program: what is trained.
        estimator: any ``pyro.infer.ELBO``.
        optimizer: over the program's parameters.
        fabric: device and precision.
        kl_weight: handler around model and guide.
        num_data: size of the training set, for programs that name it.
        clip_grad_norm: largest norm of the whole gradient (per datum), or None.
        compile_worth: whether batches of so many data are to be compiled; None: none are.
    """

    def __init__(
        self,
        program: Program,
        estimator: ELBO,
        optimizer: torch.optim.Optimizer,
        fabric: Fabric,
        kl_weight: KLWeight,
        num_data: int,
        clip_grad_norm: float | None = None,
        compile_worth: Callable[[int], bool] | None = None,
    ) -> None:
        self.program = program
        self.estimator = estimator
        self.optimizer = optimizer
        self.fabric = fabric
        self.kl_weight = kl_weight
        self.num_data = num_data
        self.clip_grad_norm = clip_grad_norm
        self.parameters = trained(program, estimator)
        self._model = self._weighed(program.run_model)
        self._guide = self._weighed(program.run_guide)
        self._checked = False
        self.compiled: CompiledStep | None = None
        if compile_worth is not None and hasattr(estimator, "differentiable_loss"):
            state = getattr(estimator, "state", nn.Module())
            self.compiled = CompiledStep(
                self._loss_at, program, state, self._schedules, compile_worth
            )

    def _weighed(self, run: Callable[..., Any]) -> Callable[[Batch], Any]:
        def weighed(batch: Batch) -> Any:
            if isinstance(self.kl_weight.weight, float) and self.kl_weight.weight == 1.0:
                return run(batch, num_data=self.num_data)
            with self.kl_weight:
                return run(batch, num_data=self.num_data)

        return weighed

    def __call__(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            batch: fields (B, ...).

        Returns:
            Loss per datum (nats) and gradient norm before clipping, as detached scalars.

        Raises:
            NonFiniteLossError: the loss or the gradient is not finite; nothing was updated.
            ProgramError: a parameter gets no gradient (first step only).
        """
        draws = self._generator_states()
        for parameter in self.parameters:  # what zero_grad does, at a twentieth of its cost
            parameter.grad = None
        loss = self.backward(batch)
        if not self._checked:
            check_gradients(self.program)
            self._checked = True
        gradients = [p.grad for p in self.parameters if p.grad is not None]
        norm = get_total_norm(gradients, foreach=True)
        if not bool(torch.isfinite(loss + norm)):
            raise NonFiniteLossError(self._explain(loss, batch, draws))
        if self.clip_grad_norm is not None:
            clip_grads_with_norm_(self.parameters, self.clip_grad_norm, norm)
        self.optimizer.step()
        return loss, norm

    def _count(self, batch: Batch) -> int:
        """The number of data that a loss is of."""
        return self.num_data if "num_data" in self.program.options else batch_size(batch)

    def _loss(self, batch: Batch) -> Tensor:
        """Loss per datum."""
        estimator: Any = self.estimator
        with self.fabric.autocast():
            loss = estimator.differentiable_loss(self._model, self._guide, batch)
        return loss / self._count(batch)

    def _schedules(self) -> dict[str, float]:
        """What changes from step to step beside the data, by name."""
        found = {}
        if getattr(self.kl_weight, "num_steps", 1):
            found["weight"] = self.kl_weight.weight
        if hasattr(self.estimator, "temperature"):
            found["temperature"] = self.estimator.temperature
        return found

    def _loss_at(self, batch: Batch, schedules: Mapping[str, Tensor]) -> Tensor:
        """Loss per datum, with tensors in the place of the schedules' numbers."""
        owners: dict[str, Any] = {"weight": self.kl_weight, "temperature": self.estimator}
        before = {name: getattr(owners[name], name) for name in schedules}
        try:
            for name, value in schedules.items():
                setattr(owners[name], name, value)
            return self._loss(batch)
        finally:
            for name, value in before.items():
                setattr(owners[name], name, value)

    def backward(self, batch: Batch) -> Tensor:
        """Loss per datum, with its gradient in the parameters' ``.grad``."""
        estimator: Any = self.estimator
        if self.compiled is not None and self._checked:
            loss = self.compiled(batch)
            if loss is not None:
                return loss
        if not hasattr(estimator, "differentiable_loss"):  # TraceGraph_ELBO, RenyiELBO
            with self.fabric.autocast():
                loss = estimator.loss_and_grads(self._model, self._guide, batch)
            count = self._count(batch)
            for parameter in self.parameters:
                if parameter.grad is not None:
                    parameter.grad /= count
            return torch.as_tensor(loss / count)
        loss = self._loss(batch)
        if not self._checked:
            check_ownership(loss, self.program, self.parameters)
        loss.backward()
        return loss.detach()

    def _generator_states(self) -> list[Tensor]:
        """States of the generators that a step draws from."""
        states = [torch.get_rng_state()]
        if self.fabric.device.type == "cuda":
            states.append(torch.cuda.get_rng_state(self.fabric.device))
        return states

    def _explain(self, loss: Tensor, batch: Batch, draws: list[Tensor]) -> str:
        """Run the step's draws again and name what went wrong."""
        after = rng_state()
        torch.set_rng_state(draws[0])
        if len(draws) > 1:
            torch.cuda.set_rng_state(draws[1], self.fabric.device)
        try:
            with torch.no_grad(), self.fabric.autocast():
                traces = run_traces(self._model, self._guide, (batch,), {})
                culprits = _non_finite_sites(traces)
        finally:
            set_rng_state(after)
        bad = [n for n, p in self.program.named_parameters() if _spoilt(p.grad)]
        if culprits:
            cause = f"log density is not finite at {', '.join(culprits)}"
        elif bad:
            cause = f"the gradient is not finite at parameter(s) {', '.join(bad[:5])}"
        else:
            cause = "every site's log density is finite; a KL term or auxiliary loss is not"
        return (
            f"the loss became {float(loss):g}: {cause}. Training stopped before the parameters "
            "were changed. Usual remedies: a smaller learning rate, --clip_grad_norm, a floor "
            "under scales."
        )


def _non_finite_sites(traces: Any) -> list[str]:
    found = []
    for role, trace in (("guide", traces.guide), ("model", traces.model)):
        for name, site in sample_sites(trace):
            try:
                log_prob = scaled_log_prob(site)
            except ValueError:  # validation: parameters or value outside their support
                log_prob = torch.tensor(torch.nan)
            if not bool(torch.isfinite(log_prob).all()):
                found.append(f"site {name!r} of the {role} ({type(site['fn']).__name__})")
    return found


def _spoilt(gradient: Tensor | None) -> bool:
    return gradient is not None and not bool(torch.isfinite(gradient).all())


def trainable(program: nn.Module) -> list[nn.Parameter]:
    """The parameters to train.

    Raises:
        ProgramError: there are none.
    """
    found = [p for p in program.parameters() if p.requires_grad]
    if not found:
        raise ProgramError(
            f"{getattr(program, 'name', 'the program')} has nothing to train: no parameter of an "
            "nn.Module and no pyro.param"
        )
    return found


def trained(program: nn.Module, estimator: ELBO) -> list[nn.Parameter]:
    """The parameters to train: the program's, and those of the estimator's baselines.

    Raises:
        ProgramError: the program has none.
    """
    return [*trainable(program), *getattr(estimator, "state", nn.Module()).parameters()]


def check_gradients(program: nn.Module) -> None:
    """Refuse a trainable parameter without a gradient.

    Raises:
        ProgramError: naming it and the usual causes.
    """
    lacking = [n for n, p in program.named_parameters() if p.requires_grad and p.grad is None]
    if lacking:
        raise ProgramError(
            f"no gradient reached parameter(s) {', '.join(lacking)} in the first step. Usual "
            "causes: model and guide do not use it; it is used under torch.no_grad or .detach(); "
            "its site is scored by another module of the same name. If it is not to be trained, "
            "say so with requires_grad_(False)."
        )


def check_ownership(loss: Tensor, program: nn.Module, others: Iterable[nn.Parameter] = ()) -> None:
    """Refuse a loss that depends on a parameter which the program does not hold.

    Args:
        loss: before its backward pass.
        program: whose parameters are trained.
        others: parameters that are trained beside them.

    Raises:
        ProgramError: naming its shape, and how to hand the module over.
    """
    owned = {id(p) for p in (*program.parameters(), *others)}
    foreign = [p for p in _leaves(loss) if isinstance(p, nn.Parameter) and id(p) not in owned]
    if foreign:
        shapes = ", ".join(str(tuple(p.shape)) for p in foreign[:5])
        raise ProgramError(
            f"{len(foreign)} parameter(s) of shape {shapes} take part in the loss but belong to no "
            "module of the program, and would silently not be trained. Make their module an "
            "attribute of the program, hand it over as Program(model, guide, decoder=decoder), or "
            "register it in model and guide with pyro.module('decoder', decoder)."
        )


def _leaves(loss: Tensor) -> list[Tensor]:
    """The leaf tensors that a loss depends on."""
    found, seen, todo = [], set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            found.append(node.variable)
        todo.extend(parent for parent, _ in node.next_functions)
    return found
