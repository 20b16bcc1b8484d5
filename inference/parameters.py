"""The parameters that are trained, and refusals of those that would silently not be."""

from __future__ import annotations

from collections.abc import Iterable

from pyro.infer import ELBO
from torch import Tensor, nn

from ppl_models.errors import ProgramError


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
