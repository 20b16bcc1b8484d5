"""Data sets by name or path: ``load_data("mnist5k")``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from inference.data.dataset import (
    DataInfo,
    DataSet,
    MemorySplit,
    Split,
    StreamSplit,
    as_dataset,
    from_tensors,
)
from inference.data.faces import celeba, faces, frey_faces, olivetti_faces
from inference.data.files import load_array_file, load_image_folder
from inference.data.shapes import rendered_shapes
from inference.data.sketches import SKETCHES, SketchOptions, is_sketch, load_sketches
from inference.data.sources import (
    Source,
    binarized_mnist,
    data_root,
    digits,
    mnist5k,
    torchvision_classes,
    torchvision_set,
)
from inference.data.transforms import binarize as binarize_data
from inference.data.transforms import dequantize as dequantize_data
from ppl_models.errors import PplError, UnknownNameError

SOURCES: dict[str, Source] = {
    "digits": Source(digits, "1,797 digits, 1×8×8, labels; embedded (scikit-learn)"),
    "mnist5k": Source(mnist5k, "5,000 MNIST digits, 1×28×28, labels; embedded"),
    "binarized_mnist": Source(binarized_mnist, "MNIST in its fixed binarization, 1×28×28"),
    "shapes": Source(
        lambda _: rendered_shapes(),
        "6,144 rendered shapes, 1×32×32, of known shape, scale, rotation, x, y; embedded",
    ),
    "faces": Source(faces, "100 faces, 1×25×25; embedded in scikit-image"),
    "frey_faces": Source(frey_faces, "1,965 frames of one face, 1×28×20; faces/ in the data root"),
    "olivetti_faces": Source(
        olivetti_faces, "40 people × 10, 1×64×64, labels; faces/ in the data root"
    ),
    "celeba": Source(celeba, "202,599 faces, 3×64×64, 40 attributes; celeba/ in the data root"),
    **{
        name: Source(lambda root, name=name: load_sketches(name, root), summary)  # type: ignore[misc]
        for name, (_, summary) in SKETCHES.items()
    },
}
"""Data sets that are not torchvision's."""


def load_data(
    data: str,
    *,
    data_root: str | None = None,
    binarize: str = "none",
    dequantize: bool = False,
    num_workers: int = 0,
    max_points: int = 250,
    simplify: float = 0.0,
    augment: bool = False,
    classes: list[str] | None = None,
) -> DataSet:
    """A data set by name or path.

    Args:
        data: a name of ``SOURCES`` (``digits``, ``mnist5k``, ``shapes``, ``faces``, ...), any
            image set of torchvision (``mnist``, ``fashion_mnist``, ``cifar10``, ...), an ``.npy``
            or ``.npz`` file, or a folder of images; of drawings ``doodles``, ``omniglot_strokes``,
            ``short_kanji``, a file of QuickDraw's (``.npz``, ``.ndjson``), or a folder of these or
            of SVG files.
        data_root: folder of downloaded files; else the variable PPL_DATA_ROOT, else a cache.
        binarize: ``none``, ``threshold``, ``static`` (once) or ``dynamic`` (every batch anew).
        dequantize: add uniform noise to bytes, so that densities give bits per dimension.
        num_workers: processes that read a data set that is streamed.
        max_points: movements of the pen after which drawings are cut.
        simplify: leave out points of drawings that are no farther than this from the line without
            them (Ramer, Douglas & Peucker), in the unit of the file.
        augment: stretch drawings for training at random, and leave out a tenth of their points.
        classes: of drawings, by name; all when left out.

    Raises:
        UnknownNameError: no data set, file or folder of that name.
        PplError: the data are missing, malformed or not what the options need.
    """
    drawn = SketchOptions(max_points, simplify, augment, tuple(classes) if classes else None)
    loaded = binarize_data(_load(data, data_root, num_workers, drawn), binarize)
    if dequantize and binarize != "none":
        raise PplError("binarized data cannot be dequantized; give one of the two options")
    return dequantize_data(loaded) if dequantize else loaded


def _load(name: str, root: str | None, num_workers: int, drawn: SketchOptions) -> DataSet:
    folder = data_root(root)
    if is_sketch(name):
        return load_sketches(name, folder, drawn)
    if drawn != SketchOptions():
        raise PplError(
            f"max_points, simplify, augment and classes are of drawings, and {name!r} is none; "
            "leave them out"
        )
    if name in SOURCES:
        return SOURCES[name].load(folder).map(lambda split: _read_by(split, num_workers))
    path = Path(name)
    if path.suffix in (".npy", ".npz"):
        if not path.is_file():
            raise PplError(f"there is no data file {name!r} (looked in {Path.cwd()})")
        return load_array_file(path)
    classes = torchvision_classes()
    key = name.lower().replace("_", "").replace("-", "")
    if key in classes:  # before folders: torchvision keeps MNIST in one called MNIST
        return torchvision_set(classes[key], folder)
    if path.is_dir():
        return load_image_folder(path, num_workers)
    raise UnknownNameError(
        "data set",
        name,
        [*SOURCES, "mnist", "fashion_mnist", "cifar10"],
        "Or any image set of torchvision, an .npy or .npz file, or a folder of images.",
    )


def _read_by(split: Split, num_workers: int) -> Split:
    """A split that is streamed, by so many processes; any other as it is."""
    return replace(split, num_workers=num_workers) if isinstance(split, StreamSplit) else split


__all__ = [
    "SOURCES",
    "DataInfo",
    "DataSet",
    "MemorySplit",
    "StreamSplit",
    "as_dataset",
    "binarize_data",
    "dequantize_data",
    "from_tensors",
    "load_data",
    "rendered_shapes",
]
