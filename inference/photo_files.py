"""Denoising from file to file, with a picture of before and after."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from inference.checkpoint import write_atomically
from inference.denoise import add_noise, check_image, denoise
from inference.devices import make_fabric
from inference.image_quality import WINDOW, estimate_noise, psnr, ssim
from inference.images import check_format, read_photo, write_photo
from inference.plotting.images import side_by_side
from inference.progress import watched
from inference.report import png
from inference.splitting import Report
from ppl_models.errors import PplError


def denoise_file(
    make_program: Callable[[float], Any],
    photo: Path,
    out: Path,
    *,
    sigma: float | None,
    noisy_first: bool = False,
    reference: Path | None = None,
    also_read: Sequence[Path] = (),
    picture: Path | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: bool | None = None,
    **options: Any,
) -> dict[str, Any]:
    """Denoise an image file.

    Args:
        make_program: from a noise scale to a restoration program.
        photo: the image; never written to.
        out: the denoised image, of the same depth, with the same alpha.
        sigma: noise scale in grey levels of 0 to 255; estimated when left out.
        noisy_first: add noise of this scale before, as an experiment; the image itself is then
            the reference, if there is no other.
        reference: a clean image to compare with.
        also_read: other files that must not be written over.
        picture: noisy, denoised and reference side by side; OUT_comparison.png when left out.
        device: ``auto``, ``cpu`` or ``cuda``.
        seed: of the added noise.
        progress: show a bar; when left out, if somebody is looking.
        **options: of :func:`inference.denoise.denoise`.

    Returns:
        Noise scale, PSNR and SSIM, and the files.

    Raises:
        PplError: what was asked for is impossible; nothing has been written.
    """
    picture = picture or out.with_name(f"{out.stem}_comparison.png")
    check_outputs([out, picture], [photo, *([reference] if reference else []), *also_read])
    if picture.suffix.lower() != ".png":
        raise PplError(f"the picture is a PNG; {picture} has another ending")
    if sigma is not None and not (math.isfinite(sigma) and sigma > 0):
        raise PplError(f"sigma, in grey levels of 0 to 255, must be above 0; got {sigma:g}")
    source = read_photo(photo)
    check_format(out, source)
    check_image(source.pixels)
    clean_image = read_photo(reference).pixels if reference else None
    if noisy_first:
        if sigma is None:
            raise PplError("adding noise needs its scale: --sigma 25")
        clean_image = source.pixels if clean_image is None else clean_image
        noisy = add_noise(source.pixels, sigma / 255, seed)
    else:
        noisy = source.pixels
    if clean_image is not None:
        psnr(noisy, clean_image)  # of the same size, or this says so before the work
    level = estimate_noise(noisy) if sigma is None else sigma / 255
    placed = noisy.to(make_fabric(device).device)
    with _bar(progress) as report:
        denoised = denoise(make_program, placed, level, callback=report, **options).cpu()
    write_photo(out, source.with_pixels(denoised))
    views = {"noisy": noisy, "denoised": denoised}
    views |= {} if clean_image is None else {"reference": clean_image}
    write_atomically(picture, png(side_by_side({k: v.numpy() for k, v in views.items()})))
    found: dict[str, Any] = {"sigma": 255 * level, "sigma_estimated": sigma is None}
    if clean_image is not None:
        found |= _scores(noisy, denoised, clean_image)
    return found | {"file": str(out), "picture": str(picture)}


def check_outputs(outputs: list[Path], inputs: list[Path]) -> None:
    """Refuse to write over what is read, or into what cannot be written to.

    Raises:
        PplError: an output is an input, or its folder cannot be made or written to.
    """
    for output in outputs:
        for path in inputs:
            if output.resolve() == path.resolve() or (
                output.exists() and path.exists() and output.samefile(path)
            ):
                raise PplError(f"{output} is an input, which is never overwritten; name another")
        if output.is_dir():
            raise PplError(f"cannot write {output}: it is a folder")
        if outputs.count(output) > 1:
            raise PplError(f"{output} is to hold two images; name another")
        try:
            output.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PplError(f"cannot write {output}: {error.strerror or error}") from error
        if not os.access(output.parent, os.W_OK):
            raise PplError(f"cannot write {output}: its folder is read-only")


def _scores(noisy: Tensor, denoised: Tensor, reference: Tensor) -> dict[str, float]:
    found = {"psnr_noisy": psnr(noisy, reference), "psnr": psnr(denoised, reference)}
    if min(reference.shape[-2:]) >= WINDOW:
        found |= {"ssim_noisy": ssim(noisy, reference), "ssim": ssim(denoised, reference)}
    return found


@contextmanager
def _bar(progress: bool | None) -> Iterator[Report]:
    shown = watched() if progress is None else progress
    layout = "denoising {percentage:3.0f}%|{bar}| {elapsed}<{remaining}"
    with tqdm(total=1.0, disable=not shown, bar_format=layout) as bar:

        def advance(share: float) -> None:
            bar.update(min(share, 1.0 - bar.n))  # shares are rounded

        yield advance
