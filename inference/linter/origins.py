"""What a distribution's parameters are given, and by what operation they were made."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.distributions import constraints
from torch.distributions.constraints import Constraint

from inference.linter.reach import reach_of
from inference.sites import innermost

KEEPS_VALUES = re.compile(
    r"(Unsafe)?(View|Reshape|Expand|Split|SplitWithSizes|Slice|Select|Unsqueeze|Squeeze|Permute|"
    r"Transpose|T|Unbind|Clone|ToCopy|Alias|Index|Narrow|AsStrided)(Backward\d*)"
)
"""Operations after which a tensor holds the numbers that it held before."""
OF_ANY_SIGN = {
    "Addmm": "a linear layer",
    "Mm": "a linear layer",
    "Bmm": "a linear layer",
    "Linear": "a linear layer",
    "Convolution": "a convolution",
    "MkldnnConvolution": "a convolution",
    "NativeLayerNorm": "a normalization",
    "Tanh": "a tanh, which can be negative",
    "Relu": "a ReLU, which can be zero",
}
"""Operations that keep their results in no range that a scale has."""


@dataclass(frozen=True)
class Given:
    """One parameter of a distribution, as it was given."""

    name: str
    owner: str
    """Name of the distribution."""
    value: Tensor
    constraint: Constraint

    @property
    def bounded(self) -> bool:
        """Whether not every number is a possible value."""
        low = constraints.greater_than | constraints.greater_than_eq
        kinds = low | constraints.interval | constraints.half_open_interval
        return isinstance(self.constraint, kinds) or self.constraint is constraints.simplex

    @property
    def range(self) -> str:
        """Its possible values in words."""
        return str(reach_of(self.constraint) or self.constraint)

    def out_of_range(self) -> bool:
        """Whether a number of it is impossible."""
        try:
            return not bool(self.constraint.check(self.value).all())
        except (RuntimeError, NotImplementedError):
            return False

    def sound(self) -> bool:
        """Whether it is finite and possible."""
        return bool(self.value.isfinite().all()) and not self.out_of_range()


def given(fn: Any) -> Iterator[Given]:
    """The parameters that a distribution, and those that it is made of, were given."""
    fn = innermost(fn)
    try:
        ranges = fn.arg_constraints
    except NotImplementedError:
        ranges = {}
    for name, constraint in (ranges or {}).items():
        value = vars(fn).get(name)  # others are worked out when asked for
        if isinstance(value, Tensor) and not constraints.is_dependent(constraint):
            yield Given(name, type(fn).__name__, value, constraint)
    for inner in ("base_dist", "component_distribution", "mixture_distribution"):
        part = vars(fn).get(inner) or vars(fn).get(f"_{inner}")
        if part is not None:
            yield from given(part)


def free_origin(value: Tensor) -> str | None:
    """What made a tensor, if that keeps its numbers in no range; None: something that may."""
    node = value.grad_fn
    if node is None:
        free = isinstance(value, nn.Parameter) and value.requires_grad
        return "an unconstrained parameter" if free else None
    while KEEPS_VALUES.fullmatch(node.name()) and node.next_functions:
        node = node.next_functions[0][0]
        if node is None:
            return None
    if hasattr(node, "variable"):
        return "an unconstrained parameter" if isinstance(node.variable, nn.Parameter) else None
    return OF_ANY_SIGN.get(re.sub(r"Backward\d*$", "", node.name()))
