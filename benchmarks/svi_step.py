"""What a step of SVI costs: ours, a hand-written torch loop, and stock Pyro.

784-400-20-400-784, Bernoulli, analytic KL, batch 100, Adam, float32, one process. The arms take
turns in one run; the ratios are medians over rounds of the ratio within a round.

    python benchmarks/svi_step.py [--rounds 40] [--steps 25] [--threads 2] [--device cpu]

A second table compares an epoch of 4,000 data with its 40 steps alone: the training loop (batches,
shuffling, sums, metrics, progress) without validation and checkpoint, and the whole of ``fit`` with
a run folder (validation on 500 data, best and last checkpoint, metrics files) as well.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import pyro
import torch
from harness import interleave, medians, parser, ratios, save
from torch import nn
from torch.nn import functional as F

from inference.data import from_tensors
from inference.devices import make_fabric
from inference.elbo import AnalyticKL
from inference.handlers import KLWarmup
from inference.loop import TrainingLoop
from inference.metrics import MetricsFile
from inference.progress import Progress
from inference.settings import Settings
from inference.step import SVIStep
from inference.validation import Validator
from ppl_models import Program, as_program
from ppl_models.vae import VAE

BATCH = 100
Step = Callable[[int], None]


class PlainVAE(nn.Module):
    """The same networks, with the loss written out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, 40))
        self.decoder = nn.Sequential(nn.Linear(20, 400), nn.ReLU(), nn.Linear(400, 784))

    def loss(self, x: torch.Tensor) -> torch.Tensor:
        """−ELBO per datum."""
        loc, raw = self.encoder(x.flatten(1)).chunk(2, dim=-1)
        scale = F.softplus(raw) + 1e-4
        z = loc + scale * torch.randn_like(loc)
        logits = self.decoder(z)
        distortion = F.binary_cross_entropy_with_logits(logits, x.flatten(1), reduction="sum")
        kl = (0.5 * (loc.square() + scale.square() - 1) - scale.log()).sum()
        return (distortion + kl) / len(x)


def plain_torch(x: torch.Tensor) -> Step:
    model = PlainVAE().to(x.device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss = model.loss(x)
        loss.backward()
        optimizer.step()

    return repeat(step)


def stock_pyro(x: torch.Tensor, validation: bool) -> Step:
    program = VAE(likelihood="bernoulli").to(x.device)
    optimizer = pyro.optim.Adam({"lr": 1e-3})
    svi = pyro.infer.SVI(program.model, program.guide, optimizer, pyro.infer.TraceMeanField_ELBO())
    own_parameters: dict = {"params": {}, "constraints": {}}

    def turn(count: int) -> None:
        with pyro.validation_enabled(validation), pyro.get_param_store().scope(own_parameters):
            repeat(lambda: svi.step(x))(count)

    return turn


def ours(x: torch.Tensor) -> Step:
    program = as_program(VAE(likelihood="bernoulli")).to(x.device)
    optimizer = torch.optim.Adam(program.parameters(), lr=1e-3, fused=True)
    fabric = make_fabric(x.device.type)
    step = SVIStep(program, AnalyticKL(), optimizer, fabric, KLWarmup(0), len(x))

    return scoped(program, lambda: step({"x": x}))


def scoped(program: Program, step: Callable[[], object]) -> Step:
    """Steps in the program's scope, which is entered once for a turn, as ``fit`` does for a run."""

    def turn(count: int) -> None:
        with program.scope(), pyro.validation_enabled(False):
            repeat(step)(count)

    return turn


def repeat(step: Callable[[], object]) -> Step:
    def turn(count: int) -> None:
        for _ in range(count):
            step()

    return turn


def epoch_loop(x: torch.Tensor, num_data: int, folder: Path | None = None) -> TrainingLoop:
    data = from_tensors(
        {"x": (torch.rand(num_data, 1, 28, 28) > 0.8).float()}, fractions=(0.0, 0.0)
    )
    data = data.map(lambda split: split.to(x.device, torch.float32))
    settings = Settings(
        estimator="analytic_kl",
        num_particles=1,
        optimizer="Adam",
        learning_rate=1e-3,
        lr_schedule="constant",
        epochs=1000,
        batch_size=BATCH,
        kl_warmup=0.0,
        clip_grad_norm=None,
        patience=None,
        valid_particles=1,
        checkpoint_every=1e9,
        seed=0,
        precision="32",
    )
    program = as_program(VAE(likelihood="bernoulli")).to(x.device)
    held_out = data.train.to(x.device, torch.float32)
    held_out.tensors = {k: v[:500] for k, v in held_out.tensors.items()}  # type: ignore[attr-defined]
    estimator = AnalyticKL()
    validator = Validator(held_out, estimator, False, 1, num_data)
    loggers = [MetricsFile(folder)] if folder else []
    fabric = make_fabric(x.device.type, loggers=loggers)
    bar = Progress(num_data * 1000, enabled=False)
    loop = TrainingLoop(program, data, settings, estimator, fabric, validator, folder, bar)
    if folder is not None:
        return loop
    loop.validator = lambda _: {"valid_elbo": 0.0}  # type: ignore[assignment]
    loop.at.best_elbo = 0.0  # keep no copy of the parameters
    return loop


def main() -> None:
    from inference.signals import StopRequest

    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=40)
    options.add_argument("--steps", type=int, default=25)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--device", default="cpu")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = (torch.rand(BATCH, 1, 28, 28, device=args.device) > 0.8).float()

    def synced(turn: Step) -> Callable[[], None]:
        def timed() -> None:
            turn(args.steps)
            if args.device != "cpu":
                torch.cuda.synchronize()

        return timed

    arms = {
        "plain torch": synced(plain_torch(x)),
        "stock pyro.infer.SVI": synced(stock_pyro(x, validation=True)),
        "stock pyro.infer.SVI, validation off": synced(stock_pyro(x, validation=False)),
        "ours": synced(ours(x)),
    }
    steps = interleave(arms, args.rounds, 1)

    num_data = BATCH * 40
    loop = epoch_loop(x, num_data)
    batch = {"x": loop.data.train.tensors["x"][:BATCH]}  # type: ignore[attr-defined]

    def whole_epoch() -> None:
        with loop.program.scope(), pyro.validation_enabled(False):
            loop._train_epoch(StopRequest())
            loop._end_epoch()

    def steps_alone() -> None:
        with loop.program.scope(), pyro.validation_enabled(False):
            for _ in range(40):
                loop.step(batch)

    folder = Path(tempfile.mkdtemp())
    whole = epoch_loop(x, num_data, folder)

    def with_everything() -> None:
        with whole.program.scope(), pyro.validation_enabled(False):
            whole._train_epoch(StopRequest())
            whole._end_epoch()

    timed = {
        "training loop": whole_epoch,
        "its steps alone": steps_alone,
        "with validation and checkpoints": with_everything,
    }
    epochs = interleave(timed, 20, 1)
    shutil.rmtree(folder)
    save(
        f"svi_step-{args.device}",
        vars(args) | {"batch": BATCH, "network": "784-400-20-400-784", "epoch_data": num_data},
        {
            "milliseconds_a_step": {
                k: round(v * 1e3 / args.steps, 3) for k, v in medians(steps).items()
            },
            "ratio_to_plain_torch": {
                k: round(v, 3) for k, v in ratios(steps, "plain torch").items()
            },
            "milliseconds_40_steps": {k: round(v * 1e3, 1) for k, v in medians(epochs).items()},
            "epoch_to_steps_alone": {
                k: round(v, 3) for k, v in ratios(epochs, "its steps alone").items()
            },
        },
    )


if __name__ == "__main__":
    main()
