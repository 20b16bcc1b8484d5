"""Image files: depth, channels and alpha kept; quality measures; refusals."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from patch_helpers import smooth_images

from inference.image_quality import estimate_noise, psnr, ssim
from inference.images import Photo, read_photo, to_array, write_photo
from ppl_models.errors import PplError

KINDS = [
    (ending, depth, channels, alpha)
    for (ending, depths), channels, alpha in itertools.product(
        {
            ".png": ("uint8", "uint16"),
            ".tif": ("uint8", "uint16", "float32"),
            ".jpg": ("uint8",),
        }.items(),
        (1, 3),
        (False, True),
    )
    for depth in depths
    if not (ending == ".jpg" and alpha)
]


def photo(depth: str = "uint8", channels: int = 3, alpha: bool = False) -> Photo:
    pixels = smooth_images(channels, 24, 31)
    return Photo(pixels, smooth_images(1, 24, 31, seed=5)[0] if alpha else None, depth)


@pytest.mark.parametrize(("ending", "depth", "channels", "alpha"), KINDS)
def test_files_keep_depth_channels_and_alpha(tmp_path, ending, depth, channels, alpha):
    path, image = tmp_path / f"image{ending}", photo(depth, channels, alpha)
    write_photo(path, image)
    found = read_photo(path)
    assert found.depth == depth
    assert found.pixels.shape == image.pixels.shape
    step = {"uint8": 1 / 255, "uint16": 1 / 65535, "float32": 0.0}[depth]
    error = 10 / 255 if ending == ".jpg" else 0.51 * step + 1e-6
    assert float((found.pixels - image.pixels).abs().max()) < error
    assert (found.alpha is None) == (not alpha)
    if alpha:
        assert float((found.alpha - image.alpha).abs().max()) < error
        write_photo(tmp_path / f"again{ending}", found)
        assert torch.equal(read_photo(tmp_path / f"again{ending}").alpha, found.alpha)


def test_other_programs_read_what_is_written(tmp_path):
    from PIL import Image

    image = photo("uint16", 1)
    write_photo(tmp_path / "grey.png", image)
    with Image.open(tmp_path / "grey.png") as opened:
        assert np.array_equal(np.array(opened, np.uint16), to_array(image)[..., 0])


def test_a_photograph_stands_upright(tmp_path):
    from PIL import Image

    array = np.zeros((10, 20, 3), np.uint8)
    array[:, :5] = 255
    tags = Image.Exif()
    tags[274] = 6  # turned by the camera
    Image.fromarray(array).save(tmp_path / "turned.png", exif=tags)
    found = read_photo(tmp_path / "turned.png").pixels
    assert found.shape == (3, 20, 10)
    assert bool((found[:, :5] == 1).all())


def test_a_palette_is_read_as_colour(tmp_path):
    from PIL import Image

    Image.fromarray(to_array(photo())).convert("P").save(tmp_path / "palette.png")
    assert read_photo(tmp_path / "palette.png").pixels.shape == (3, 24, 31)


def test_refusals(tmp_path):
    import tifffile

    with pytest.raises(PplError, match="there is no image"):
        read_photo(tmp_path / "none.png")
    for name in ("text.png", "text.tif"):
        (tmp_path / name).write_text("no image")
        with pytest.raises(PplError, match=r"cannot read .* as an image"):
            read_photo(tmp_path / name)
    bad = np.zeros((9, 9), np.float32)
    bad[2, 3] = np.nan
    tifffile.imwrite(tmp_path / "nan.tif", bad)
    with pytest.raises(PplError, match="1 pixels are NaN or infinite"):
        read_photo(tmp_path / "nan.tif")
    tifffile.imwrite(tmp_path / "volume.tif", np.zeros((5, 9, 7, 8), np.uint16))
    with pytest.raises(PplError, match="holds 45 images"):
        read_photo(tmp_path / "volume.tif")
    for name, kind in {"a.bmp": "uint8", "a.jpg": "uint16", "a.png": "float32"}.items():
        with pytest.raises(PplError, match=r"must end in one of|holds"):
            write_photo(tmp_path / name, photo(kind))
        assert not (tmp_path / name).exists()
    with pytest.raises(PplError, match="holds 8 bits without alpha"):
        write_photo(tmp_path / "a.jpg", photo(alpha=True))


def test_psnr():
    image = torch.zeros(1, 4, 4)
    assert psnr(image, image + 0.1) == pytest.approx(20.0, abs=1e-4)
    assert psnr(image, image) == float("inf")
    with pytest.raises(PplError, match="give one of the same size"):
        psnr(image, torch.zeros(1, 4, 5))


def test_ssim():
    image = smooth_images(1, 40, 50)
    assert ssim(image, image) == pytest.approx(1.0)
    assert ssim(image, image + 0.1 * torch.randn(image.shape)) < 0.8
    with pytest.raises(PplError, match="SSIM needs 11×11 pixels"):
        ssim(image[..., :9], image[..., :9])


def test_ssim_is_scikit_images():
    metrics = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed")
    image = smooth_images(3, 40, 50)
    noisy = image + 0.05 * torch.randn(image.shape)
    expected = metrics.structural_similarity(
        image.numpy(),
        noisy.numpy(),
        channel_axis=0,
        data_range=1.0,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert ssim(noisy, image) == pytest.approx(float(expected), abs=1e-4)


@pytest.mark.parametrize("sigma", [2 / 255, 10 / 255, 50 / 255])
def test_the_noise_is_estimated(sigma):
    """128 × 128 pixels, 4,096 coefficients: the median's own error is about 2 %."""
    image = smooth_images(1, 128, 128)
    found = estimate_noise(image + sigma * torch.randn(image.shape))
    assert found == pytest.approx(sigma, rel=0.1)


def test_edges_are_not_taken_for_noise():
    image = torch.zeros(1, 128, 128)
    image[:, 30:90, 50:] = 1.0
    assert estimate_noise(image + 0.02 * torch.randn(image.shape)) == pytest.approx(0.02, rel=0.1)
