"""Class labels as inputs of networks.

Shapes: B data, Y classes.
"""

from __future__ import annotations

import pyro.distributions as dist
import torch
from torch import Tensor

from ppl_models.errors import ProgramError


def one_hot(y: Tensor, num_classes: int, like: Tensor) -> Tensor:
    """Labels (B,) as indicators (B, Y) in the dtype of another tensor.

    Under Pyro's validation the labels are looked at; a compiled step reads no values.

    Raises:
        ProgramError: labels that are no class numbers.
    """
    if y.is_floating_point():
        raise ProgramError(f"labels y must be integers, got {y.dtype}; give y.long()")
    if dist.is_validation_enabled():
        bad = (y < 0) | (y >= num_classes)
        if bool(bad.any()):
            raise ProgramError(
                f"label y = {int(y[bad][0])} is out of range: there are {num_classes} classes, "
                f"0 to {num_classes - 1}"
            )
    return (y.unsqueeze(-1) == torch.arange(num_classes, device=y.device)).to(like.dtype)


def beside(z: Tensor, context: Tensor) -> Tensor:
    """(..., D) and a context (B, Y), repeated over what z has more, as (..., D + Y)."""
    return torch.cat([z, context.expand(*z.shape[:-1], context.shape[-1])], dim=-1)
