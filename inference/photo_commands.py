"""What ``ppl denoise`` and ``ppl train_prior`` do: functions that return what is to be printed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from inference.data.patches import PatchStream, image_paths, photograph_paths
from inference.denoise import NUM_PAIRS, STRIDE
from inference.photo_files import check_outputs, denoise_file
from inference.prior_training import train_on_patches
from ppl_models.epll import EPLL
from ppl_models.patch_learning import PatchLearner
from ppl_models.patch_prior import PatchPrior

Numbers = dict[str, Any]


def denoise_photo(
    photo: str,
    *,
    out: str,
    sigma: float | None = None,
    add_noise: bool = False,
    reference: str | None = None,
    prior: str | None = None,
    method: str = "splitting",
    colour: str = "luminance",
    stride: int = STRIDE,
    num_pairs: int | None = NUM_PAIRS,
    picture: str | None = None,
    device: str = "auto",
    seed: int = 0,
    progress: bool | None = None,
) -> Numbers:
    """Take white noise off a photograph (PNG, JPEG or TIFF; 8 or 16 bits or floats).

    Args:
        photo: the image; it is never written to.
        out: the denoised image.
        sigma: noise scale in grey levels of 0 to 255, whatever the depth; estimated when left out.
        add_noise: add noise of this scale first, and compare with --reference, or without one
            with the photograph as it was.
        reference: a clean image of the same size and colours to compare with: PSNR and SSIM.
        prior: .safetensors of `ppl train_prior`, or GS .mat; the shipped one when left out.
        method: splitting, or gradient.
        colour: luminance (and colour differences), or channels.
        stride: pixels between patches; 1 takes every patch.
        num_pairs: coordinates that choose a patch's component with covariances; null for all;
            for splitting.
        picture: noisy, denoised, reference side by side; OUT_comparison.png when left out.
        device: auto, cpu or cuda.
        seed: of the added noise.
        progress: show a bar; when left out, if somebody is looking.

    The result has the photograph's depth, alpha and colour profile, stands upright, and is clipped
    to what the depth can hold, floats to [0, 1].
    """
    return denoise_file(
        EPLL.denoiser(PatchPrior.load(prior) if prior else None),
        Path(photo),
        Path(out),
        sigma=sigma,
        noisy_first=add_noise,
        reference=Path(reference) if reference else None,
        also_read=[Path(prior)] if prior else [],
        picture=Path(picture) if picture else None,
        device=device,
        seed=seed,
        progress=progress,
        method=method,
        colour=colour,
        stride=stride,
        num_pairs=num_pairs,
    )


def train_prior(
    images: str,
    *,
    out: str,
    num_components: int = 200,
    num_patches: int = 20_000_000,
    batch_size: int = 20_000,
    mirrored: bool = False,
    half_size: bool = False,
    half_precision: bool = False,
    seed: int = 0,
    progress: bool | None = None,
) -> Numbers:
    """Learn a patch prior from photographs; goes on where it was stopped.

    Args:
        images: folder of images of any size; `photographs`: those of scikit-image, scikit-learn.
        out: .safetensors file; OUT.checkpoint beside it holds the run.
        num_components: of the mixture.
        num_patches: random patches to learn from, a stream.
        batch_size: patches a step.
        mirrored: turn and mirror patches at random.
        half_size: see images at half their size as well.
        half_precision: write eigenvectors in float16.
        seed: of patches and start.
        progress: show a bar; when left out, if somebody is looking.
    """
    path = Path(out)
    files = photograph_paths() if images == "photographs" else image_paths([images])
    check_outputs([path], files)
    scales = (1.0, 0.5) if half_size else (1.0,)
    stream = PatchStream(files, scales=scales, mirrored=mirrored, seed=seed)
    named = {"images": len(stream.paths), "num_components": num_components, "seed": seed}
    found, state = train_on_patches(
        PatchLearner(num_components, seed=seed),
        stream,
        num_patches=num_patches,
        batch_size=batch_size,
        checkpoint=path.with_name(f"{path.name}.checkpoint"),
        settings=named | {"batch_size": batch_size, "mirrored": mirrored, "half": half_size},
        progress=progress,
    )
    found.prior().save(path, torch.float16 if half_precision else torch.float32)
    late = state.history[-50:]
    return named | {"steps": state.step, "log_density": sum(late) / len(late), "file": out}
