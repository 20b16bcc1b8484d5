"""Image files as tensors and back, at the depth and with the channels that they came in."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inference.checkpoint import write_atomically
from inference.image_codecs import ENDINGS, decode, encode
from ppl_models.errors import PplError

DEPTHS = {"uint8": 255, "uint16": 65535, "float32": 1}
"""What white is in a file of each kind of pixels."""


@dataclass
class Photo:
    """An image with what its file says of it."""

    pixels: Tensor
    """(C, H, W), C one or three, in [0, 1] (float files: as they are)."""
    alpha: Tensor | None
    """(H, W) in [0, 1], or None."""
    depth: str
    """``uint8``, ``uint16`` or ``float32``."""
    icc: bytes | None = None
    """The colour profile that says how the pixels are meant; it goes along."""

    def with_pixels(self, pixels: Tensor) -> Photo:
        """Other pixels, the same alpha, depth and profile."""
        return replace(self, pixels=pixels)


def read_photo(path: str | Path) -> Photo:
    """Read a PNG, JPEG or TIFF of 8 or 16 bits or floats, grey or colour, with alpha or without.

    Raises:
        PplError: there is no such file, it is no image, or has pixels that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise PplError(f"there is no image {str(path)!r}")
    try:
        array, icc = decode(path)
    except (PplError, MemoryError):
        raise
    except Exception as error:  # decoders meet a broken file with errors of every kind
        raise PplError(
            f"cannot read {path} as an image ({error}); expected PNG, JPEG or TIFF"
        ) from error
    return _as_photo(array, icc, path)


def write_photo(path: str | Path, photo: Photo) -> None:
    """Write an image in the format of the file's ending, whole or not at all.

    PNG keeps 8 and 16 bits and alpha, TIFF floats as well; JPEG has 8 bits and no alpha. All keep
    the colour profile, none the camera's EXIF (the image stands upright already).

    Raises:
        PplError: the format cannot hold the image, or the file cannot be written.
    """
    path = Path(path)
    check_format(path, photo)
    write_atomically(path, encode(path.suffix.lower(), to_array(photo), photo.icc))


def check_format(path: Path, photo: Photo) -> None:
    """Refuse a format that would lose what the image has.

    Raises:
        PplError: another ending than PNG, JPEG, TIFF; or one that cannot hold the image.
    """
    ending = path.suffix.lower()
    if ending not in ENDINGS:
        raise PplError(f"{path}: the name of an image must end in one of {', '.join(ENDINGS)}")
    jpeg = ending in (".jpg", ".jpeg")
    if jpeg and (photo.alpha is not None or photo.depth != "uint8"):
        held = "8 bits without alpha"
    elif ending == ".png" and photo.depth == "float32":
        held = "8 or 16 bits"
    else:
        return
    raise PplError(
        f"{path}: {ending} holds {held}, but the image has {photo.depth} pixels"
        f"{' and alpha' if photo.alpha is not None else ''}; write a TIFF or, for integers, a PNG"
    )


def _as_photo(array: np.ndarray, icc: bytes | None, path: Path) -> Photo:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in (1, 2, 3, 4):
        raise PplError(f"{path}: expected a grey or colour image, got an array {array.shape}")
    depth = "float32" if array.dtype.kind == "f" else array.dtype.name
    if depth not in DEPTHS:
        raise PplError(f"{path}: pixels of type {array.dtype}; expected 8 or 16 bits or floats")
    values = torch.from_numpy((array / DEPTHS[depth]).astype(np.float32)).movedim(-1, 0)
    if not bool(values.isfinite().all()):
        count = int((~values.isfinite()).sum())
        raise PplError(f"{path}: {count} pixels are NaN or infinite; mend them first")
    if len(values) % 2:
        return Photo(values, None, depth, icc)
    return Photo(values[:-1].contiguous(), values[-1].contiguous(), depth, icc)


def to_array(photo: Photo) -> np.ndarray:
    """Pixels as a file holds them: (H, W, C with alpha) of the image's depth."""
    parts = [photo.pixels] if photo.alpha is None else [photo.pixels, photo.alpha[None]]
    values = torch.cat([p.cpu() for p in parts]).movedim(0, -1).numpy()
    if photo.depth == "float32":
        return np.ascontiguousarray(values, np.float32)
    return np.round(np.clip(values.astype(np.float64), 0, 1) * DEPTHS[photo.depth]).astype(
        photo.depth
    )
