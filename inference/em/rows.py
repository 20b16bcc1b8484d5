"""Data for EM: rows (n, D), any number of times over, whatever they come from.

Shapes: N data, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.data.arrays import to_tensor
from inference.data.checks import check_fields, check_finite
from inference.data.dataset import DataSet
from ppl_models.errors import PplError

FIELD = "x"
BATCH = 16_384
"""Rows that a split is asked for at once."""


class Rows:
    """Data as batches of rows.

    Args:
        data: a tensor or array (N, ...), a split, a data set (its training split), or a function
            that gives an iterable of batches (tensors, or dicts with the field ``x``) every time
            it is called.
        dim: D.
        device: where the rows go.

    Raises:
        PplError: it is none of these, or not finite, or not of D numbers a datum.
    """

    def __init__(self, data: Any, dim: int, device: torch.device) -> None:
        self.dim = dim
        self.device = device
        self.size = 0
        """How many data there are, once they were gone through."""
        data = data.train if isinstance(data, DataSet) else data
        self._source = _source(data)
        first = next(iter(self._source()), None)
        if first is None or len(first) == 0:
            raise PplError("there are no data to fit")
        self.dtype = first.dtype if first.is_floating_point() else torch.get_default_dtype()

    def batches(self) -> Iterator[Tensor]:
        """One pass over the data, (n, D) each, on the device."""
        for batch in self._source():
            flat = batch.reshape(len(batch), -1)
            if flat.shape[1] != self.dim:
                raise PplError(
                    f"expected data of {self.dim} numbers each, got {flat.shape[1]} (batch of "
                    f"shape {tuple(batch.shape)}); make the mixture with x_shape="
                    f"{tuple(batch.shape[1:])}"
                )
            yield flat.to(self.device, self.dtype)

    def sample(self, size: int, seed: int) -> Tensor:
        """At most ``size`` rows drawn without replacement, in one pass (a reservoir)."""
        generator = torch.Generator().manual_seed(seed)
        self.size = 0
        kept, keys = torch.empty(0), torch.empty(0, dtype=torch.float64)
        for batch in self.batches():
            self.size += len(batch)
            drawn = torch.rand(len(batch), generator=generator, dtype=torch.float64)
            rows = batch if len(keys) == 0 else torch.cat([kept, batch])
            keys, chosen = torch.cat([keys, drawn]).topk(min(size, len(keys) + len(drawn)))
            kept = rows[chosen.to(rows.device)]
        check_finite(FIELD, kept, "data")
        return kept

    def distinct(self, most: int) -> Tensor:
        """The first distinct rows, at most so many, in one pass."""
        found = torch.empty(0)
        for batch in self.batches():
            found = (batch if len(found) == 0 else torch.cat([found, batch])).unique(dim=0)
            if len(found) >= most:
                break
        return found[:most]


def _source(data: Any) -> Callable[[], Iterable[Tensor]]:
    if isinstance(data, np.ndarray | Tensor):
        whole = to_tensor(data)
        check_fields({FIELD: whole}, "data")
        return lambda: whole.split(BATCH)
    if hasattr(data, "batches"):
        return lambda: (_field(batch) for batch in data.batches(BATCH))
    if callable(data):
        return lambda: (_field(batch) for batch in data())
    raise PplError(
        "expected a tensor or array (N, ...), a split, a data set, or a function that gives an "
        f"iterable of batches; got {type(data).__name__}"
    )


def _field(batch: Any) -> Tensor:
    if isinstance(batch, Tensor | np.ndarray):
        return to_tensor(batch)
    if FIELD not in batch:
        raise PplError(f"the batches have no field {FIELD!r}; they have: {', '.join(batch)}")
    return batch[FIELD]
