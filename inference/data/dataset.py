"""Data sets: splits that yield batches as dicts of tensors by field name.

Data that fit in memory stay on the device as whole tensors and are indexed there; larger sets
stream through a ``DataLoader``. Either way a batch is ``{"x": (B, ...), "y": (B,), ...}``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Subset

from inference.data.checks import check_fields, check_labels
from ppl_models.errors import PplError

Transform = Callable[[dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class DataInfo:
    """What a data set says of itself."""

    name: str
    x_shape: tuple[int, ...]
    """Shape of one datum."""
    value_range: tuple[float, float]
    likelihoods: tuple[str, ...]
    """Likelihoods that fit its values."""
    summary: str
    num_classes: int | None = None
    levels: int | None = None
    """Grey levels of the originals, if x is such a level scaled to [0, 1]; 256 for bytes."""
    log_jacobian: float | None = None
    """log |dx/du| per dimension, where u are the integers that the originals count in: 0 for
    binary data, −log 256 for dequantized bytes in [0, 1]; None where a density of x says
    nothing of them."""
    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """Names of the columns of fields (B, M) that hold several properties, such as factors."""
    categorical: tuple[str, ...] = ()
    """Columns whose values are mere names: no one is between two others."""
    offset_scale: float | None = None
    """Of drawings: what their offsets were divided by, in the unit of their source."""
    class_names: tuple[str, ...] = ()
    """Names of the labels, where the data tell them."""
    counts: Mapping[str, int] = field(default_factory=dict)
    """Data that were cut, left out or refused when they were read, by why."""


class Split(Protocol):
    """One part of a data set."""

    def __len__(self) -> int:
        """Number of data."""

    def to(self, device: torch.device, dtype: torch.dtype) -> Split:
        """The same data with batches on this device, floating fields in this dtype."""

    def batches(self, batch_size: int, order: Tensor | None = None) -> Iterator[dict[str, Tensor]]:
        """Batches of the data in this order (an index tensor); the last may be short."""

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields of its batches."""


@dataclass(repr=False)
class MemorySplit:
    """A split held as whole tensors.

    Args:
        tensors: fields (N, ...).
        transform: applied to every batch, such as dynamic binarization.
        lengths: (N,), of data that are padded; in training those of about one share batches.
    """

    tensors: dict[str, Tensor]
    transform: Transform | None = None
    lengths: Tensor | None = None

    def __len__(self) -> int:
        return len(next(iter(self.tensors.values())))

    def __repr__(self) -> str:
        shapes = ", ".join(f"{k} {tuple(v.shape)}" for k, v in self.tensors.items())
        return f"MemorySplit({shapes})"

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(self.tensors)

    def to(self, device: torch.device, dtype: torch.dtype) -> MemorySplit:
        """The same data on this device."""
        return replace(self, tensors=_move(self.tensors, device, dtype))

    def batches(self, batch_size: int, order: Tensor | None = None) -> Iterator[dict[str, Tensor]]:
        """Batches by index, made on the device."""
        device = next(iter(self.tensors.values())).device
        order = None if order is None else order.to(device)
        for start in range(0, len(self) if order is None else len(order), batch_size):
            stop = start + batch_size
            if order is None:
                batch = {name: value[start:stop] for name, value in self.tensors.items()}
            else:
                rows = order[start:stop]
                batch = {name: value.index_select(0, rows) for name, value in self.tensors.items()}
            yield batch if self.transform is None else self.transform(batch)


@dataclass
class StreamSplit:
    """A split read item by item.

    What a dataset draws at random in a worker process is not part of a checkpoint; random
    augmentation belongs in ``transform``, which draws from the resumable stream.

    Args:
        dataset: a map-style dataset whose items are dicts of tensors by field.
        transform: applied to every batch.
        num_workers: processes that read.
    """

    dataset: Dataset[Any]
    transform: Transform | None = None
    num_workers: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    @property
    def fields(self) -> tuple[str, ...]:
        """Names of the fields."""
        return tuple(self.dataset[0])

    def to(self, device: torch.device, dtype: torch.dtype) -> StreamSplit:
        """The same data with batches on this device."""
        return replace(self, device=device, dtype=dtype)

    def batches(self, batch_size: int, order: Tensor | None = None) -> Iterator[dict[str, Tensor]]:
        """Batches through a ``DataLoader``; the workers draw no number of the global stream."""
        subset = self.dataset if order is None else Subset(self.dataset, order.tolist())
        loader: DataLoader[Any] = DataLoader(
            subset,
            batch_size=batch_size,
            num_workers=self.num_workers,
            generator=torch.Generator().manual_seed(0),
            pin_memory=self.device.type == "cuda",
        )
        for batch in loader:
            moved = _move(batch, self.device, self.dtype)
            yield moved if self.transform is None else self.transform(moved)


def _move(
    batch: Mapping[str, Tensor], device: torch.device, dtype: torch.dtype
) -> dict[str, Tensor]:
    return {
        name: value.to(device, dtype if value.is_floating_point() else value.dtype)
        for name, value in batch.items()
    }


@dataclass(repr=False)
class DataSet:
    """Train, valid and test splits, and what they hold."""

    info: DataInfo
    train: Split
    valid: Split
    test: Split

    def __repr__(self) -> str:
        sizes = f"{len(self.train)} / {len(self.valid)} / {len(self.test)}"
        return f"DataSet({self.info.name!r}, x {self.info.x_shape}, {sizes})"

    def split(self, name: str) -> Split:
        """A split by name.

        Raises:
            PplError: it is not train, valid or test.
        """
        if name not in ("train", "valid", "test"):
            raise PplError(f"unknown split {name!r}; there are: train, valid, test")
        return getattr(self, name)

    def map(self, change: Callable[[Split], Split]) -> DataSet:
        """The data set with every split changed."""
        return DataSet(self.info, change(self.train), change(self.valid), change(self.test))


def split_indices(size: int, fractions: tuple[float, float], seed: int = 0) -> list[Tensor]:
    """A fixed random partition into train, valid and test.

    Args:
        size: number of data.
        fractions: of valid and of test.
        seed: of the permutation.
    """
    order = torch.randperm(size, generator=torch.Generator().manual_seed(seed))
    valid, test = (round(size * f) for f in fractions)
    train = size - valid - test
    return list(order.split([train, valid, test]))


def from_tensors(
    data: Mapping[str, Tensor | np.ndarray] | Tensor | np.ndarray,
    *,
    name: str = "tensors",
    fractions: tuple[float, float] = (0.1, 0.1),
    seed: int = 0,
    levels: int | None = None,
) -> DataSet:
    """A data set of the user's tensors, split at random with a fixed seed.

    Args:
        data: fields (N, ...) by name; a single array is the field ``x``.
        name: for reports.
        fractions: of valid and of test.
        seed: of the split.
        levels: grey levels that x is scaled from; allows dequantization.

    Raises:
        PplError: empty data, fields of different lengths, NaN or infinity.
    """
    given = data if isinstance(data, Mapping) else {"x": data}
    for key, value in given.items():
        if not isinstance(value, Tensor | np.ndarray):
            raise PplError(
                f"field {key!r} is a {type(value).__name__}; expected a tensor or array "
                "(N, ...). A data set by name is load_data('mnist5k'), a torch Dataset StreamSplit."
            )
    fields = {k: torch.as_tensor(v) for k, v in given.items()}
    check_fields(fields, f"data {name!r}")
    fields = {k: v.float() if v.dtype == torch.bool else v for k, v in fields.items()}
    size = len(next(iter(fields.values())))
    parts = split_indices(size, fractions, seed)
    if len(parts[0]) == 0:
        raise PplError(f"data {name!r}: {size} data leave none to train on")
    splits = [MemorySplit({k: v[part] for k, v in fields.items()}) for part in parts]
    return DataSet(describe(name, fields, levels), *splits)


def _are_labels(y: Tensor) -> bool:
    """Whether a field ``y`` holds class numbers; fractions are targets of a regression."""
    return not y.is_floating_point() or bool((y == y.round()).all())


def describe(name: str, fields: Mapping[str, Tensor], levels: int | None = None) -> DataInfo:
    """What tensors say of themselves: shape, range, classes, likelihoods that fit."""
    first = fields["x"] if "x" in fields else next(iter(fields.values()))
    low, high = float(first.min()), float(first.max())
    binary = bool(((first == 0) | (first == 1)).all())
    num_classes = None
    if "y" in fields and _are_labels(fields["y"]):
        check_labels(fields["y"], None, f"data {name!r}")
        num_classes = int(fields["y"].max()) + 1
    return DataInfo(
        name=name,
        x_shape=tuple(first.shape[1:]),
        value_range=(low, high),
        likelihoods=("bernoulli",) if binary else fitting_likelihoods(low, high, levels),
        summary=f"{len(first):,} data of shape {tuple(first.shape[1:])}",
        num_classes=num_classes,
        levels=None if binary else levels,
        log_jacobian=0.0 if binary else None,
    )


def fitting_likelihoods(low: float, high: float, levels: int | None) -> tuple[str, ...]:
    """Likelihoods for numbers in this range, on so many grey levels if that is known."""
    found = ["normal", "normal_shared_scale", "normal_pixel_scale"]
    if low >= 0 and high <= 1:
        found += ["continuous_bernoulli"]
        found += ["discretized_logistic_mixture"] if levels else []
    return tuple(found)


GREY_LIKELIHOODS = fitting_likelihoods(0.0, 1.0, 256)
"""For images of bytes."""


def as_dataset(data: Any) -> DataSet:
    """A :class:`DataSet` as it is, anything else through :func:`from_tensors`."""
    return data if isinstance(data, DataSet) else from_tensors(data)
