"""Why does an autoencoder not generate?

Trains an autoencoder and a VAE of the same networks on 5,000 MNIST digits, decodes random z from
both, and measures how far the codes of the test images lie from the prior that z is drawn from:

    python examples/autoencoder_or_vae.py [--epochs 40] [--out autoencoder_or_vae]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from inference import fit, load_data
from inference.aggregate import aggregated_posterior
from inference.plotting import image_grid
from inference.sampling import sample
from ppl_models.autoencoder import Autoencoder
from ppl_models.vae import VAE

KINDS = {"autoencoder": Autoencoder, "VAE": VAE}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--latent_dim", type=int, default=8)
    parser.add_argument("--out", type=Path, default=Path("autoencoder_or_vae"))
    args = parser.parse_args()
    data = load_data("mnist5k", binarize="threshold")
    drawn = []
    for name, kind in KINDS.items():
        torch.manual_seed(0)
        program = kind(data.info.x_shape, args.latent_dim, (400,), "bernoulli")
        fitted = fit(program, data, epochs=args.epochs, lr_schedule="cosine")
        test = next(iter(fitted.data.test.batches(500)))
        print(f"{name}: codes of the test images against N(0, I)")
        print(aggregated_posterior(program, test), end="\n\n")
        drawn.append(sample(program, 36, seed=1)["x"].cpu().numpy())
    args.out.mkdir(exist_ok=True)
    title = "random z decoded by an autoencoder (above) and by a VAE (below)"
    figure = image_grid(np.concatenate(drawn), title, columns=12)
    figure.savefig(args.out / "random_codes.png", dpi=120, bbox_inches="tight")


if __name__ == "__main__":
    main()
