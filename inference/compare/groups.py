"""Groups of parameters, and gradients as one vector.

Shapes: P entries of all parameters, N parameters, G groups.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import TypeAlias

import torch
from torch import Tensor

from ppl_models.errors import PplError

Groups: TypeAlias = Mapping[str, str | Sequence[str]] | Callable[[str], str | None]
TOTAL = "all"
"""The group of all parameters."""

_WRAPPERS = re.compile(r"^(owner\.|networks\.|pyro_params\.)+")


def plain_name(name: str) -> str:
    """A parameter's name as its author knows it, without where the wrapper keeps it."""
    return _WRAPPERS.sub("", name).replace("/", ".").replace("$$$", ".")  # $$$: pyro.module's


def group_parameters(names: Sequence[str], groups: Groups | None = None) -> dict[str, list[int]]:
    """Which parameters belong to which group; last comes ``all`` of them.

    Args:
        names: of the parameters.
        groups: group -> patterns such as ``encoder.*``; or a function from a name to its group
            (None: to none); or None: by the first part of the names.

    Raises:
        PplError: a pattern fits no parameter, or a group is named ``all``.
    """
    plain = [plain_name(name) for name in names]
    found: dict[str, list[int]] = {}
    if isinstance(groups, Mapping):
        for group, patterns in groups.items():
            found[group] = _matching([patterns] if isinstance(patterns, str) else patterns, plain)
    else:
        for index, name in enumerate(plain):
            chosen = name.partition(".")[0] if groups is None else groups(name)
            if chosen is not None:
                found.setdefault(chosen, []).append(index)
    if TOTAL in found:
        raise PplError(f"a group cannot be named {TOTAL!r}: that is the group of all parameters")
    return found | {TOTAL: list(range(len(plain)))}


def _matching(patterns: Sequence[str], names: Sequence[str]) -> list[int]:
    chosen: set[int] = set()
    for pattern in patterns:
        fits = {i for i, name in enumerate(names) if fnmatchcase(name, pattern)}
        if not fits:
            raise PplError(
                f"no parameter fits the group's pattern {pattern!r}; the program's parameters are: "
                f"{', '.join(names)}"
            )
        chosen |= fits
    return sorted(chosen)


class Layout:
    """How a gradient's tensors lie in one vector, and which group each belongs to.

    Args:
        parameters: by name.
        groups: as in :func:`group_parameters`.
    """

    def __init__(self, parameters: Mapping[str, Tensor], groups: Groups | None = None) -> None:
        self.names = tuple(plain_name(name) for name in parameters)
        self.shapes = tuple(p.shape for p in parameters.values())
        self.sizes = [p.numel() for p in parameters.values()]
        members = group_parameters(tuple(parameters), groups)
        self.groups = tuple(members)
        self.group_sizes = [sum(self.sizes[i] for i in m) for m in members.values()]
        device = next(iter(parameters.values())).device
        self._membership = torch.zeros(len(members), len(self.names), dtype=torch.float64)
        for row, indices in enumerate(members.values()):
            self._membership[row, indices] = 1.0
        self._membership = self._membership.to(device)

    def flatten(self, tensors: Sequence[Tensor]) -> Tensor:
        """One tensor a parameter as a vector (P,), in float64."""
        return torch.cat([t.detach().double().flatten() for t in tensors])

    def sum_by_group(self, vector: Tensor) -> Tensor:
        """Sums of a vector (P,) by group (G,)."""
        by_parameter = torch.stack([part.sum() for part in vector.split(self.sizes)])
        return self._membership @ by_parameter

    def from_mapping(self, gradients: Mapping[str, Tensor]) -> Tensor:
        """Gradients by name of parameter as a vector (P,).

        Raises:
            PplError: names or shapes are not the program's.
        """
        given = {plain_name(name): torch.as_tensor(value) for name, value in gradients.items()}
        if set(given) != set(self.names):
            lacking = sorted(set(self.names) - set(given)) or "none"
            unknown = sorted(set(given) - set(self.names)) or "none"
            raise PplError(
                f"the reference gradients do not fit the program's parameters: lacking {lacking}, "
                f"unknown {unknown}"
            )
        for name, shape in zip(self.names, self.shapes, strict=True):
            if given[name].shape != shape:
                raise PplError(
                    f"the reference gradient of {name!r} has shape {tuple(given[name].shape)}; its "
                    f"parameter has {tuple(shape)}"
                )
        return self.flatten([given[name].to(self._membership.device) for name in self.names])
