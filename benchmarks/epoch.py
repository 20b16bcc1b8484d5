"""What an epoch of ``fit`` costs beside its steps alone.

784-400-20-400-784, Bernoulli, analytic KL, Adam, float32. The arms are the training loop (batches,
shuffling, sums, metrics, progress) without validation and checkpoint, its steps alone, and the
whole of ``fit`` with a run folder (validation on 500 data, best and last checkpoint, metrics
files); they take turns in one run.

    python benchmarks/epoch.py [--data 4000] [--batch 100] [--rounds 20] [--threads 2]
        [--device cpu] [--compile]
"""

from __future__ import annotations

import shutil
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pyro
import torch
from harness import interleave, medians, parser, ratios, save

from inference.data import from_tensors
from inference.devices import make_fabric
from inference.elbo import AnalyticKL
from inference.loop import TrainingLoop
from inference.metrics import MetricsFile
from inference.progress import Progress
from inference.settings import Settings
from inference.signals import StopRequest
from inference.validation import Validator
from ppl_models import as_program
from ppl_models.vae import VAE

EPOCHS = 100_000
"""More than are run."""


def epoch_loop(args: Namespace, folder: Path | None = None) -> TrainingLoop:
    x = (torch.rand(args.data, 1, 28, 28) > 0.8).float()
    data = from_tensors({"x": x}, fractions=(0.0, 0.0))
    data = data.map(lambda split: split.to(args.device, torch.float32))
    settings = Settings(
        estimator="analytic_kl",
        num_particles=1,
        optimizer="Adam",
        learning_rate=1e-3,
        lr_schedule="constant",
        epochs=EPOCHS,
        batch_size=args.batch,
        kl_warmup=0.0,
        clip_grad_norm=None,
        patience=None,
        valid_particles=1,
        checkpoint_every=1e9,
        seed=0,
        precision="32",
        compile=args.compile,
    )
    program = as_program(VAE(likelihood="bernoulli")).to(args.device)
    held_out = data.train.to(args.device, torch.float32)
    held_out.tensors = {k: v[:500] for k, v in held_out.tensors.items()}  # type: ignore[attr-defined]
    estimator = AnalyticKL()
    validator = Validator(held_out, estimator, False, 1, args.data)
    loggers = [MetricsFile(folder)] if folder else []
    fabric = make_fabric(args.device, loggers=loggers)
    bar = Progress(args.data * EPOCHS, enabled=False)
    loop = TrainingLoop(program, data, settings, estimator, fabric, validator, folder, bar)
    if folder is not None:
        return loop
    loop.validator = lambda _: {"valid_elbo": 0.0}  # type: ignore[assignment]
    loop.at.best_elbo = 0.0  # keep no copy of the parameters
    return loop


def epoch_of(loop: TrainingLoop) -> Callable[[], None]:
    """An epoch as ``fit`` runs it."""

    def epoch() -> None:
        with loop.program.scope(), pyro.validation_enabled(False):
            loop._train_epoch(StopRequest())
            loop._end_epoch()

    return epoch


def steps_of(loop: TrainingLoop, batch_size: int) -> Callable[[], None]:
    """As many steps, on one batch."""
    tensors = loop.data.train.tensors  # type: ignore[attr-defined]
    batch = {"x": tensors["x"][:batch_size]}

    def steps() -> None:
        loop.program.train()
        with loop.program.scope(), pyro.validation_enabled(False):
            for _ in range(len(tensors["x"]) // batch_size):
                loop.step(batch)
            loop.step.settle()

    return steps


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--data", type=int, default=4000)
    options.add_argument("--batch", type=int, default=100)
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--device", default="cpu")
    options.add_argument("--compile", action="store_true")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    loop = epoch_loop(args)
    folder = Path(tempfile.mkdtemp())
    arms = {
        "training loop": epoch_of(loop),
        "its steps alone": steps_of(loop, args.batch),
        "with validation and checkpoints": epoch_of(epoch_loop(args, folder)),
    }
    timed = interleave(arms, args.rounds, 1)
    shutil.rmtree(folder)
    save(
        f"epoch-{args.device}{'-compiled' if args.compile else ''}",
        vars(args) | {"network": "784-400-20-400-784"},
        {
            "milliseconds_an_epoch": {k: round(v * 1e3, 1) for k, v in medians(timed).items()},
            "to_steps_alone": {k: round(v, 3) for k, v in ratios(timed, "its steps alone").items()},
        },
    )


if __name__ == "__main__":
    main()
