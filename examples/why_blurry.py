"""Why are images of a VAE blurry, and what changes it?

The lecture's answer: many x for each z. The decoder that minimizes the distortion answers a code z
with the mean of all images whose posteriors reach z, weighted by q(z | x): this script finds those
images, shows them beside their mean and beside the decoder's answer, and counts them. It then
changes what makes them many: the likelihood, whose noise says how much two images may differ and
still share a code, and the size of the code.

    python examples/why_blurry.py [--data frey_faces] [--epochs 150] [--out why_blurry]

Without the Frey faces' file the data are mnist5k.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from inference import DataSet, evaluate, fit, load_data
from inference.devices import seed_all
from inference.latents import encode, resynthesize
from inference.plotting import labelled_grid
from inference.runs import build_for
from inference.sampling import reconstruct, sample
from ppl_models import PplError, Program

SETTINGS = (
    ("normal", 20),
    ("normal_shared_scale", 2),
    ("normal_shared_scale", 20),
    ("normal_pixel_scale", 20),
    ("discretized_logistic_mixture", 20),
)
"""Likelihood, and size of the code."""


@dataclass
class Trained:
    """One VAE, and how blurry it is."""

    name: str
    program: Program
    rate: float
    sharing: float
    """Training images that share a code, on average."""
    sharpness: dict[str, float]
    """Mean step between neighbouring pixels, over that of the data."""


def load(name: str | None) -> DataSet:
    """The data asked for, else Frey's faces, else digits."""
    if name is not None:
        return load_data(name)
    try:
        return load_data("frey_faces")
    except PplError as error:
        print(f"{error}\nTaking mnist5k instead.")
        return load_data("mnist5k")


def who_shares(program: Program, z: Tensor, x: Tensor) -> Tensor:
    """How much each training image has of a code: q(z | x), over all images a sum of 1.

    Args:
        program: a VAE.
        z: codes (B, D).
        x: training images (N, C, H, W).

    Returns:
        (B, N).
    """
    with torch.no_grad():
        posterior = program.owner.posterior(x)  # (N,), of (D,)
        return posterior.log_prob(z.unsqueeze(1)).softmax(-1)


def effective_number(weights: Tensor) -> Tensor:
    """How many images equal shares would mean the same uncertainty: exp of the entropy, (B,)."""
    return torch.special.entr(weights).sum(-1).exp()


def sharpness(x: Tensor) -> float:
    """Mean step between neighbouring pixels."""
    return float(x.diff(dim=-1).abs().mean() + x.diff(dim=-2).abs().mean())


def train(data: DataSet, likelihood: str, latent_dim: int, epochs: int) -> Trained:
    """A VAE with this likelihood and size of the code, measured."""
    seed_all(0)
    arguments = {"likelihood": likelihood, "latent_dim": latent_dim, "hidden_dims": (400, 200)}
    fitted = fit(
        build_for("vae", arguments, data.info),
        data,
        epochs=epochs,
        kl_warmup=epochs / 10,
        lr_schedule="cosine",
    )
    test = next(iter(fitted.data.test.batches(200)))
    x = next(iter(fitted.data.train.batches(4000)))["x"]
    z = encode(fitted.program, test, draw="sample")["z"]
    images = {
        "reconstruction": resynthesize(fitted.program, test),
        "sample": sample(fitted.program, 200)["x"],
        "draw of p(x | z)": reconstruct(fitted.program, test, draw="sample")["x"],
    }
    found = Trained(
        f"{likelihood.replace('_', ' ')}, {latent_dim}",
        fitted.program,
        evaluate(fitted.program, test, num_particles=10).rate,
        float(effective_number(who_shares(fitted.program, z, x)).mean()),
        {name: sharpness(image) / sharpness(test["x"]) for name, image in images.items()},
    )
    steps = ", ".join(f"{name} {value:.2f}" for name, value in found.sharpness.items())
    shared = f"a code is shared by {found.sharing:.1f} images"
    print(f"{found.name}: rate {found.rate:.1f} nats, {shared}; sharpness: {steps}")
    return found


def draw_sharing(trained: Trained, data: DataSet, path: Path, num: int = 5) -> None:
    """Codes, the images that share them, their mean, and what the decoder says."""
    test = next(iter(data.test.batches(num)))
    x = next(iter(data.train.batches(4000)))["x"]
    weights = who_shares(trained.program, encode(trained.program, test)["z"], x)
    mean = torch.einsum("bn,nchw->bchw", weights, x)
    places = weights.topk(8, dim=-1).indices
    decoded = resynthesize(trained.program, test)
    shown = torch.cat([torch.stack([test["x"], decoded, mean], 1), x[places]], 1)
    counts = [f"shared by {n:.0f}" for n in effective_number(weights).tolist()]
    columns = ["image", "decoder", "weighted\nmean", *(f"{k}." for k in range(1, 9))]
    title = f"{trained.name}: training images by their share of a code"
    labelled_grid(shown.numpy(), counts, columns, title).savefig(path, dpi=110, bbox_inches="tight")
    away = (decoded - mean).square().mean().sqrt() / (test["x"] - mean).square().mean().sqrt()
    print(
        f"{trained.name}: from the weighted mean, the decoder is {away:.2f} × as far as the image"
    )


def draw_likelihoods(all_trained: list[Trained], data: DataSet, path: Path, num: int = 7) -> None:
    """Reconstructions and samples of every VAE: means, and at the right draws of pixels."""
    test = next(iter(data.test.batches(num)))
    blank = np.ones_like(test["x"].numpy())
    rows, images = ["data"], [np.concatenate([test["x"].numpy(), blank, blank])]
    for trained in all_trained:
        drawn = reconstruct(trained.program, test, draw="sample")["x"]
        means = resynthesize(trained.program, test)
        samples = sample(trained.program, num)["x"]
        rows.append(f"{trained.name.replace(', ', chr(10))} latents")
        images.append(torch.cat([means, drawn, samples]).numpy())
    columns = ["resyn-\nthesis"] + [""] * (num - 1)
    columns += ["draw of\np(x | z)"] + [""] * (num - 1) + ["sample\n(mean)"] + [""] * (num - 1)
    labelled_grid(np.stack(images), rows, columns).savefig(path, dpi=130, bbox_inches="tight")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", help="a data set of grey images")
    parser.add_argument("--epochs", type=int, default=150)
    parser.add_argument("--out", type=Path, default=Path("why_blurry"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    data = load(args.data)
    all_trained = [train(data, *setting, args.epochs) for setting in SETTINGS]
    for trained in all_trained:
        trained.program.cpu()
    names = ("unit_variance", "two_latents", "twenty_latents")
    for trained, name in zip(all_trained[:3], names, strict=True):
        draw_sharing(trained, data, args.out / f"shared_codes_{name}.png")
    draw_likelihoods(all_trained, data, args.out / "likelihoods.png")


if __name__ == "__main__":
    main()
