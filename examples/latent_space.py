"""What does a VAE know of its data, and what does its latent space look like?

On real data: the manifold of two components; interpolation, straight and along great circles;
attribute vectors and analogies; images from outside; the training images nearest to samples; the
two grids of a conditional VAE; rate against distortion. (Random codes, and where codes lie:
``autoencoder_or_vae.py``; what a component stands for: ``benchmarks/disentanglement.py``.)

    python examples/latent_space.py [--data mnist5k] [--epochs 40] [--out latent_space]

The data are images with labels.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure

from inference import FitResult, evaluate, fit, latents, load_data
from inference.devices import seed_all
from inference.explore import explore
from inference.plotting import labelled_grid
from inference.runs import build_for
from inference.sweep import sweep


def train(name: str, data: str, epochs: int, *, warmup: float = 0.1, **arguments: Any) -> FitResult:
    """A trained program of the catalog, of images as draws of their grey levels."""
    loaded = load_data(data, binarize="dynamic")
    seed_all(0)
    program = build_for(name, arguments, loaded.info)
    fitted = fit(program, loaded, epochs=epochs, kl_warmup=warmup * epochs, lr_schedule="cosine")
    found = evaluate(fitted.program, fitted.data.test)
    print(f"{name} {arguments} on {data}: {found.elbo:.1f} nats", flush=True)
    return fitted


def plane(args: argparse.Namespace) -> dict[str, Figure]:
    """All of a latent space that is a plane."""
    run = train("vae", args.data, args.epochs, latent_dim=2, likelihood="bernoulli")
    return {"manifold": explore(run, "manifold").figure}


def walks_and_edits(args: argparse.Namespace) -> dict[str, Figure]:
    """Interpolation, attributes, analogies, neighbours, of one VAE."""
    run = train("vae", args.data, args.epochs, latent_dim=20, likelihood="bernoulli")
    return {
        "interpolation": lerp_and_slerp(run),
        "attribute": explore(run, "attribute", value=7, against=1).figure,
        "analogy": explore(run, "analogy").figure,
        "resynthesis": explore(run, "resynthesis").figure,
        "nearest": explore(run, "nearest").figure,
    }


def lerp_and_slerp(run: FitResult, num: int = 4) -> Figure:
    """The same walks, straight and along great circles."""
    batch = next(iter(run.data.test.batches(num + 1)))
    ways = {m: latents.interpolate(run.program, batch, method=m) for m in ("lerp", "slerp")}
    images = torch.stack(list(ways.values()), 1).flatten(0, 1)  # lerp, slerp, lerp, ...
    columns = [f"{t:.2f}" for t in torch.linspace(0, 1, images.shape[1])]
    return labelled_grid(images.cpu().numpy(), list(ways) * num, columns, "from image to image")


def conditional(args: argparse.Namespace) -> dict[str, Figure]:
    """Sampling with a fixed class, and with a fixed latent."""
    # No warm-up: while the rate is free, z learns what the label tells.
    arguments = {"latent_dim": 8, "likelihood": "bernoulli", "prior": "learned"}
    run = train("cvae", args.data, args.epochs, warmup=0, **arguments)
    return {"classes": explore(run, "classes", num=10).figure}


def rate_against_distortion(args: argparse.Namespace) -> dict[str, Figure]:
    """What happens when we change beta?"""
    config = {
        "program": "beta_vae",
        "data": args.data,
        "binarize": "dynamic",
        "model": {"likelihood": "bernoulli", "latent_dim": 20},
        "epochs": args.epochs,
        "lr_schedule": "cosine",
    }
    found = sweep(config, "model.beta", args.betas, args.out / "betas")
    for beta, row in zip(found.values, found.rows, strict=True):
        print(f"beta {beta:g}: rate {row['rate']:.2f}, distortion {row['distortion']:.2f}")
    return {"rate_distortion": found.figure()}


PARTS = (plane, walks_and_edits, conditional, rate_against_distortion)


def main() -> None:
    names = [part.__name__ for part in PARTS]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", default="mnist5k", help="images with ten classes")
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--betas", type=float, nargs="+", default=[0.25, 0.5, 1, 2, 4, 8])
    parser.add_argument("--parts", nargs="+", choices=names, default=names)
    parser.add_argument("--out", type=Path, default=Path("latent_space"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for part in PARTS:
        if part.__name__ in args.parts:
            for name, figure in part(args).items():
                figure.savefig(args.out / f"{name}.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
