"""What is a learned prior over codes worth: bits a code, and do its draws look like digits?

Takes the run of a prior over the codes of a VQ-VAE on MNIST (docs/vqvae_prior.md tells how to train
both). Bits a code on the test images, beside log2 of the number of codes; and how sure a classifier
of scikit-learn, a network of 200 units trained on real MNIST, is of what the draws show: the mean
of its largest class probability, beside the same of real test images, and of draws with the
uniform prior. Targets: at least 1.5 bits a code below uniform; mean confidence above 0.9.

    python benchmarks/code_prior.py --run FOLDER [--num 1000] [--temperature 1.0] [--top_k N]
        [--pictures FOLDER]
"""

from __future__ import annotations

from pathlib import Path

import torch
from class_conditional import arrays, train_classifier
from harness import parser, save

from inference import load_data
from inference.commands import evaluate_on
from inference.drawing import Sharpened
from inference.plotting import image_grid
from inference.runs import load_run
from inference.sampling import decode, sample

FOLDERS = ("run", "pictures", "codes", "data_root")
"""Of the configuration, what is of this machine."""


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--run", type=Path, required=True)
    options.add_argument("--num", type=int, default=1000)
    options.add_argument("--temperature", type=float, default=1.0)
    options.add_argument("--top_k", type=int)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--pictures", type=Path)
    args = options.parse_args()
    run = load_run(args.run)
    numbers = evaluate_on(run, "test", 1, args.seed)
    sharpened = Sharpened(args.temperature, args.top_k, None)
    drawn = sample(run.program, args.num, seed=args.seed, sharpened=sharpened)
    noise = torch.randint(run.program.owner.num_codes, drawn["codes"].shape)
    judge, accuracy = train_classifier(load_data("mnist"))
    confidence = {
        name: float(judge.predict_proba(x).max(1).mean())
        for name, x in {
            "draws": drawn["x"].flatten(1).numpy(),
            "real_test_images": arrays(load_data("mnist"), "test")[0],
            "uniform_codes": decode(run.program, {"codes": noise}).flatten(1).numpy(),
        }.items()
    }
    if args.pictures is not None:
        figure = image_grid(
            drawn["x"][:80].clamp(0, 1).numpy(), "drawn from p(codes) p(x | codes)", 16
        )
        figure.savefig(args.pictures / "vqvae_prior_samples.png", dpi=120, bbox_inches="tight")
    save(
        "code_prior",
        {k: v for k, v in (run.config | vars(args)).items() if k not in FOLDERS},
        {
            "bits_per_code": numbers["bits_per_code"],
            "bits_per_code_uniform": numbers["bits_per_code_uniform"],
            "elbo": numbers["elbo"],
            "mean_confidence": confidence,
            "classifier_accuracy_on_real_test_images": accuracy,
        },
    )


if __name__ == "__main__":
    main()
