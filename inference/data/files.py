"""The user's own data: ``.npy``, ``.npz`` and folders of images."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset, Subset

from inference.data.checks import check_fields
from inference.data.dataset import (
    GREY_LIKELIHOODS,
    DataInfo,
    DataSet,
    MemorySplit,
    StreamSplit,
    describe,
    from_tensors,
    split_indices,
)
from inference.data.sources import bytes_to_unit
from ppl_models.errors import PplError

IMAGE_ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
MEMORY_LIMIT = 2 * 1024**3
"""A folder of images that would take more bytes than this as float32 is streamed."""


def load_array_file(path: Path) -> DataSet:
    """An ``.npy`` file of data (N, ...), or an ``.npz`` of fields by name.

    Bytes are scaled to [0, 1]; images (N, H, W) get a channel. An ``.npz`` with keys
    ``x_train``/``x_valid``/``x_test`` (and other fields likewise) brings its own splits; any
    other is split at random with a fixed seed.

    Raises:
        PplError: no array file, pickled objects, or data that cannot be learned from.
    """
    try:
        with open(path, "rb") as file:
            loaded = np.load(file, allow_pickle=False)
            arrays = {"x": loaded} if isinstance(loaded, np.ndarray) else dict(loaded)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise PplError(
            f"cannot read {path}: {error}. Expected an .npy or .npz of plain numbers; pickled "
            "objects are refused because they can run code."
        ) from error
    fields = {name: _as_field(name, array, path) for name, array in arrays.items()}
    if not any(name.endswith("_train") for name in fields):
        levels = 256 if arrays.get("x", np.empty(0)).dtype == np.uint8 else None
        return from_tensors(fields, name=path.stem, levels=levels)
    levels = 256 if arrays.get("x_train", np.empty(0)).dtype == np.uint8 else None
    return _ready_splits(fields, path, levels)


def _as_field(name: str, array: np.ndarray, path: Path) -> Tensor:
    if not isinstance(array, np.ndarray):  # a member of the archive that is none
        raise PplError(f"{path}: {name!r} is no array; expected an .npz of plain numbers")
    if array.dtype.kind not in "biuf":
        raise PplError(f"{path}: field {name!r} is of type {array.dtype}; expected numbers")
    if array.dtype == np.uint8 and array.ndim > 1:
        value = bytes_to_unit(array)
    else:
        kept = {"b": np.bool_, "f": np.float32}.get(array.dtype.kind, np.int64)
        value = torch.as_tensor(array.astype(kept))
        value = value.float() if value.dtype == torch.bool else value
    return value.unsqueeze(1) if value.dim() == 3 else value


def _ready_splits(fields: dict[str, Tensor], path: Path, levels: int | None) -> DataSet:
    splits = []
    for part in ("train", "valid", "test"):
        ending = f"_{part}"
        tensors = {k.removesuffix(ending): v for k, v in fields.items() if k.endswith(ending)}
        if not tensors:
            raise PplError(f"{path} has fields for train but none for {part}: {sorted(fields)}")
        check_fields(tensors, f"{path.name} ({part})")
        splits.append(MemorySplit(tensors))
    shapes = [{k: tuple(v.shape[1:]) for k, v in s.tensors.items()} for s in splits]
    if any(s != shapes[0] for s in shapes):
        raise PplError(f"{path}: fields or shapes differ between train, valid, test: {shapes}")
    together = {k: torch.cat([s.tensors[k] for s in splits]) for k in shapes[0]}
    return DataSet(describe(path.stem, together, levels), *splits)


class ImageFiles(Dataset[dict[str, Tensor]]):
    """Image files of one size as fields ``x`` (C, H, W) in [0, 1] and, by subfolder, ``y``.

    Args:
        paths: the files.
        labels: class numbers, or None.
        shape: C, H, W that every image must have.
    """

    def __init__(
        self, paths: list[Path], labels: list[int] | None, shape: tuple[int, int, int]
    ) -> None:
        self.paths = paths
        self.labels = labels
        self.shape = shape

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        x = read_image(self.paths[index], grey=self.shape[0] == 1)
        if tuple(x.shape) != self.shape:
            raise PplError(
                f"image {self.paths[index]} has shape {tuple(x.shape)}, but the first of the "
                f"folder has {self.shape}; all images must have one size"
            )
        item = {"x": x}
        return item if self.labels is None else {**item, "y": torch.tensor(self.labels[index])}


def read_image(path: Path, grey: bool | None = None) -> Tensor:
    """An image as (C, H, W) in [0, 1]: one channel if grey, else three.

    Args:
        path: an image file.
        grey: convert to grey, or to colour; as in the file when left out.

    Raises:
        PplError: the file cannot be decoded.
    """
    from PIL import Image

    try:
        with Image.open(path) as image:
            if grey is None:
                grey = image.mode in ("1", "L", "I", "I;16", "F", "LA")
            if image.mode.startswith("I;16"):
                return torch.tensor(np.array(image).astype(np.float32) / 65535).unsqueeze(0)
            pixels = np.array(image.convert("L" if grey else "RGB"))
    except (OSError, SyntaxError, ValueError) as error:
        raise PplError(f"cannot read the image {path}: {error}") from error
    x = bytes_to_unit(pixels)
    return x.unsqueeze(0) if x.dim() == 2 else x.movedim(-1, 0)


def load_image_folder(folder: Path, num_workers: int = 0) -> DataSet:
    """A folder of images of one size; subfolders, if any, are the classes.

    Raises:
        PplError: no images.
    """
    paths = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS)
    if not paths:
        raise PplError(f"no images ({', '.join(IMAGE_ENDINGS)}) in {folder}")
    classes = sorted({p.parent.name for p in paths if p.parent != folder})
    nested = bool(classes) and all(p.parent != folder for p in paths)
    labels = [classes.index(p.parent.name) for p in paths] if nested else None
    c, h, w = read_image(paths[0]).shape
    files = ImageFiles(paths, labels, (c, h, w))
    info = DataInfo(
        folder.name,
        (c, h, w),
        (0.0, 1.0),
        GREY_LIKELIHOODS,
        f"{len(paths):,} images, {c}×{h}×{w}",
        num_classes=len(classes) if nested else None,
        levels=256,
    )
    parts = split_indices(len(paths), (0.1, 0.1))
    if not all(len(part) for part in parts):
        raise PplError(
            f"{len(paths)} images in {folder} are too few to split into train, valid and test"
        )
    if len(paths) * c * h * w * 4 > MEMORY_LIMIT:
        return DataSet(info, *(_stream(files, part, num_workers) for part in parts))
    return DataSet(info, *(_in_memory(files, part) for part in parts))


def _stream(files: ImageFiles, part: Tensor, num_workers: int) -> StreamSplit:
    return StreamSplit(Subset(files, part.tolist()), num_workers=num_workers)


def _in_memory(files: ImageFiles, part: Tensor) -> MemorySplit:
    items: list[dict[str, Any]] = [files[i] for i in part.tolist()]
    names = list(files[0])
    return MemorySplit({name: torch.stack([item[name] for item in items]) for name in names})
