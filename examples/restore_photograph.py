"""What can a prior of 8×8 patches do for a photograph, and does its mode make a good picture?

Denoises a crop of a photograph in three ways (half-quadratic splitting; annealed gradient steps
through Pyro; the plain posterior by Adam until it stands still, which takes minutes), then fills
holes and takes off a known blur with the same prior. Prints PSNR and draws it all:

    python examples/restore_photograph.py [--photo FILE] [--steps 1000] [--out restored]

PSNR is of results clipped to [0, 1], and of noisy images as they are. Without a file, the
photograph is scikit-image's coffee.png, which the shipped prior has not seen; without
scikit-image, scikit-learn's china.jpg, which it has.
"""

from __future__ import annotations

import argparse
import importlib.util
from pathlib import Path

import torch
from torch import Tensor
from torch.optim.lr_scheduler import ExponentialLR

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
    """The mode of the posterior as it stands: smoothing 0, Adam from the noisy image.

    Until the log joint moves by less than 1e-4 of its size over twenty steps; the learning rate
    falls, for Adam's steps are of one size however near the mode is.
    """
    program, scores = EPLL(prior, Noise(SIGMA), stride=2), []
    schedule: list[ExponentialLR] = []

    def falling_adam(parameters) -> torch.optim.Optimizer:
        adam = torch.optim.Adam(parameters, lr=0.005)
        schedule.append(ExponentialLR(adam, 0.995))
        return adam

    def after_step(step: int, log_joint: float, values: dict[str, Tensor]) -> None:
        scores.append(psnr(values["clean"].clamp(0, 1), clean))
        schedule[0].step()

    found = map_estimate(
        program,
        noisy,
        init={"clean": noisy},
        optimizer=falling_adam,
        max_steps=steps,
        tolerance=1e-4,
        callback=after_step,
    )
    return found, scores


def denoise(prior: PatchPrior, clean: Tensor, steps: int, out: Path) -> None:
    noisy = add_noise(clean, SIGMA)
    program = EPLL(prior, Noise(SIGMA), stride=2)
    plain, scores = plain_posterior(prior, noisy, clean, steps)
    views = {
        "noisy": noisy,
        "plain posterior": plain.values["clean"].clamp(0, 1),
        "annealed gradient steps": anneal(program, noisy).clamp(0, 1),
        "splitting": split_half_quadratic(program, noisy).clamp(0, 1),
        "reference": clean,
    }
    draw(views, clean, out / "epll_denoising.png")
    path = plain.trajectory
    levels = {"splitting": psnr(views["splitting"], clean)}
    figure = mode_search(path[:-1], scores, "PSNR (dB)", levels)
    figure.savefig(out / "epll_plain_posterior.png", dpi=120)
    end = "stood still" if plain.converged else "was still moving"
    print(f"log joint: {path[0]:.0f} at the noisy image, {path[-1]:.0f} at the end")
    print(f"it {end} after {len(scores)} steps; best PSNR on the way: {max(scores):.2f} dB")


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
        program = EPLL(prior, observation, stride=2)
        restored = split_half_quadratic(program, observed).clamp(0, 1)
        draw({"observed": observed, "restored": restored, "reference": clean}, clean, out / name)


def draw(views: dict[str, Tensor], clean: Tensor, path: Path) -> None:
    """The views side by side, with their PSNR; also printed."""
    scores = {k: psnr(v, clean) for k, v in views.items() if k != "reference"}
    for name, score in scores.items():
        print(f"{path.stem:<18} {name:<30} {score:.2f} dB")
    titled = {f"{k}\n{scores[k]:.2f} dB" if k in scores else k: v for k, v in views.items()}
    side_by_side({k: v.numpy() for k, v in titled.items()}).savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--photo", type=Path)
    parser.add_argument("--prior", type=Path, help="a patch prior; the shipped one if left out")
    parser.add_argument("--steps", type=int, default=1000, help="of Adam, at most")
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
