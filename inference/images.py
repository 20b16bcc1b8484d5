"""Image files as tensors and back, at the depth and with the channels that they came in."""

from __future__ import annotations

import io
import struct
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.checkpoint import write_atomically
from ppl_models.errors import PplError

TIFF = (".tif", ".tiff")
ENDINGS = (".png", ".jpg", ".jpeg", *TIFF)
PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's colour types by the number of channels."""


@dataclass
class Photo:
    """An image with what its file says of it."""

    pixels: Tensor
    """(C, H, W), C one or three, in [0, 1] (float files: as they are)."""
    alpha: Tensor | None
    """(H, W) in [0, 1], or None."""
    depth: str
    """``uint8``, ``uint16`` or ``float32``."""

    def with_pixels(self, pixels: Tensor) -> Photo:
        """Other pixels, the same alpha and depth."""
        return Photo(pixels, self.alpha, self.depth)


def read_photo(path: str | Path) -> Photo:
    """Read a PNG, JPEG or TIFF of 8 or 16 bits or floats, grey or colour, with alpha or without.

    Raises:
        PplError: there is no such file, it is no image, or has pixels that are not finite.
    """
    path = Path(path)
    if not path.is_file():
        raise PplError(f"there is no image {str(path)!r}")
    try:
        array = _decode(path)
    except (OSError, SyntaxError, ValueError, RuntimeError, struct.error) as error:
        raise PplError(
            f"cannot read {path} as an image ({error}); expected PNG, JPEG or TIFF"
        ) from error
    return _as_photo(array, path)


def write_photo(path: str | Path, photo: Photo) -> None:
    """Write an image in the format of the file's ending, whole or not at all.

    PNG keeps 8 and 16 bits and alpha, TIFF floats as well; JPEG has 8 bits and no alpha.

    Raises:
        PplError: the format cannot hold the image, or the file cannot be written.
    """
    path = Path(path)
    check_format(path, photo)
    write_atomically(path, _encode(path.suffix.lower(), photo))


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


def _decode(path: Path) -> np.ndarray:
    """Pixels (H, W) or (H, W, C) as the file has them."""
    from PIL import Image, ImageOps

    if path.suffix.lower() in TIFF and _is_deep_tiff(path):
        return _decode_deep_tiff(path)
    if _is_deep_png(path):
        return _decode_deep_png(path)
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened)  # upright, as the camera says
        if image.mode == "P":
            image = image.convert("RGBA" if "transparency" in image.info else "RGB")
        elif image.mode not in ("L", "LA", "RGB", "RGBA", "F") and not image.mode.startswith("I"):
            image = image.convert("L" if image.mode == "1" else "RGB")
        return np.array(image)


def _is_deep_tiff(path: Path) -> bool:
    """Whether Pillow cannot read it whole: more than 8 bits a channel, or a rarer layout."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            bits = image.tag_v2.get(258, (8,))  # type: ignore[attr-defined]
    except UnidentifiedImageError:
        return True
    return max(bits) > 8


def _decode_deep_tiff(path: Path) -> np.ndarray:
    import tifffile

    with tifffile.TiffFile(path) as file:
        page: Any = file.pages[0]
        array = file.series[0].asarray()
        planar = array.ndim == 3 and page.planarconfig == 2  # (C, H, W)
    return np.moveaxis(array, 0, -1) if planar else array


def _is_deep_png(path: Path) -> bool:
    """Whether it is a PNG of 16 bits with more channels than grey, of which Pillow keeps 8."""
    with open(path, "rb") as file:
        head = file.read(26)
    return head[:8] == b"\x89PNG\r\n\x1a\n" and head[24] == 16 and head[25] != 0


def _decode_deep_png(path: Path) -> np.ndarray:
    from torchvision.io import ImageReadMode, decode_image

    content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    with warnings.catch_warnings():  # torchvision announces that another package will do this
        warnings.simplefilter("ignore")
        return decode_image(content, ImageReadMode.UNCHANGED).movedim(0, -1).numpy()


def _as_photo(array: np.ndarray, path: Path) -> Photo:
    if array.ndim == 2:
        array = array[..., None]
    if array.ndim != 3 or array.shape[-1] not in PNG_COLOURS:
        raise PplError(f"{path}: expected a grey or colour image, got an array {array.shape}")
    kinds = {"uint8": "uint8", "uint16": "uint16", "int32": "uint16"}
    depth = kinds.get(array.dtype.name, "float32" if array.dtype.kind == "f" else "")
    if not depth:
        raise PplError(f"{path}: pixels of type {array.dtype}; expected 8 or 16 bits or floats")
    scale = {"uint8": 255, "uint16": 65535, "float32": 1}[depth]
    values = torch.from_numpy((array / scale).astype(np.float32)).movedim(-1, 0)
    if not bool(values.isfinite().all()):
        count = int((~values.isfinite()).sum())
        raise PplError(f"{path}: {count} pixels are NaN or infinite; mend them first")
    if len(values) % 2:
        return Photo(values, None, depth)
    return Photo(values[:-1].contiguous(), values[-1].contiguous(), depth)


def to_array(photo: Photo) -> np.ndarray:
    """Pixels as a file holds them: (H, W, C with alpha) of the image's depth."""
    parts = [photo.pixels] if photo.alpha is None else [photo.pixels, photo.alpha[None]]
    values = torch.cat([p.cpu() for p in parts]).movedim(0, -1).numpy()
    if photo.depth == "float32":
        return np.ascontiguousarray(values, np.float32)
    most = np.iinfo(photo.depth).max
    return np.round(np.clip(values.astype(np.float64), 0, 1) * most).astype(photo.depth)


def _encode(ending: str, photo: Photo) -> bytes:
    array = to_array(photo)
    if ending == ".png" and photo.depth == "uint16":
        return _encode_deep_png(array)
    buffer = io.BytesIO()
    if ending in TIFF:
        import tifffile

        colour = "rgb" if len(photo.pixels) == 3 else "minisblack"
        extra = {} if photo.alpha is None else {"extrasamples": ["unassalpha"]}
        whole = array if array.shape[-1] > 1 else array[..., 0]
        planes = {"planarconfig": "contig"} if whole.ndim == 3 else {}
        tifffile.imwrite(buffer, whole, photometric=colour, **planes, **extra)
        return buffer.getvalue()
    from PIL import Image

    image = Image.fromarray(array if array.shape[-1] > 1 else array[..., 0])
    if ending == ".png":
        image.save(buffer, "PNG")
    else:
        image.save(buffer, "JPEG", quality=95, subsampling=0)
    return buffer.getvalue()


def _encode_deep_png(array: np.ndarray) -> bytes:
    """A PNG of 16 bits a channel, which Pillow writes for grey images alone."""
    height, width, channels = array.shape
    rows = array.astype(">u2").reshape(height, -1).view(np.uint8)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)  # no filter
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOURS[channels], 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(lines.tobytes(), 6)), (b"IEND", b"")]
    framed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)
