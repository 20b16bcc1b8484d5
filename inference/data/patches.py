"""Random patches out of folders of images of any size, streamed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inference.data.files import IMAGE_ENDINGS, read_image
from ppl_models.errors import PplError


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
        raise PplError(
            f"no images ({', '.join(IMAGE_ENDINGS)}) in {', '.join(map(str, folders))}"
        )
    return found


class PatchStream:
    """Batches of random grey patches without their mean, out of image files of any size.

    Only the images of one batch are in memory. Batch ``t`` depends on ``seed`` and ``t`` alone,
    so a run goes on where it was. Pixels are dequantized: a byte stands for an interval, and
    without a draw from it flat patches would have no variance and the likelihood no bound.

    Args:
        paths: image files; images smaller than a patch are passed over.
        patch_size: P.
        images_per_batch: images that a batch is drawn from, in proportion to their patches.
        seed: of images, places and dequantization.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        patch_size: int = 8,
        images_per_batch: int = 40,
        seed: int = 0,
    ) -> None:
        self.patch_size = patch_size
        self.images_per_batch = images_per_batch
        self.seed = seed
        sides = [_size_of(path) for path in paths]
        places = np.array(
            [max(h - patch_size + 1, 0) * max(w - patch_size + 1, 0) for h, w in sides], float
        )
        if not places.any():
            raise PplError(f"none of {len(paths)} images is as large as a patch of {patch_size}")
        self.paths = [p for p, n in zip(paths, places, strict=True) if n]
        self._chance = places[places > 0] / places.sum()

    def batch(self, index: int, size: int) -> Tensor:
        """Batch ``index``: (size, P²) patches in grey levels of [0, 1], less their mean."""
        draw = np.random.default_rng([self.seed, index])
        count = min(self.images_per_batch, size)
        chosen = draw.choice(len(self._chance), size=count, p=self._chance)
        shares = np.full(count, size // count)
        shares[: size % count] += 1
        parts = [
            self._cut(read_image(self.paths[i], grey=True)[0].numpy(), n, draw)
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
        return windows[rows, columns].reshape(count, side * side).astype(np.float64)


def _size_of(path: Path) -> tuple[int, int]:
    from PIL import Image

    try:
        with Image.open(path) as image:  # reads the header alone
            return image.height, image.width
    except (OSError, SyntaxError, ValueError) as error:
        raise PplError(f"cannot read the image {path}: {error}") from error
