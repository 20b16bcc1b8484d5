"""Denoising from file to file, with a picture of before and after."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import Tensor
from tqdm.auto import tqdm

from inference.checkpoint import write_atomically
from inference.denoise import add_noise, check_image, denoise, noise_level
from inference.devices import make_fabric
from inference.image_quality import WINDOW, psnr, ssim
from inference.images import Photo, check_format, read_photo, write_photo
from inference.plotting.images import side_by_side
from inference.progress import watched
from inference.report import png
from inference.splitting import Report
from ppl_models.errors import PplError

log = logging.getLogger(__name__)


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
        noisy_first: add noise of this scale before, as an experiment; the image is then its own
            reference, if no other (of the same scene, say taken with less noise) is given.
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
    given = None if sigma is None else _in_image_unit(sigma)
    check_outputs([out, picture], [photo, *([reference] if reference else []), *also_read])
    if picture.suffix.lower() != ".png":
        raise PplError(f"the picture is a PNG; {picture} has another ending")
    source = read_photo(photo)
    check_format(out, source)
    check_image(source.pixels)
    clean_image = read_photo(reference).pixels if reference else None
    if clean_image is not None:
        _check_reference(source.pixels, clean_image)
    noisy = source.pixels
    if noisy_first:
        if given is None:
            raise PplError("adding noise needs its scale: --sigma 25")
        clean_image = noisy if clean_image is None else clean_image
        noisy = add_noise(noisy, given, seed)
    level = noise_level(noisy, given)
    _tell_of_clipping(source)
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
        PplError: an output is an input, or its folder cannot be made or written to. Nothing is
            made here.
    """
    for output in outputs:
        if any(_is_same(output, path) for path in inputs):
            raise PplError(f"{output} is an input, which is never overwritten; name another")
        if output.is_dir():
            raise PplError(f"cannot write {output}: it is a folder")
        if outputs.count(output) > 1:
            raise PplError(f"{output} is to hold two images; name another")
        home = next(folder for folder in output.absolute().parents if folder.exists())
        if not home.is_dir():
            raise PplError(f"cannot write {output}: {home} is no folder")
        if not os.access(home, os.W_OK | os.X_OK):
            raise PplError(f"cannot write {output}: the folder {home} is read-only")


def _is_same(output: Path, path: Path) -> bool:
    """Whether writing the one would write over the other, links and names aside."""
    try:
        there = output.exists() and path.exists() and output.samefile(path)
    except OSError as error:  # such as a name that is too long
        raise PplError(f"cannot write {output}: {error.strerror or error}") from error
    return there or output.resolve() == path.resolve()


def _in_image_unit(sigma: float) -> float:
    """From grey levels of 0 to 255 to [0, 1]."""
    if not 0 < sigma <= 255:
        raise PplError(
            f"sigma, in grey levels of 0 to 255, must be above 0 and at most 255; got {sigma:g}"
        )
    if sigma < 1:
        log.warning(
            "sigma is in grey levels of 0 to 255; %g is next to no noise (in [0, 1] it would be "
            "--sigma %g)",
            sigma,
            255 * sigma,
        )
    return sigma / 255


def _check_reference(pixels: Tensor, reference: Tensor) -> None:
    kinds = {1: "grey", 3: "in colour"}
    ours, theirs = (
        f"{kinds[len(p)]}, {p.shape[2]}×{p.shape[1]} pixels" for p in (pixels, reference)
    )
    if pixels.shape != reference.shape:
        raise PplError(
            f"the reference is {theirs}, but the image {ours}; give one of the same size and "
            "colours"
        )


def _tell_of_clipping(source: Photo) -> None:
    outside = (source.pixels < 0) | (source.pixels > 1)
    if bool(outside.any()):
        log.warning(
            "%d float pixels are outside [0, 1], up to %.3g; the result is clipped to [0, 1]. If "
            "they are no noise, divide the image first",
            int(outside.count_nonzero()),
            float(source.pixels.max()),
        )


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
