"""What a user gives as data, as a tensor."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ppl_models.errors import PplError


def to_tensor(data: Any, where: str = "data") -> Tensor:
    """Numbers of any container as a tensor of real numbers; without a copy where that can be.

    Args:
        data: a tensor, an array (of any strides, writable or not), a list of lists, a data frame.
        where: what it is, for messages.

    Returns:
        A tensor without gradient; integers and booleans as float64, which holds them all, half
        precision as float32, in which sums do not overflow.

    Raises:
        PplError: it holds something else than numbers, or rows of different lengths.
    """
    found = data.detach() if isinstance(data, Tensor) else _from_array(_to_array(data, where))
    if found.layout != torch.strided:
        raise PplError(f"{where}: sparse tensors are not taken; give a dense one (.to_dense())")
    if found.is_complex():
        raise PplError(f"{where}: complex numbers are not taken; expected real ones")
    if not found.is_floating_point():
        return found.double()
    return found if found.dtype in (torch.float32, torch.float64) else found.float()


def _to_array(data: Any, where: str) -> np.ndarray:
    if data is None:
        raise PplError(f"{where}: expected numbers in an array (N, ...), got None")
    if hasattr(data, "toarray"):
        raise PplError(f"{where}: sparse arrays are not taken; give a dense one (.toarray())")
    try:
        array = np.asarray(data)
        if array.dtype.kind == "O":  # such as a data frame with columns of several types
            array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise PplError(
            f"{where}: expected numbers in an array (N, ...), and what came is none ({error}); "
            "leave out text, fill in what is missing, give all rows one length"
        ) from error
    if array.dtype.kind not in "biufc":
        raise PplError(
            f"{where}: expected numbers, got {array.dtype}; leave out or encode the rest"
        )
    return array


def _from_array(array: np.ndarray) -> Tensor:
    kinds = {"b": np.float64, "u": np.float64, "i": np.float64, "c": np.complex128}
    wanted = kinds.get(array.dtype.kind, np.float32 if array.itemsize <= 4 else np.float64)
    array = array.astype(wanted, copy=False)  # in the machine's byte order
    if any(stride < 0 for stride in array.strides):
        array = array.copy()
    with warnings.catch_warnings():
        # Arrays that may not be written to are not: nothing here writes to data.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        return torch.from_numpy(array)
