"""Why does an autoencoder not generate?

Trains an autoencoder and a VAE of the same networks on 5,000 MNIST digits, decodes random z from
both, and shows and measures how far the codes of the data lie from the prior that z is drawn from:

    python examples/autoencoder_or_vae.py [--epochs 40] [--out autoencoder_or_vae]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from inference import FitResult, fit, load_data
from inference.aggregate import aggregated_posterior
from inference.devices import seed_all
from inference.plotting import labelled_grids, posterior_against_prior
from inference.sampling import sample
from ppl_models.autoencoder import Autoencoder
from ppl_models.vae import VAE

KINDS = {"autoencoder": Autoencoder, "vae": VAE}


def train(kind: type[VAE], args: argparse.Namespace) -> FitResult:
    """A trained program, of images as draws of their grey levels."""
    data = load_data("mnist5k", binarize="dynamic")
    seed_all(0)
    program = kind(data.info.x_shape, args.latent_dim, likelihood="bernoulli")
    warmup = 0.1 * args.epochs
    return fit(program, data, epochs=args.epochs, kl_warmup=warmup, lr_schedule="cosine")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--latent_dim", type=int, default=10)
    parser.add_argument("--out", type=Path, default=Path("autoencoder_or_vae"))
    args = parser.parse_args()
    grids, codes = [], {}
    for name, kind in KINDS.items():
        fitted = train(kind, args)
        drawn = sample(fitted.program, 64)["x"].cpu().numpy()
        grids.append((drawn.reshape(8, 8, *drawn.shape[1:]), [], [], f"{name}: random z decoded"))
        batch = next(iter(fitted.data.train.batches(2000)))
        found = aggregated_posterior(fitted.program, batch)
        codes[name] = found.draws.cpu().numpy()
        print(f"{name}: codes of 2,000 training images against N(0, I)", found, "", sep="\n")
    prior, labels = found.prior_draws.cpu().numpy(), batch["y"].cpu().numpy()
    args.out.mkdir(exist_ok=True)
    figures = {
        "random_codes": labelled_grids(grids),
        "codes_and_prior": posterior_against_prior(codes, prior, labels),
    }
    for name, figure in figures.items():
        figure.savefig(args.out / f"{name}.png", dpi=110, bbox_inches="tight")


if __name__ == "__main__":
    main()
