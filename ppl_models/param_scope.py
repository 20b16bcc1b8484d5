"""Running Pyro inside a program's own parameters, with its global store set aside."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType
from typing import Any, Protocol

import pyro
from pyro.nn import PyroSample, pyro_method
from pyro.params.param_store import ParamStoreDict
from torch import Tensor, nn
from torch.distributions import constraints


class ParamOwner(Protocol):
    """What keeps the ``pyro.param``s."""

    def own_param(self, name: str, initial: Any, constraint: Any) -> Tensor:
        """The constrained value of a parameter, which is made if it is new."""

    def set_param(self, name: str, value: Tensor) -> None:
        """Give a parameter another value."""

    def owns_param(self, name: str) -> bool:
        """Whether it has been made."""


class ProgramStore(ParamStoreDict):
    """Pyro's parameter store while a program runs: ``pyro.param`` reads and makes the program's.

    A handler could do this too, but not where a program hides its parameters from handlers
    (``poutine.block``), as autoguides do with those of their model.
    """

    owner: ParamOwner

    def setdefault(self, name: str, init: Any, constraint: Any = constraints.real) -> Tensor:
        """The parameter of this name, made from ``init`` if it is new."""
        return self.owner.own_param(name, init, constraint)

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(f"pyro.param({name!r}) has no initial value and was not run before")
        return self.owner.own_param(name, None, None)

    def __setitem__(self, name: str, value: Tensor) -> None:
        self.owner.set_param(name, value.detach())

    def __contains__(self, name: object) -> bool:
        return self.owner.owns_param(str(name))


@contextmanager
def params_owned_by(owner: ParamOwner, module: nn.Module) -> Iterator[None]:
    """Within, ``pyro.param`` statements are served by the owner.

    Args:
        owner: keeps the parameters.
        module: holds the ``PyroModule``s that will run; their attributes are their own.
    """
    for part in module.modules():  # PyroModules made outside of module-local mode lack this
        context = part.__dict__.get("_pyro_context")
        if context is not None and not hasattr(context, "param_state"):
            context.param_state = {"params": {}, "constraints": {}}
    store: Any = pyro.get_param_store()
    with pyro.settings.context(module_local_params=True), store.scope():
        kind, before = type(store), store.__dict__.get("owner")
        store.__class__, store.owner = ProgramStore, owner
        try:
            yield
        finally:
            store.__class__, store.owner = kind, before


_PYRO_METHOD = pyro_method(lambda self: None).__code__


def is_pyro_method(fn: MethodType) -> bool:
    """Whether a bound method was decorated with ``pyro.nn.pyro_method``, last of all."""
    return getattr(fn.__func__, "__code__", None) is _PYRO_METHOD


def has_random_attributes(program: nn.Module) -> bool:
    """Whether a ``PyroModule`` in it has ``PyroSample`` attributes (Bayesian weights).

    Only these need the context that ``pyro_method`` enters. Without them it does nothing but
    announce every parameter at every step, to nobody: a :class:`Program` knows its parameters.
    """
    return any(
        bool(module.__dict__.get("_pyro_samples"))
        or any(
            isinstance(a, PyroSample) for cls in type(module).__mro__ for a in vars(cls).values()
        )
        for module in program.modules()
    )
