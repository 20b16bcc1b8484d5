"""Refusing data that cannot be learned from, with the place where they are wrong."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from ppl_models.errors import PplError


def check_fields(fields: Mapping[str, Tensor], where: str) -> None:
    """Check that fields are tensors of one length, not empty, of numbers, and finite.

    Args:
        fields: tensors by name.
        where: what they are, for the message.

    Raises:
        PplError: they are not.
    """
    lengths = {}
    for name, value in fields.items():
        if not isinstance(value, Tensor):
            raise PplError(f"{where}: field {name!r} must be a tensor, not {type(value).__name__}")
        if value.dim() == 0:
            raise PplError(f"{where}: field {name!r} is a single number; expected (N, ...)")
        if value.is_complex():
            raise PplError(f"{where}: field {name!r} is complex; expected real numbers")
        lengths[name] = len(value)
    if not lengths or not all(lengths.values()):
        raise PplError(f"{where}: there are no data (lengths of the fields: {lengths})")
    if len(set(lengths.values())) > 1:
        raise PplError(f"{where}: fields of different lengths: {lengths}")
    for name, value in fields.items():
        check_finite(name, value, where)


def check_finite(name: str, value: Tensor, where: str) -> None:
    """Refuse NaN and infinity, naming the first.

    Raises:
        PplError: there is one.
    """
    if not value.is_floating_point():
        return
    # One pass over the data without a mask of their size: a sum is finite if they all are
    # (or overflows, and then the exact check decides).
    if torch.isfinite(value.sum(dtype=torch.float64)):
        return
    bad = ~torch.isfinite(value)
    if bool(bad.any()):
        index = tuple(bad.nonzero()[0].tolist())
        raise PplError(
            f"{where}: field {name!r} holds {value[index].item()} at index {index} "
            f"({int(bad.sum())} such values in all). Remove these data or fill them in."
        )


def check_labels(labels: Tensor, num_classes: int | None, where: str) -> None:
    """Refuse labels that are no class numbers, naming the first.

    Raises:
        PplError: the labels are not integers in [0, num_classes), or not one a datum.
    """
    if labels.dim() != 1:
        raise PplError(f"{where}: labels must have shape (N,), got {tuple(labels.shape)}")
    if labels.is_floating_point():
        raise PplError(f"{where}: labels must be integers, got {labels.dtype}")
    high = num_classes if num_classes is not None else int(labels.max()) + 1
    bad = (labels < 0) | (labels >= high)
    if bool(bad.any()):
        index = int(bad.nonzero()[0])
        raise PplError(
            f"{where}: label {int(labels[index])} at index {index} is out of range; "
            f"expected integers from 0 to {high - 1}"
        )
