"""Data sets of drawings: batches of stroke-5, ``{"x": (B, T, 5), "y": (B,)}``.

Offsets are divided by their standard deviation over the training set, which :class:`DataInfo` tells
as ``offset_scale``. What is cut, left out or refused is counted, logged, and told by ``counts``.

Shapes: B data, T rows, N movements.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from inference.data.dataset import DataInfo, DataSet, MemorySplit, split_indices
from inference.data.sketches.doodles import RECIPES, doodles
from inference.data.sketches.files import (
    PARTS,
    RawDrawings,
    is_sketch_path,
    read_drawings,
    read_npz,
)
from inference.data.sketches.strokes import (
    Augmentation,
    Strokes,
    simplified,
    stroke3,
    stroke5,
    tidied,
)
from ppl_models.errors import PplError, UnknownNameError, whole_number

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SketchOptions:
    """How drawings are read; see :func:`inference.load_data`."""

    max_points: int = 250
    simplify: float = 0.0
    augment: bool = False
    classes: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        whole_number("max_points", self.max_points)
        if not 0 <= self.simplify < float("inf"):
            raise PplError(f"simplify is a distance, 0 or above, got {self.simplify}")


def _own(root: Path) -> RawDrawings:
    drawings, names = doodles()
    return RawDrawings({"all": drawings}, {"all": names})


def _shared(name: str) -> Callable[[Path], RawDrawings]:
    def load(root: Path) -> RawDrawings:
        path = root / "sketches" / f"{name}.npz"
        if not path.is_file():
            raise PplError(
                f"there is no {path}; name the folder that has sketches/{name}.npz by --data_root "
                "or PPL_DATA_ROOT"
            )
        return read_npz(path)

    return load


SKETCHES: dict[str, tuple[Callable[[Path], RawDrawings], str]] = {
    "doodles": (_own, f"{300 * len(RECIPES):,} doodles of {len(RECIPES)} classes; embedded"),
    "omniglot_strokes": (
        _shared("omniglot"),
        "32,000 handwritten characters as pen strokes; sketches/ in the data root",
    ),
    "short_kanji": (_shared("short_kanji"), "11,100 kanji as pen strokes; the same"),
}
"""Sets of drawings by name, and what they are."""


def is_sketch(name: str) -> bool:
    """Whether a name or path is of drawings."""
    return name in SKETCHES or is_sketch_path(Path(name))


def load_sketches(name: str, root: Path, options: SketchOptions | None = None) -> DataSet:
    """A data set of drawings.

    Args:
        name: of ``SKETCHES``, or a file or folder.
        root: folder of data files.
        options: how they are read.

    Raises:
        PplError: no sketch file, no drawings in it, or too few.
        UnknownNameError: a class that is not there.
    """
    options = options or SketchOptions()
    raw = SKETCHES[name][0](root) if name in SKETCHES else read_drawings(Path(name))
    title = name if name in SKETCHES else Path(name).stem
    return _data_set(title, raw, options)


def _data_set(title: str, raw: RawDrawings, options: SketchOptions) -> DataSet:
    counts = {"malformed": raw.missing} if raw.missing else {}
    wanted = _classes(raw, options.classes)
    chosen = {part: _chosen(raw, part, wanted) for part in raw.parts}
    kept = {part: _checked(*pair, options, counts) for part, pair in chosen.items()}
    if list(kept) == ["all"]:
        kept = _divided(title, kept["all"])
    empty = [part for part in PARTS if not kept[part][0]]
    if empty:
        raise PplError(f"{title}: there are no drawings to use in {empty[0]} ({_told(counts)})")
    if counts:
        log.warning("%s: %s", title, _told(counts))
    offsets = np.concatenate([strokes[:, :2] for strokes in kept["train"][0]])
    scale = float(offsets.std())
    longest = max(len(strokes) for drawings, _ in kept.values() for strokes in drawings)
    splits = [_split(*kept[part], scale, longest, wanted) for part in PARTS]
    if options.augment:
        splits[0] = replace(splits[0], transform=Augmentation())
    reach = max(float(split.tensors["x"].abs().max()) for split in splits)
    sizes = " / ".join(f"{len(split):,}" for split in splits)
    info = DataInfo(
        title,
        (longest + 1, 5),
        (-reach, reach),
        (),
        f"{sizes} drawings of at most {longest} movements",
        num_classes=len(wanted) or None,
        offset_scale=scale,
        class_names=tuple(wanted),
        counts=counts,
    )
    return DataSet(info, *splits)


def _classes(raw: RawDrawings, asked: Sequence[str] | None) -> list[str]:
    """Names of the classes in the order of their labels; none if the drawings have none."""
    known = sorted({name for names in raw.names.values() for name in names})
    if asked is None:
        return known
    if not known:
        raise PplError(f"these drawings have no classes, so none can be chosen: {', '.join(asked)}")
    for name in asked:
        if name not in known:
            raise UnknownNameError("class of drawings", name, known)
    return list(dict.fromkeys(asked))


def _chosen(raw: RawDrawings, part: str, wanted: Sequence[str]) -> tuple[list[Strokes], list[str]]:
    names = raw.names.get(part)
    if not names:
        return raw.parts[part], []
    pairs = [(d, n) for d, n in zip(raw.parts[part], names, strict=True) if n in wanted]
    return [d for d, _ in pairs], [n for _, n in pairs]


def _checked(
    drawings: Sequence[Strokes],
    names: Sequence[str],
    options: SketchOptions,
    counts: dict[str, int],
) -> tuple[list[Strokes], list[str]]:
    """Drawings that can be used, tidied and short enough; all others are counted."""
    kept, kept_names = [], []

    def count(what: str) -> None:
        counts[what] = counts.get(what, 0) + 1

    for i, strokes in enumerate(drawings):
        if not np.isfinite(strokes).all():
            count("not finite")
            continue
        tidy = tidied(strokes)
        if options.simplify:
            tidy = tidied(simplified(tidy, options.simplify))
        if not len(tidy):
            count("empty")
            continue
        if len(tidy) > options.max_points:
            count("cut")
            tidy = tidied(tidy[: options.max_points])
        kept.append(tidy)
        kept_names += [names[i]] if names else []
    return kept, kept_names


def _divided(
    title: str, every: tuple[list[Strokes], list[str]]
) -> dict[str, tuple[list[Strokes], list[str]]]:
    """Train (80 %), valid and test (10 % each) by a fixed permutation."""
    drawings, names = every
    parts = split_indices(len(drawings), (0.1, 0.1))
    if not all(len(part) for part in parts):
        raise PplError(
            f"{title}: {len(drawings)} drawings are too few to split into train, valid and test; "
            "expected ten or more"
        )
    return {
        name: ([drawings[i] for i in part], [names[i] for i in part] if names else [])
        for name, part in zip(PARTS, (p.tolist() for p in parts), strict=True)
    }


def _split(
    drawings: Sequence[Strokes],
    names: Sequence[str],
    scale: float,
    longest: int,
    classes: Sequence[str],
) -> MemorySplit:
    scaled = [strokes / (scale, scale, 1.0) for strokes in drawings]
    fields = {"x": stroke5(scaled, longest + 1)}
    if classes:
        fields["y"] = torch.tensor([classes.index(name) for name in names])
    return MemorySplit(fields, lengths=torch.tensor([len(strokes) for strokes in drawings]))


def _told(counts: dict[str, int]) -> str:
    return ", ".join(f"{what}: {number}" for what, number in counts.items()) or "all are read"


__all__ = [
    "SKETCHES",
    "Augmentation",
    "SketchOptions",
    "is_sketch",
    "load_sketches",
    "stroke3",
    "stroke5",
]
