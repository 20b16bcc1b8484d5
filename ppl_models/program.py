"""What a Pyro program is to the inference engine: a ``model`` and a ``guide``.

Any object with these two callables is a program. They take the fields of a batch that they
name as positional parameters; keyword-only parameters are options:

- ``model(x=None, *, size=1)``: without data, ``size`` draws from the prior predictive.
- ``num_data``, if named, is filled with the number of data in the training set, for
  ``pyro.plate("data", num_data or len(x), subsample=torch.arange(len(x)))`` in programs with
  global latents.

:class:`Program` wraps such an object (or two plain functions) so that everything it learns,
``nn.Module`` parameters and ``pyro.param``s alike, is an ordinary parameter of one module:
``state_dict``, ``deepcopy`` and ``.to(device)`` hold all of it, and Pyro's global parameter
store is never touched.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import FunctionType, MethodType
from typing import Any, Protocol

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoGuide
from torch import Tensor, nn
from torch.distributions import transform_to

from ppl_models.errors import ProgramError
from ppl_models.param_scope import (
    ProgramStore,
    has_random_attributes,
    is_pyro_method,
    params_owned_by,
)
from ppl_models.signature import Signature, signature_of

Batch = Mapping[str, Tensor]


class PyroProgram(Protocol):
    """Anything with a generative ``model`` and an inference ``guide``."""

    model: Callable[..., Any]
    guide: Callable[..., Any]


class Program(nn.Module):
    """A model and a guide with all that they learn.

    Args:
        model: the generative story, a callable with Pyro sample sites.
        guide: the inference program, or an autoguide such as
            ``pyro.infer.autoguide.AutoNormal(model)``.
        owner: the object whose methods these are, if there is one.
        **modules: networks that plain functions use; their parameters and buffers become
            the program's. Those registered by ``pyro.module`` inside the functions are found
            without being named here, but their buffers (batch-norm statistics) are not.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        *,
        owner: object = None,
        **modules: nn.Module,
    ) -> None:
        super().__init__()
        for role, fn in (("model", model), ("guide", guide)):
            if not callable(fn):
                raise ProgramError(f"the {role} of {_name(owner)} is not callable: {fn!r}")
        self.owner: Any = owner
        if not isinstance(owner, nn.Module):
            attributes = {**getattr(owner, "__dict__", {}), "model": model, "guide": guide}
            modules |= {
                name: value
                for name, value in attributes.items()
                if isinstance(value, nn.Module) and name != _WRAPPER
            }
        self.networks = nn.ModuleDict(modules)
        self.pyro_params = nn.ParameterDict()
        self._constraints: dict[str, Any] = {}
        self.sealed = False
        """Set while training: no more parameters may come into being."""
        self.new_params: tuple[torch.device | None, torch.dtype | None] = (None, None)
        """Device and dtype of those that do."""
        self._shared: set[str] = set()  # keys of parameters that pyro.module brought
        self._held: set[int] = set()  # parameters that are known to be in this module
        self.__dict__["model"] = model  # not registered a second time
        self.__dict__["guide"] = guide
        self._model_signature = signature_of(model)
        self._guide_signature = signature_of(guide)
        self._announces = has_random_attributes(self)

    @property
    def name(self) -> str:
        """Name of the wrapped class, or of the model function."""
        return _name(self.owner if self.owner is not None else self.model)

    @property
    def fields(self) -> tuple[str, ...]:
        """Batch fields that the model or the guide names."""
        both = self._model_signature.fields + self._guide_signature.fields
        return tuple(dict.fromkeys(both))

    @property
    def optional_fields(self) -> frozenset[str]:
        """Fields that data may lack: the guide names them with the default None."""
        guide = self._guide_signature
        return frozenset(guide.fields) - frozenset(guide.required)

    @property
    def options(self) -> frozenset[str]:
        """Keyword-only options of model and guide."""
        return self._model_signature.options | self._guide_signature.options

    @property
    def deterministic_guide(self) -> bool:
        """Whether the program says that its guide is a point (``Delta``), so no bound."""
        return bool(getattr(self.owner, "deterministic_guide", False))

    def run_model(self, batch: Batch, **options: Any) -> Any:
        """Run the model on the fields of the batch that it names."""
        return self._call(self.model, self._model_signature, batch, options)

    def run_guide(self, batch: Batch, **options: Any) -> Any:
        """Run the guide on the fields of the batch that it names."""
        return self._call(self.guide, self._guide_signature, batch, options)

    def _call(
        self, fn: Callable[..., Any], signature: Signature, batch: Batch, options: Mapping[str, Any]
    ) -> Any:
        fields = self._model_signature.fields if signature.open else signature.fields
        arguments = {name: batch[name] for name in fields if name in batch}
        arguments.update((k, v) for k, v in options.items() if k in signature.options)
        missing = [name for name in signature.required if name not in arguments]
        if missing and not signature.open:
            raise ProgramError(
                f"{self.name} names the field(s) {', '.join(map(repr, missing))}, which the batch "
                f"lacks (it has: {', '.join(map(repr, batch)) or 'none'})"
            )
        if not self._announces and isinstance(fn, MethodType) and is_pyro_method(fn):
            return fn.__wrapped__(fn.__self__, **arguments)  # type: ignore[attr-defined]
        return fn(**arguments)

    def draw_prior(self, size: int, given: Batch | None = None) -> Any:
        """Run the model without data: ``size`` draws from the prior predictive.

        Raises:
            ProgramError: the model takes no ``size``.
        """
        if "size" not in self._model_signature.options:
            raise ProgramError(
                f"the model of {self.name} cannot be sampled: it has no keyword-only option "
                "`size`. Write `def model(self, x=None, *, size=1)` and use "
                "`pyro.plate('data', size if x is None else len(x), dim=-1)`."
            )
        return self.run_model(given or {}, size=size)

    @contextmanager
    def scope(self) -> Iterator[Program]:
        """Run Pyro inside this program's own parameters.

        Within it, ``pyro.param`` statements read and create parameters of this module, and
        ``PyroModule`` attributes are their own; the global store is set aside and comes back
        unchanged.
        """
        with params_owned_by(self, self):
            yield self

    def owns_param(self, name: str) -> bool:
        """Whether a ``pyro.param`` of this name has been made."""
        return _key(name) in self.pyro_params

    def own_param(self, name: str, initial: Any, constraint: Any) -> Tensor:
        """The constrained value of a ``pyro.param``, which is made if it is new."""
        key = _key(name)
        if isinstance(initial, nn.Parameter):  # of a network, by pyro.module
            if id(initial) not in self._held:
                self._hold(key, initial)
            return initial
        if key not in self.pyro_params:
            if self._has(initial):  # of a network as well; within a graph it is no nn.Parameter
                return initial
            self._make_param(key, name, initial, constraint)
        constraint = self._constraints.setdefault(key, constraint)
        unconstrained = self.pyro_params[key]
        value = transform_to(constraint)(unconstrained)
        value.unconstrained = lambda: unconstrained
        return value

    def _make_param(self, key: str, name: str, initial: Any, constraint: Any) -> None:
        bookkeeping = name.startswith("__baseline")  # running averages of Pyro's estimators
        if self.sealed and not bookkeeping:
            raise ProgramError(
                f"pyro.param({name!r}) came into being after the first step, so it would never be "
                "trained. Make it in every run of model or guide, or as an nn.Parameter."
            )
        start = initial if isinstance(initial, Tensor) else initial()
        with torch.no_grad():
            free = transform_to(constraint).inv(start.detach())
        device, dtype = self.new_params
        free = free.to(device, dtype if free.is_floating_point() else None).clone()
        self.pyro_params[key] = nn.Parameter(free, requires_grad=not bookkeeping)

    def set_param(self, name: str, value: Tensor) -> None:
        """Give a ``pyro.param`` another value (in its constrained space)."""
        key = _key(name)
        with torch.no_grad():
            self.pyro_params[key].copy_(transform_to(self._constraints[key]).inv(value))

    def _has(self, tensor: object) -> bool:
        return any(known is tensor for known in self.parameters())

    def _hold(self, key: str, parameter: nn.Parameter) -> None:
        if not self._has(parameter):
            self.pyro_params[key] = parameter
            self._shared.add(key)
        self._held.add(id(parameter))

    def __deepcopy__(self, memo: dict[int, Any]) -> Program:
        # An AutoGuide forgets its model when it is copied, and the original does so too.
        guides = [module for module in self.modules() if isinstance(module, AutoGuide)]
        models = [guide._model for guide in guides]
        if isinstance(self.model, FunctionType) and isinstance(self.guide, FunctionType):
            memo[id(self.networks)] = self.networks  # the functions hold these, and a copy does
        for key in self._shared:  # of networks that plain functions hold, and share with a copy
            memo[id(self.pyro_params[key])] = self.pyro_params[key]
        twin = memo[id(self)] = type(self).__new__(type(self))
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        twin._held = set()
        for guide, model in zip(guides, models, strict=True):
            guide._model = model
            memo[id(guide)]._model = copy.deepcopy(model, memo)
        return twin

    def param(self, name: str) -> Tensor:
        """The value, detached and in its constrained space, of a ``pyro.param`` of this program.

        Raises:
            ProgramError: no ``pyro.param`` of that name has been run.
        """
        key = _key(name)
        if key not in self.pyro_params:
            known = ", ".join(_unkey(k) for k in self.pyro_params) or "none yet"
            raise ProgramError(f"no pyro.param {name!r} in {self.name}; there are: {known}")
        return transform_to(self._constraints[key])(self.pyro_params[key]).detach()


def _key(name: str) -> str:
    return name.replace(".", "/")  # parameter names of a module have no dots


def _unkey(key: str) -> str:
    return key.replace("/", ".")


def _name(thing: object) -> str:
    return getattr(thing, "__qualname__", None) or type(thing).__name__


def as_program(thing: Any) -> Program:
    """Any object with ``model`` and ``guide`` as a :class:`Program`, always the same one.

    Raises:
        ProgramError: it lacks one of them.
    """
    if isinstance(thing, type):
        raise ProgramError(f"{_name(thing)} is a class; make an object of it: {_name(thing)}(...)")
    if isinstance(thing, Program):
        return thing
    if isinstance(getattr(thing, "program", None), Program):  # the result of a fit, an open run
        return thing.program
    for role in ("model", "guide"):
        if not hasattr(thing, role):
            raise ProgramError(
                f"{_name(thing)} has no `{role}`; a program needs model(...) and guide(...). "
                "For an automatic guide write "
                "`self.guide = pyro.infer.autoguide.AutoNormal(self.model)`."
            )
    attributes = getattr(thing, "__dict__", {})
    known = attributes.get(_WRAPPER)
    if known is not None and known.model == thing.model and known.guide == thing.guide:
        return known
    program = Program(thing.model, thing.guide, owner=thing)
    attributes[_WRAPPER] = program
    return program


_WRAPPER = "_ppl_program"
"""Where an object keeps its Program, which holds its ``pyro.param``s: every call finds them."""


def within_a_program() -> bool:
    """Whether ``pyro.param`` statements are now served by a program, in its :meth:`scope`."""
    return isinstance(pyro.get_param_store(), ProgramStore)


def auxiliary_loss(name: str, value: Tensor, *, in_guide: bool = False) -> None:
    """Record a loss that trains but is no part of the ELBO (commitment, penalties).

    The site is logged under its name. Every estimator of ``inference``, and stock Pyro's,
    adds it to the objective; evaluation leaves it out of ELBO, rate and distortion.

    Args:
        name: site name.
        value: the loss, one entry per datum (B,) inside the data plate; nats.
        in_guide: whether it is recorded in the guide, whose log densities an ELBO subtracts.
    """
    fn = dist.Unit(value if in_guide else -value, has_rsample=True)
    kind = {"is_auxiliary_loss": True, "in_guide": in_guide, "is_auxiliary": in_guide}
    pyro.sample(name, fn, obs=fn.sample(), infer=kind)
