"""Random patches out of folders of images of any size, streamed."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from inference.data.files import IMAGE_ENDINGS, read_image
from ppl_models.errors import PplError

log = logging.getLogger(__name__)

MOST_BYTES = 512 * 1024**2
"""Of decoded images that are kept in memory."""

PHOTOGRAPHS = (
    "astronaut.png",
    "brick.png",
    "camera.png",
    "chelsea.png",
    "coins.png",
    "grass.png",
    "gravel.png",
    "moon.png",
    "motorcycle_left.png",
    "rocket.jpg",
)
"""Photographs in scikit-image's own package, public domain or CC0; coffee.png is held out."""


def photograph_paths() -> list[Path]:
    """The freely licensed photographs that come with scikit-image and scikit-learn.

    Those that the installed versions lack are told by a warning: a prior of fewer photographs is
    another one.

    Raises:
        PplError: scikit-image is not installed.
    """
    found = []
    for package in ("skimage", "sklearn"):
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise PplError("the photographs come with scikit-image: pip install scikit-image")
        home = Path(spec.origin).parent
        found += (
            [home / "data" / name for name in PHOTOGRAPHS]
            if package == "skimage"
            else sorted((home / "datasets" / "images").glob("*.jpg"))
        )
    lacking = [path.name for path in found if not path.is_file()]
    if lacking:
        log.warning(
            "the installed scikit-image lacks %d of %d photographs (%s): the prior is learned "
            "from the others",
            len(lacking),
            len(found),
            ", ".join(lacking),
        )
    return [path for path in found if path.is_file()]


def image_paths(folders: Sequence[str | Path]) -> list[Path]:
    """The image files in these folders and below, in a fixed order; files stand for themselves.

    Raises:
        PplError: there are none.
    """
    found: list[Path] = []
    for folder in map(Path, folders):
        inside = sorted(folder.rglob("*")) if folder.is_dir() else [folder]
        found += [p for p in inside if p.is_file() and p.suffix.lower() in IMAGE_ENDINGS]
    if not found:
        raise PplError(f"no images ({', '.join(IMAGE_ENDINGS)}) in {', '.join(map(str, folders))}")
    return found


class PatchStream:
    """Batches of random grey patches without their mean, out of image files of any size.

    Only a few images are in memory. Batch ``t`` depends on ``seed`` and ``t`` alone,
    so a run goes on where it was. Pixels are dequantized: a byte stands for an interval, and
    without a draw from it flat patches would have no variance and the likelihood no bound.

    Args:
        paths: image files; images smaller than a patch are passed over.
        patch_size: P.
        images_per_batch: images that a batch is drawn from, in proportion to their patches.
        scales: sizes, one drawn for each image of a batch, at which it is seen: 0.5 is half.
        mirrored: turn and mirror patches at random; for few images, whose lines run one way.
        seed: of images, places and dequantization.

    Raises:
        PplError: no image is as large as a patch, or a file is no image.
    """

    def __init__(
        self,
        paths: Iterable[Path],
        patch_size: int = 8,
        images_per_batch: int = 40,
        scales: Sequence[float] = (1.0,),
        mirrored: bool = False,
        seed: int = 0,
    ) -> None:
        self.patch_size = patch_size
        self.images_per_batch = images_per_batch
        self.scales = tuple(scales)
        self.mirrored = mirrored
        self.seed = seed
        paths = list(paths)
        least = patch_size / min(self.scales) + 1  # what remains a patch at the smallest scale
        sides = [_size_of(path) for path in paths]
        places = np.array([h * w if min(h, w) >= least else 0 for h, w in sides], float)
        if not places.any():
            raise PplError(f"none of {len(paths)} images is as large as a patch of {patch_size}")
        self.paths = [p for p, n in zip(paths, places, strict=True) if n]
        if len(self.paths) < len(paths):
            small = [p.name for p, n in zip(paths, places, strict=True) if not n]
            log.warning(
                "%d of %d images are smaller than a patch of %d and are passed over (%s)",
                len(small),
                len(paths),
                patch_size,
                ", ".join(small[:5]) + (", ..." if len(small) > 5 else ""),
            )
        self._chance = places[places > 0] / places.sum()
        self._seen: dict[tuple[Path, float], np.ndarray] = {}
        self._bytes = 0

    def batch(self, index: int, size: int) -> Tensor:
        """Batch ``index``: (size, P²) patches in grey levels of [0, 1], less their mean."""
        draw = np.random.default_rng([self.seed, index])
        count = min(self.images_per_batch, size)
        chosen = draw.choice(len(self._chance), size=count, p=self._chance)
        shares = np.full(count, size // count)
        shares[: size % count] += 1
        parts = [
            self._cut(self._image(self.paths[i], draw.choice(self.scales)), n, draw)
            for i, n in zip(chosen, shares, strict=True)
        ]
        patches = np.concatenate(parts)
        patches += draw.uniform(-0.5 / 255, 0.5 / 255, patches.shape)
        return torch.from_numpy(patches - patches.mean(-1, keepdims=True)).float()

    def _cut(self, image: np.ndarray, count: int, draw: np.random.Generator) -> np.ndarray:
        side = self.patch_size
        windows = np.lib.stride_tricks.sliding_window_view(image, (side, side))
        rows = draw.integers(windows.shape[0], size=count)
        columns = draw.integers(windows.shape[1], size=count)
        patches = windows[rows, columns].astype(np.float64)
        if self.mirrored:
            flip = draw.integers(2, size=3)
            patches = patches[:, :: 1 - 2 * flip[0], :: 1 - 2 * flip[1]]
            patches = patches.swapaxes(1, 2) if flip[2] else patches
        return patches.reshape(count, side * side)

    def _image(self, path: Path, scale: float) -> np.ndarray:
        """The grey image (H, W); the first ones are kept."""
        if (path, scale) in self._seen:
            return self._seen[path, scale]
        image = read_image(path, grey=True)
        if scale != 1:
            size = [round(scale * side) for side in image.shape[-2:]]
            image = interpolate(image[None], size, mode="bilinear", antialias=True)[0]
        pixels = image[0].numpy()
        if self._bytes + pixels.nbytes <= MOST_BYTES:
            self._seen[path, scale] = pixels
            self._bytes += pixels.nbytes
        return pixels


def _size_of(path: Path) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(path) as image:  # reads the header alone
            return image.height, image.width
    except (OSError, SyntaxError, ValueError) as error:
        raise PplError(f"cannot read the image {path}: {error}") from error
