"""What a model or guide takes: fields of the batch, and options."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn


class Signature(NamedTuple):
    """What a model or guide takes."""

    fields: tuple[str, ...]
    """Positional parameters without a default, or with None: fields of the batch."""
    required: tuple[str, ...]
    """Those of them without a default."""
    options: frozenset[str]
    """Keyword-only parameters."""
    open: bool
    """Takes ``**kwargs`` (an autoguide does): it is given the other's fields."""


def signature_of(fn: Callable[..., Any]) -> Signature:
    """The fields and options that a model or guide names in its signature."""
    target = fn.forward if isinstance(fn, nn.Module) else fn
    parameters = inspect.signature(target).parameters.values()
    named = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return Signature(
        fields=tuple(p.name for p in parameters if p.kind in named and not _is_setting(p)),
        required=tuple(p.name for p in parameters if p.kind in named and p.default is p.empty),
        options=frozenset(p.name for p in parameters if p.kind is p.KEYWORD_ONLY),
        open=any(p.kind is p.VAR_KEYWORD for p in parameters),
    )


def _is_setting(parameter: inspect.Parameter) -> bool:
    """Whether a positional parameter has a default of its own, so is no field of the data."""
    return parameter.default is not None and parameter.default is not parameter.empty
