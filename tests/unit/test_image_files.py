"""Image files as others write them: rare layouts, profiles, broken files."""

from __future__ import annotations

import importlib.util
import io

import numpy as np
import pytest
import tifffile
from PIL import Image, ImageCms, PngImagePlugin

from inference.images import Photo, read_photo, to_array, write_photo
from ppl_models.errors import PplError

DRAW = np.random.default_rng(0)
GREY8 = DRAW.integers(0, 256, (12, 17), np.uint8)
GREY16 = DRAW.integers(0, 65536, (12, 17), np.uint16)
COLOUR8 = DRAW.integers(0, 256, (12, 17, 3), np.uint8)
COLOUR16 = DRAW.integers(0, 65536, (12, 17, 3), np.uint16)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def array_of(path) -> np.ndarray:
    return to_array(read_photo(path)).squeeze()


@pytest.mark.parametrize("levels", [GREY8, GREY16, GREY16 / np.float32(65535)])
def test_white_may_be_zero(tmp_path, levels):
    path = tmp_path / "white.tif"
    most = 1 if levels.dtype.kind == "f" else np.iinfo(levels.dtype).max
    tifffile.imwrite(path, most - levels, photometric="miniswhite")
    assert np.allclose(array_of(path), levels, atol=1e-6)


@pytest.mark.parametrize("turn", range(1, 9))
def test_deep_images_stand_upright_as_pillow_sets_them(tmp_path, turn):
    tags = Image.Exif()
    tags[274] = turn
    Image.fromarray(COLOUR8).save(tmp_path / "shallow.png", exif=tags)
    wide = COLOUR8.astype(np.uint16) * 257
    tifffile.imwrite(
        tmp_path / "deep.tif", wide, photometric="rgb", extratags=[(274, "H", 1, turn, True)]
    )
    expected = array_of(tmp_path / "shallow.png")
    assert np.array_equal(array_of(tmp_path / "deep.tif"), expected.astype(np.uint16) * 257)


@pytest.mark.parametrize(
    ("levels", "key"), [(GREY8, 7), (COLOUR8, (1, 2, 3)), (GREY16, 300), (COLOUR16, (1, 2, 300))]
)
def test_a_colour_may_stand_for_nothing(tmp_path, levels, key):
    """PNG's tRNS chunk is an alpha channel."""
    levels = levels.copy()
    levels[2:5, 3:9] = key
    path, bare = tmp_path / "key.png", tmp_path / "bare.png"
    photo = read_photo_of(levels, bare)
    chunk = np.atleast_1d(np.array(key, ">u2")).tobytes()
    content = bare.read_bytes()
    place = content.index(b"IDAT") - 4
    extra = io.BytesIO()
    PngImagePlugin.putchunk(extra, b"tRNS", chunk)
    path.write_bytes(content[:place] + extra.getvalue() + content[place:])
    found = read_photo(path)
    nothing = (levels.reshape(12, 17, -1) == np.atleast_1d(key)).all(-1)
    assert np.array_equal(found.alpha.numpy(), 1.0 - nothing)
    assert np.array_equal(found.pixels.numpy(), photo.pixels.numpy())
    assert found.depth == photo.depth


def read_photo_of(levels: np.ndarray, path) -> Photo:
    import torch

    depth = levels.dtype.name
    scale = {"uint8": 255, "uint16": 65535}[depth]
    pixels = torch.from_numpy((levels / scale).astype(np.float32)).reshape(12, 17, -1)
    write_photo(path, Photo(pixels.movedim(-1, 0), None, depth))
    return read_photo(path)


@pytest.mark.parametrize(
    ("ending", "levels"),
    [
        (".png", COLOUR8),
        (".jpg", COLOUR8),
        (".tif", COLOUR8),
        (".png", COLOUR16),
        (".tif", COLOUR16),
    ],
)
def test_the_colour_profile_goes_along(tmp_path, ending, levels):
    source, copy = tmp_path / "source.tif", tmp_path / f"copy{ending}"
    tifffile.imwrite(source, levels, photometric="rgb", iccprofile=SRGB)
    photo = read_photo(source)
    assert photo.icc == SRGB
    write_photo(copy, photo)
    assert read_photo(copy).icc == SRGB
    with Image.open(copy) as opened:  # another program finds it
        assert opened.info["icc_profile"] == SRGB


def test_a_profile_of_other_colours_stays_behind(tmp_path):
    Image.fromarray(GREY8).save(tmp_path / "grey.png", icc_profile=SRGB)
    assert read_photo(tmp_path / "grey.png").icc is None


def test_modes_of_pillow(tmp_path):
    shapes = {"1": 1, "L": 1, "LA": 1, "P": 3, "RGB": 3, "RGBA": 3, "CMYK": 3, "YCbCr": 3}
    for mode, channels in shapes.items():
        ending = "tif" if mode in ("CMYK", "YCbCr") else "png"
        path = tmp_path / f"{mode}.{ending}"
        Image.fromarray(COLOUR8).convert(mode).save(path)
        photo = read_photo(path)
        assert photo.pixels.shape == (channels, 12, 17), mode
        assert (photo.alpha is None) == (mode not in ("LA", "RGBA")), mode


def test_a_wrong_ending_is_read_by_content(tmp_path):
    Image.fromarray(GREY8).save(tmp_path / "png.tif", "PNG")
    assert np.array_equal(array_of(tmp_path / "png.tif"), GREY8)
    tifffile.imwrite(tmp_path / "tif.png", GREY16)
    assert np.array_equal(array_of(tmp_path / "tif.png"), GREY16)


@pytest.mark.parametrize(
    "options",
    [
        {"byteorder": ">", "bigtiff": True},
        {"compression": "zlib", "predictor": True},
        {"planarconfig": "separate"},
    ],
)
def test_layouts_of_deep_tiffs(tmp_path, options):
    levels = COLOUR16
    if "planarconfig" in options:
        levels = np.moveaxis(levels, -1, 0)
    tifffile.imwrite(tmp_path / "x.tif", levels, photometric="rgb", **options)
    assert np.array_equal(array_of(tmp_path / "x.tif"), COLOUR16)


def test_what_is_not_read_is_refused_by_name(tmp_path):
    pages = np.stack([GREY16, GREY16, GREY16])
    cases = {
        "holds 3 images": lambda p: tifffile.imwrite(p, pages, photometric="minisblack"),
        "pixels of type int32": lambda p: tifffile.imwrite(p, GREY16.astype(np.int32)),
        "colours are SEPARATED": lambda p: tifffile.imwrite(
            p, np.concatenate([COLOUR16, COLOUR16[..., :1]], -1), photometric="separated"
        ),
        "multiplied by alpha": lambda p: tifffile.imwrite(
            p,
            np.concatenate([COLOUR16, COLOUR16[..., :1]], -1),
            photometric="rgb",
            extrasamples=["assocalpha"],
        ),
    }
    if importlib.util.find_spec("imagecodecs") is None:
        cases["LZW compression of 16 bits .* pip install imagecodecs"] = lambda p: Image.fromarray(
            GREY16
        ).save(p, compression="tiff_lzw")
    for message, write in cases.items():
        write(tmp_path / "x.tif")
        with pytest.raises(PplError, match=message):
            read_photo(tmp_path / "x.tif")
    Image.fromarray(GREY8).save(
        tmp_path / "two.tif", save_all=True, append_images=[Image.fromarray(GREY8)]
    )
    with pytest.raises(PplError, match="holds 2 images"):
        read_photo(tmp_path / "two.tif")


def test_a_thumbnail_beside_the_image_is_passed_over(tmp_path):
    with tifffile.TiffWriter(tmp_path / "x.tif") as file:
        file.write(GREY16, photometric="minisblack")
        file.write(GREY16[::4, ::4], photometric="minisblack", subfiletype=1)
    assert np.array_equal(array_of(tmp_path / "x.tif"), GREY16)


@pytest.mark.parametrize("name", ["deep.tif", "shallow.tif", "deep.png", "shallow.png", "x.jpg"])
def test_files_cut_anywhere_are_refused_by_message(tmp_path, name):
    levels = COLOUR16 if "deep" in name else COLOUR8
    path = tmp_path / name
    if name.endswith("tif"):
        tifffile.imwrite(path, levels, photometric="rgb")
    elif "deep" in name:
        read_photo_of(levels, path)
    else:
        Image.fromarray(levels).save(path)
    content = path.read_bytes()
    for length in (0, 1, 3, 6, 20, 30, 100, len(content) // 2, len(content) - 90):
        path.write_bytes(content[:length])
        with pytest.raises(PplError, match=r"cannot read .* as an image"):
            read_photo(path)
