"""Which images and which labels: what the kinds of ``ppl explore`` look at.

Shapes: B images, N data, C H W image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from inference.data import DataInfo, Split
from inference.data.files import IMAGE_ENDINGS, read_image
from inference.devices import isolated_rng
from inference.explore.result import Explorable
from inference.report import to_images
from inference.sampling import to_complete
from inference.sketches import are_drawings, drawing_file, pictures_of
from ppl_models.errors import PplError, UnknownNameError


def pictures(x: Tensor) -> np.ndarray:
    """Images (..., C, H, W), or drawings (..., T, 5), with any number of dimensions before.

    Raises:
        PplError: the data are no images.
    """
    rows = x.reshape(-1, *x.shape[-2:]) if x.dim() >= 3 else x
    if are_drawings(rows):
        drawn = pictures_of(rows)
        return drawn.reshape(*x.shape[:-2], *drawn.shape[1:])
    flat = to_images(x.reshape(-1, *x.shape[-3:])) if x.dim() >= 4 else None
    if flat is None:
        raise PplError(
            "there is nothing to draw: the data's field 'x' is no image of one or three channels. "
            "In Python inference.latents gives the values themselves"
        )
    return flat.reshape(*x.shape[:-3], *flat.shape[1:])


def vectors(x: Tensor) -> bytes | None:
    """Drawings (R, S, T, 5) in R rows as SVG, or None: the data are none."""
    rows = x.reshape(-1, *x.shape[-2:])
    return drawing_file(".svg", rows, x.shape[1]) if are_drawings(rows) else None


def pick(split: Split, places: Sequence[int]) -> dict[str, Tensor]:
    """The data at these places of a split.

    Raises:
        PplError: there is no such place.
    """
    wrong = [place for place in places if not 0 <= place < len(split)]
    if wrong:
        raise PplError(f"there is no image {wrong[0]}; the split has {len(split)}, from 0")
    with isolated_rng(0):  # transforms of the data draw too
        return next(iter(split.batches(len(places), torch.tensor(places))))


def some_places(split: Split, num: int) -> list[int]:
    """Places of one datum of each class in turn, or the first ones if there are no labels."""
    if "y" not in split.fields:
        return list(range(min(num, len(split))))
    return [place for turn in by_class(split).values() for place in turn][:num]


def by_class(split: Split, rounds: int = 8) -> dict[int, list[int]]:
    """Places of the first datum of every class, of the second, ...; by round.

    Args:
        split: with labels ``y``.
        rounds: how many data of a class, at most.
    """
    labels = torch.cat([batch["y"].cpu() for batch in split.batches(2000)])
    found: dict[int, list[int]] = {}
    for k in labels.unique().tolist():
        for turn, place in enumerate((labels == k).nonzero().flatten()[:rounds].tolist()):
            found.setdefault(turn, []).append(place)
    return found


def under_label(run: Explorable, label: int | None) -> dict[str, Tensor] | None:
    """The condition y = label for one datum, or None if the program takes none.

    Raises:
        PplError: the program takes labels and none is given, or the other way round, or there is
            no such class.
    """
    takes = "y" in run.program.fields
    if takes and label is None:
        raise PplError(f"{run.program.name} takes labels: say which, --label 0")
    if label is not None and not takes:
        raise PplError(f"{run.program.name} takes no labels; leave --label out")
    if label is None:
        return None
    classes = run.data.info.num_classes or 0
    if not 0 <= label < classes:
        raise PplError(f"there is no class {label}; expected 0 to {classes - 1}")
    return {"y": torch.tensor([label], device=device_of(run))}


def asked_for(run: Explorable, label: int | None) -> dict[str, Tensor] | None:
    """What a model needs beside a code: a label, or an image to complete (the first of test).

    Raises:
        PplError: as :func:`under_label`.
    """
    given = under_label(run, label)
    return {**(given or {}), **to_complete(run.program, run.data.test, 1, given)} or None


def all_labels(run: Explorable, num: int | None = None) -> Tensor:
    """Every class once, or so many labels in turn.

    Raises:
        PplError: the data have no labels.
    """
    classes = run.data.info.num_classes
    if classes is None:
        raise PplError(f"the data {run.data.info.name!r} have no labels (field 'y')")
    return torch.arange(num or classes, device=device_of(run)) % classes


def device_of(run: Explorable) -> torch.device:
    """Where a run's data are."""
    return next(iter(run.data.train.batches(1)))["x"].device


def property_of(fields: Mapping[str, Tensor], info: DataInfo, name: str) -> Tensor:
    """The values of a property by name: a field (N,) or a named column of one (N, M).

    Raises:
        PplError: the data have no labels at all.
        UnknownNameError: none of this name.
    """
    found = {key: value for key, value in fields.items() if value.dim() == 1}
    for key, names in info.columns.items():
        if key in fields:
            found |= dict(zip(names, fields[key].unbind(-1), strict=True))
    if not found:
        raise PplError(
            f"the data {info.name!r} have no labels beside 'x', and an attribute vector needs "
            "them: a field (N,) such as 'y', or a folder of images with a subfolder a class"
        )
    if name not in found:
        raise UnknownNameError("property", name, found)
    return found[name]


def with_and_without(
    values: Tensor, name: str, value: float | None, against: float | None, categorical: bool
) -> tuple[Tensor, Tensor]:
    """Which data have a property, and which are to be compared, (N,) bool each.

    Args:
        values: (N,).
        name: for messages.
        value: they have it if it is this; when left out, if it is 1 of 0 and 1, or above the
            mean of a property that has an order.
        against: compare with this value alone; with all others when left out.
        categorical: the values have no order.

    Raises:
        PplError: ``value`` is needed, or one of both does not occur.
    """
    known = values.unique()
    for asked in (value, against):
        if asked is not None and not bool((known == asked).any()):
            shown = ", ".join(f"{v:g}" for v in known[:12].tolist())
            raise PplError(f"no datum has {name} = {asked:g}; the values are {shown}")
    if against is not None and against == value:
        raise PplError(f"{name} = {value:g} cannot be told from itself: give another --against")
    if against is not None and value is None:
        raise PplError(f"{name} = {against:g} against what? Say it too, --value 1")
    if value is not None:
        has = values == value
        used = has | (values == against) if against is not None else torch.ones_like(has)
        return has, used
    if set(known.tolist()) <= {0.0, 1.0}:
        has = values == 1
    elif categorical:
        raise PplError(f"{name} has {len(known)} values without an order: say which, --value 1")
    else:
        has = values > values.double().mean()
    return has, torch.ones_like(has)


def foreign_images(path: str, run: Explorable, num: int) -> Tensor:
    """Images of a file or folder, as a run's data are: size, channels, binary if they are.

    The middle square (or oblong of the data's proportions) is taken and reduced.

    Args:
        path: an image file, or a folder of them.
        run: an open run on images.
        num: at most so many.

    Returns:
        (B, C, H, W) in [0, 1].

    Raises:
        PplError: there are none, or the run's data are no images in [0, 1].
    """
    folder, shape = Path(path), run.data.info.x_shape
    files = [folder]
    if folder.is_dir():
        files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS)
    if not files or not files[0].exists():
        raise PplError(f"there is no image {path!r}, nor a folder of that name with images in it")
    if len(shape) != 3 or shape[0] not in (1, 3) or run.data.info.value_range[0] < 0:
        raise PplError(f"the run's data {shape} are no images in [0, 1]; nothing can be fitted")
    images = torch.stack([fit_to(read_image(file, shape[0] == 1), shape) for file in files[:num]])
    if run.data.info.likelihoods == ("bernoulli",):
        images = (images > 0.5).float()
    return images.to(device_of(run))


def fit_to(image: Tensor, shape: Sequence[int]) -> Tensor:
    """The middle of an image (C, h, w) in the proportions of a shape (C, H, W), in its size."""
    height, width = shape[-2:]
    scale = min(image.shape[-2] / height, image.shape[-1] / width)
    sides = [max(1, round(side * scale)) for side in (height, width)]
    top, left = ((a - b) // 2 for a, b in zip(image.shape[-2:], sides, strict=True))
    cut = image[None, :, top : top + sides[0], left : left + sides[1]]
    options: dict[str, Any] = {"mode": "bilinear", "antialias": True, "align_corners": False}
    return interpolate(cut, [height, width], **options)[0].clamp(0, 1)
