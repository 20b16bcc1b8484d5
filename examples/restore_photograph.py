"""What can a prior of 8×8 patches do for a photograph, and does its mode make a good picture?

Denoises a crop of a photograph in three ways (half-quadratic splitting; five annealed gradient
steps through Pyro; the plain posterior by Adam), then fills holes and takes off a known
blur with the same prior. Prints PSNR and draws it all:

    python examples/restore_photograph.py [--photo FILE] [--steps 80] [--out restored]

Without a file, the photograph is scikit-image's coffee.png, which the shipped prior has not seen;
without scikit-image, scikit-learn's china.jpg, which it has.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import torch
from torch import Tensor

from inference import anneal, map_estimate, split_half_quadratic
from inference.denoise import add_noise
from inference.image_quality import psnr
from inference.images import read_photo
from inference.plotting import mode_search, side_by_side
from ppl_models.epll import EPLL
from ppl_models.observations import Blurred, Masked, Noise
from ppl_models.patch_prior import PatchPrior

SIGMA = 25 / 255


def held_out_photograph() -> Path:
    """A photograph of an installed package."""
    for package, place in (
        ("skimage", "data/coffee.png"),
        ("sklearn", "datasets/images/china.jpg"),
    ):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.origin is not None:
            return Path(spec.origin).parent / place
    raise SystemExit("give a photograph: --photo FILE")


def plain_posterior(prior: PatchPrior, noisy: Tensor, clean: Tensor, steps: int) -> tuple:
    """The mode of the posterior as it stands: smoothing 0, Adam from the noisy image."""
    program, scores = EPLL(prior, Noise(SIGMA), stride=2), []
    found = map_estimate(
        program,
        noisy,
        init={"clean": noisy},
        learning_rate=0.005,
        max_steps=steps,
        tolerance=0,
        callback=lambda step, log_joint, values: scores.append(psnr(values["clean"], clean)),
    )
    return found.values["clean"], found.trajectory, scores


def denoise(prior: PatchPrior, clean: Tensor, steps: int, out: Path) -> None:
    noisy = add_noise(clean, SIGMA)
    program = EPLL(prior, Noise(SIGMA), stride=2)
    plain, trajectory, scores = plain_posterior(prior, noisy, clean, steps)
    views = {
        "noisy": noisy,
        "plain posterior": plain,
        "annealed, five gradient steps": anneal(program, noisy),
        "splitting": split_half_quadratic(program, noisy),
        "reference": clean,
    }
    draw(views, clean, out / "epll_denoising.png")
    levels = {"splitting": psnr(views["splitting"].clamp(0, 1), clean)}
    figure = mode_search(trajectory[:-1], scores, "PSNR (dB)", levels)
    figure.savefig(out / "epll_plain_posterior.png", dpi=120)
    print(f"log joint: {trajectory[0]:.0f} at the noisy image, {trajectory[-1]:.0f} at the end")
    print(f"best PSNR on the way: {max(scores):.2f} dB")


def restore(prior: PatchPrior, clean: Tensor, out: Path) -> None:
    """Holes and blur, by the same prior with another observation."""
    torch.manual_seed(0)
    mask = torch.rand(clean.shape[1:]) > 0.5
    blur = Blurred(torch.ones(5, 5), 2 / 255)
    cases = {
        "epll_inpainting.png": (Masked(mask, 2 / 255), add_noise(clean, 2 / 255) * mask),
        "epll_deblurring.png": (blur, add_noise(blur.blur(clean), 2 / 255)),
    }
    for name, (observation, observed) in cases.items():
        restored = split_half_quadratic(EPLL(prior, observation, stride=2), observed)
        draw({"observed": observed, "restored": restored, "reference": clean}, clean, out / name)


def draw(views: dict[str, Tensor], clean: Tensor, path: Path) -> None:
    """The views side by side, with their PSNR; also printed."""
    scores = {k: psnr(v.clamp(0, 1), clean) for k, v in views.items() if k != "reference"}
    for name, score in scores.items():
        print(f"{path.stem:<18} {name:<30} {score:.2f} dB")
    titled = {f"{k}\n{scores[k]:.2f} dB" if k in scores else k: v for k, v in views.items()}
    side_by_side({k: v.numpy() for k, v in titled.items()}).savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photo", type=Path)
    parser.add_argument("--prior", type=Path, help="a patch prior; the shipped one if left out")
    parser.add_argument("--steps", type=int, default=80, help="of Adam on the plain posterior")
    parser.add_argument("--side", type=int, default=160, help="pixels of the crop's side")
    parser.add_argument("--out", type=Path, default=Path("restored"))
    args = parser.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    photo = args.photo or held_out_photograph()
    grey = read_photo(photo).pixels.mean(0, keepdim=True)
    top, left = ((length - args.side) // 2 for length in grey.shape[1:])
    clean = grey[:, max(top, 0) :, max(left, 0) :][:, : args.side, : args.side]
    prior = PatchPrior.load(args.prior) if args.prior else PatchPrior.shipped()
    print(f"{photo.name}, {prior}")
    denoise(prior, clean, args.steps, args.out)
    restore(prior, clean, args.out)


if __name__ == "__main__":
    main()
