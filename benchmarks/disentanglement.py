"""Does a weight on the rate disentangle? MIG, DCI and SAP of beta-VAEs on rendered shapes.

The program `beta_vae` with convolutions, on shapes whose five factors are known (drawn anew from
their grey levels in every batch), for several betas and seeds of networks, batches and draws; the
data are the same. Scores are of the codes of all training images, rate and distortion of test
images; the standard error is that of the mean over seeds. Target: MIG above that of beta = 1, the
VAE.

    python benchmarks/disentanglement.py [--betas 1 4] [--seeds 0 1 2] [--epochs 30] [--size 16]
        [--compile] [--pictures FOLDER]

What is measured is kept: called again, it goes on.
"""

from __future__ import annotations

import itertools
import math
import statistics
from argparse import Namespace
from pathlib import Path
from typing import Any

from harness import Kept, parser, save

from inference import FitResult, evaluate, fit
from inference.data import binarize_data, rendered_shapes
from inference.devices import seed_all
from inference.explore import explore
from ppl_models.beta_vae import BetaVAE

SCORES = ("mig", "disentanglement", "completeness", "informativeness", "sap", "rate", "distortion")


def train(beta: float, seed: int, args: Namespace) -> FitResult:
    """A beta-VAE after the last epoch."""
    data = binarize_data(rendered_shapes(size=args.size), "dynamic")
    seed_all(seed)
    program = BetaVAE(
        data.info.x_shape,
        args.latent_dim,
        beta,
        args.hidden_dims,
        "bernoulli",
        channels=args.channels,
    )
    return fit(
        program,
        data,
        epochs=args.epochs,
        batch_size=args.batch_size,
        lr_schedule="cosine",
        compile=args.compile,
        keep="last",  # the best by ELBO would be another compromise than the one trained for
        seed=seed,
    )


def measure(beta: float, seed: int, args: Namespace) -> dict[str, Any]:
    """Scores of one training; its picture, if asked."""
    fitted = train(beta, seed, args)
    found = explore(fitted, "disentanglement")
    if args.pictures is not None:
        args.pictures.mkdir(parents=True, exist_ok=True)
        path = args.pictures / f"components_beta_{beta:g}_seed_{seed}.png"
        found.figure.savefig(path, dpi=110, bbox_inches="tight")
    test = evaluate(fitted.program, fitted.data.test, num_particles=10)
    row = found.numbers | {"rate": test.rate, "distortion": test.distortion}
    print(beta, seed, {name: round(row[name], 3) for name in SCORES}, flush=True)
    return row


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean and standard error over seeds."""
    found: dict[str, Any] = {}
    for name in SCORES:
        values = [row[name] for row in rows]
        found[name] = statistics.mean(values)
        if len(values) > 1:
            found[f"{name}_se"] = statistics.stdev(values) / math.sqrt(len(values))
    factors = rows[0]["mig_by_factor"]
    found["mig_by_factor"] = {
        name: statistics.mean(row["mig_by_factor"][name] for row in rows) for name in factors
    }
    found["mig_by_seed"] = [row["mig"] for row in rows]
    return found


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--betas", type=float, nargs="+", default=[1.0, 4.0])
    options.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options.add_argument("--epochs", type=int, default=30)
    options.add_argument("--batch_size", type=int, default=32)
    options.add_argument("--size", type=int, default=16, help="pixels of an image's side")
    options.add_argument("--latent_dim", type=int, default=6)
    options.add_argument("--channels", type=int, nargs="+", default=[16, 32])
    options.add_argument("--hidden_dims", type=int, nargs="*", default=[128])
    options.add_argument("--compile", action="store_true")
    options.add_argument("--pictures", type=Path)
    args = options.parse_args()
    configuration = {k: v for k, v in vars(args).items() if k != "pictures"}
    kept = Kept("disentanglement", configuration)
    rows: dict[str, list[dict[str, Any]]] = {f"beta {beta:g}": [] for beta in args.betas}
    for seed, beta in itertools.product(args.seeds, args.betas):
        name = f"beta {beta:g}"
        row = kept.value(f"{name}, seed {seed}", lambda b=beta, s=seed: measure(b, s, args))
        rows[name].append(row)
    save("disentanglement", configuration, {name: summary(found) for name, found in rows.items()})
    kept.remove()


if __name__ == "__main__":
    main()
