"""PNG, JPEG and TIFF to arrays and back: Pillow where it keeps every bit, others where not.

Shapes: H W image, C channels: grey, grey and alpha, colour, colour and alpha.
"""

from __future__ import annotations

import io
import logging
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from ppl_models.errors import PplError

log = logging.getLogger(__name__)

TIFF = (".tif", ".tiff")
ENDINGS = (".png", ".jpg", ".jpeg", *TIFF)
PNG_COLOURS = {1: 0, 2: 4, 3: 2, 4: 6}
"""PNG's colour types by the number of channels."""

WITH_ALPHA = {"L": "LA", "RGB": "RGBA", "P": "RGBA"}
"""Pillow's modes once the colour that stands for nothing is a channel of its own."""

GREY_OR_COLOUR = (0, 1, 2)
"""TIFF's photometric interpretations: white is zero, black is zero, RGB."""

UPRIGHT = {
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.swapaxes(0, 1),
    6: lambda a: a.swapaxes(0, 1)[:, ::-1],
    7: lambda a: a[::-1, ::-1].swapaxes(0, 1),
    8: lambda a: a.swapaxes(0, 1)[::-1],
}
"""What sets an image upright, by its orientation tag."""

Decoded = tuple[np.ndarray, bytes | None]
"""Pixels (H, W) or (H, W, C) as the file has them, upright, and the colour profile."""


def decode(path: Path) -> Decoded:
    """Read an image file.

    Raises:
        PplError: several images in it, or colours that are not read at this depth.
        Exception: what the decoders raise at a broken file.
    """
    from PIL import Image

    with warnings.catch_warnings():  # of photographs with many pixels, of EXIF that is broken
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.simplefilter("ignore", UserWarning)
        if _is_deep_tiff(path):
            array, icc = _decode_deep_tiff(path)
        elif _is_deep_png(path):
            array, icc = _decode_deep_png(path)
        else:
            array, icc = _decode_by_pillow(path)
    space = {1: b"GRAY", 2: b"GRAY", 3: b"RGB ", 4: b"RGB "}.get(_channels(array))
    return array, icc if icc and icc[16:20] == space else None


def encode(ending: str, array: np.ndarray, icc: bytes | None) -> bytes:
    """The content of an image file.

    Args:
        ending: of its name, one of ``ENDINGS``.
        array: (H, W, C), of a type that the format has.
        icc: colour profile.
    """
    whole = array if array.shape[-1] > 1 else array[..., 0]
    buffer = io.BytesIO()
    if ending in TIFF:
        import tifffile

        colour = "rgb" if array.shape[-1] > 2 else "minisblack"
        extra: dict[str, Any] = {"planarconfig": "contig"} if whole.ndim == 3 else {}
        if array.shape[-1] in (2, 4):
            extra["extrasamples"] = ["unassalpha"]
        tifffile.imwrite(buffer, whole, photometric=colour, iccprofile=icc, **extra)
        return buffer.getvalue()
    if ending == ".png" and array.dtype == np.uint16:
        return _encode_deep_png(array, icc)
    from PIL import Image

    if ending == ".png":
        Image.fromarray(whole).save(buffer, "PNG", icc_profile=icc)
    else:
        Image.fromarray(whole).save(buffer, "JPEG", quality=95, subsampling=0, icc_profile=icc)
    return buffer.getvalue()


def _channels(array: np.ndarray) -> int:
    return array.shape[-1] if array.ndim == 3 else 1


def _decode_by_pillow(path: Path) -> Decoded:
    from PIL import Image, ImageOps

    with Image.open(path) as opened:
        if opened.format == "TIFF" and getattr(opened, "n_frames", 1) > 1:
            raise _of_several_images(path, opened.n_frames)  # type: ignore[attr-defined]
        key, icc = opened.info.get("transparency"), opened.info.get("icc_profile")
        image = ImageOps.exif_transpose(opened)  # upright, as the camera says
        if image.mode == "1":
            image = image.convert("L")
        if key is not None and image.mode in WITH_ALPHA:
            image = image.convert(WITH_ALPHA[image.mode])
        elif image.mode in ("La", "PA", "RGBa"):
            image = image.convert("LA" if image.mode == "La" else "RGBA")
        elif image.mode not in ("L", "LA", "RGB", "RGBA", "F") and image.mode[0] != "I":
            if image.mode == "CMYK":
                log.warning("%s: CMYK is turned into RGB without its colour profile", path)
            image = image.convert("RGB")
        array = np.array(image)
    if array.dtype == np.int32 and array.min() >= 0 and array.max() <= 65535:
        array = array.astype(np.uint16)  # as older versions of Pillow read grey PNGs of 16 bits
    if array.dtype == np.uint16 and isinstance(key, int):
        array = np.stack([array, np.where(array == key, 0, 65535).astype(np.uint16)], -1)
    return array, icc


def _of_several_images(path: Path, count: int) -> PplError:
    return PplError(
        f"{path} holds {count} images; write the one that you mean to a file of its own"
    )


def _is_deep_tiff(path: Path) -> bool:
    """Whether Pillow cannot read it whole: more than 8 bits a channel, or a rarer layout."""
    from PIL import Image, UnidentifiedImageError

    with open(path, "rb") as file:
        if file.read(4) not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return False
    try:
        with Image.open(path) as image:
            bits = image.tag_v2.get(258, (8,))  # type: ignore[attr-defined]
    except UnidentifiedImageError:
        return True
    return max(bits) > 8


def _decode_deep_tiff(path: Path) -> Decoded:
    import tifffile

    with tifffile.TiffFile(path) as file:
        whole: list[Any] = [page for page in file.pages if not page.is_reduced]
        if len(whole) != 1:
            raise _of_several_images(path, len(whole))
        page = whole[0]
        if page.photometric not in GREY_OR_COLOUR:
            raise PplError(
                f"{path}: colours are {page.photometric.name} at {page.bitspersample} bits; "
                "save it in RGB or grey"
            )
        if 1 in page.extrasamples:
            raise PplError(f"{path}: colours are multiplied by alpha; save it with straight alpha")
        array = _pixels_of(page, path)
        if array.ndim == 3 and page.planarconfig == 2:  # (C, H, W)
            array = np.moveaxis(array, 0, -1)
        if page.photometric == 0:  # white is zero
            array = np.iinfo(array.dtype).max - array if array.dtype.kind == "u" else 1 - array
        turn, icc = page.tags.valueof(274, default=1), page.tags.valueof(34675)
    array = UPRIGHT[turn](array) if turn in UPRIGHT else array
    return np.ascontiguousarray(array), icc


def _pixels_of(page: Any, path: Path) -> np.ndarray:
    try:
        return page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        raise PplError(
            f"{path}: {page.compression.name} compression of {page.bitspersample} bits is read by "
            "another package: pip install imagecodecs; or save it uncompressed or with Deflate"
        ) from error


def _is_deep_png(path: Path) -> bool:
    """Whether it is a PNG of 16 bits with more channels than grey, of which Pillow keeps 8."""
    with open(path, "rb") as file:
        head = file.read(26)
    return len(head) == 26 and head[:8] == b"\x89PNG\r\n\x1a\n" and head[24] == 16 and head[25] != 0


def _decode_deep_png(path: Path) -> Decoded:
    import torch
    from PIL import Image
    from torchvision.io import ImageReadMode, decode_image

    content = torch.frombuffer(bytearray(path.read_bytes()), dtype=torch.uint8)
    with warnings.catch_warnings():  # torchvision announces that another package will do this
        warnings.simplefilter("ignore")
        array = decode_image(content, ImageReadMode.UNCHANGED).movedim(0, -1).numpy()
    with Image.open(path) as image:
        turn, icc = image.getexif().get(274, 1), image.info.get("icc_profile")
        key = image.info.get("transparency")
    if array.shape[-1] == 3 and isinstance(key, tuple):
        opaque = (array != np.array(key, array.dtype)).any(-1, keepdims=True)
        array = np.concatenate([array, 65535 * opaque.astype(np.uint16)], -1)
    return UPRIGHT[turn](array) if turn in UPRIGHT else array, icc


def _encode_deep_png(array: np.ndarray, icc: bytes | None) -> bytes:
    """A PNG of 16 bits a channel, which Pillow writes for grey images alone."""
    height, width, channels = array.shape
    rows = array.astype(">u2").reshape(height, -1).view(np.uint8)
    lines = np.concatenate([np.zeros((height, 1), np.uint8), rows], axis=1)  # no filter
    header = struct.pack(">IIBBBBB", width, height, 16, PNG_COLOURS[channels], 0, 0, 0)
    profile = [] if icc is None else [(b"iCCP", b"ICC profile\0\0" + zlib.compress(icc))]
    chunks = [
        (b"IHDR", header),
        *profile,
        (b"IDAT", zlib.compress(lines.tobytes(), 6)),
        (b"IEND", b""),
    ]
    framed = [
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in chunks
    ]
    return b"\x89PNG\r\n\x1a\n" + b"".join(framed)
