"""Image completion: negative conditional log-likelihood of the hidden quadrants of MNIST.

Training: MNIST's 54,000 training images with pixels drawn anew in every batch; the epoch is chosen
on the other 6,000. Test: the 10,000 test images, pixels drawn once from the grey values;
−log p(hidden | seen) by importance sampling from the guide. Published for 1 / 2 / 3 quadrants
(Pyro's example, grey values under a Bernoulli, −ELBO, epoch chosen on the test images): baseline
100.4 / 61.9 / 25.4, CVAE 71.8 / 51.0 / 24.2.

    python benchmarks/completion.py [--quadrants 1] [--epochs 20] [--compile] [--run FOLDER]
        [--pictures FOLDER]
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import torch
from harness import parser, save
from pyro.nn import PyroModule

from inference import Evaluation, evaluate, fit, load_data
from inference.data import DataSet
from inference.data.dataset import MemorySplit
from inference.plotting import image_grid
from ppl_models.cvae_completion import CompletionBaseline, CompletionCVAE


def completion_data() -> DataSet:
    """MNIST drawn anew in every batch; valid and test drawn once."""
    data = load_data("mnist", binarize="dynamic")
    fixed = []
    for split in (data.valid, data.test):
        assert isinstance(split, MemorySplit)
        generator = torch.Generator().manual_seed(0)
        fixed.append(MemorySplit({"x": torch.bernoulli(split.tensors["x"], generator=generator)}))
    return DataSet(data.info, data.train, *fixed)


def train(
    program: PyroModule, data: DataSet, args: Namespace, name: str, particles: int
) -> Evaluation:
    """Train on the completions and evaluate on the test images."""
    folder = None if args.run is None else args.run / f"{name}-{args.quadrants}"
    fitted = fit(
        program,
        data,
        epochs=args.epochs,
        batch_size=100,
        learning_rate=1e-3,
        lr_schedule="cosine",
        compile=args.compile,
        seed=args.seed,
        run_dir=folder,
        resume=folder is not None,
    )
    return evaluate(fitted.program, fitted.data.test, num_particles=particles)


def save_picture(program: CompletionCVAE, data: DataSet, path: Path) -> None:
    """A row an image: what is seen, six completions, the truth."""
    x = next(iter(data.test.batches(8)))["x"]
    torch.manual_seed(0)
    with torch.no_grad():
        completed = program.complete(x, 6)
    seen = torch.where(program.hidden, 0.5, x)
    rows = torch.stack([seen, *completed, x], 1).flatten(0, 1)
    figure = image_grid(rows.numpy(), "seen, six completions, the truth", 8)
    figure.savefig(path, dpi=120, bbox_inches="tight")


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--quadrants", type=int, default=1)
    options.add_argument("--epochs", type=int, default=20)
    options.add_argument("--num_particles", type=int, default=100)
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--compile", action="store_true")
    options.add_argument("--run", type=Path, help="folder in which training goes on")
    options.add_argument("--pictures", type=Path)
    args = options.parse_args()
    data = completion_data()
    torch.manual_seed(args.seed)
    baseline = CompletionBaseline(num_quadrants=args.quadrants)
    alone = train(baseline, data, args, "baseline", 1)
    program = CompletionCVAE(num_quadrants=args.quadrants)
    result = train(program, data, args, "cvae", args.num_particles)
    assert result.iwae is not None
    if args.pictures is not None:
        save_picture(program, data, args.pictures / "cvae_completion.png")
    save(
        f"completion-{args.quadrants}",
        {k: v for k, v in vars(args).items() if k not in ("run", "pictures")},
        {
            "baseline_negative_cll": -alone.elbo,
            "cvae_negative_elbo": -result.elbo,
            "cvae_negative_cll": -result.iwae,
            "standard_error": result.iwae_se,
            "target": {1: 71.8, 2: 51.0, 3: 24.2}[args.quadrants],
        },
    )


if __name__ == "__main__":
    main()
