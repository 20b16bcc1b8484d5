"""Nats of a gated PixelCNN on static binarized MNIST, after so many minutes of two cores.

The budget is counted in processor seconds of this process, all its threads, so that it is the same
on a busy machine; --minutes 30 are 60 core-minutes. The learning rate rises over the first
twentieth of the budget and falls to zero, as a cosine, by its end, and there training stops. A run
that is interrupted goes on by the same command. The test ELBO of a program without latents is
log p(x) itself; its standard error is that of the mean over the test images.

    python benchmarks/pixelcnn_mnist.py [--minutes 30] [--cores 2] [--channels 16] [--layers 8]
        [--kernel_size 5] [--batch 32] [--learning_rate 3e-3] [--precision bf16] [--compile]
        [--out FOLDER]
"""

from __future__ import annotations

import math
import signal
import time
from contextlib import suppress
from pathlib import Path

import torch
from harness import parser, save
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from inference import load_data
from inference.checkpoint import load_checkpoint, load_parameters
from inference.data import DataSet, MemorySplit
from inference.devices import seed_all
from inference.signals import TrainingInterrupted
from inference.svi import fit
from inference.weights import log_weights
from ppl_models import Program, as_program
from ppl_models.autoregressive import PixelCNN

WARM_UP = 0.05
"""Share of the budget in which the learning rate rises."""


class ProcessorTime(LRScheduler):
    """A learning rate by the share of a budget of processor seconds that is used.

    When it is used up the process asks itself to stop, as a signal from outside would.

    Args:
        optimizer: whose learning rate it sets.
        seconds: the budget.
    """

    def __init__(self, optimizer: Optimizer, seconds: float) -> None:
        self.seconds = seconds
        self.used = 0.0
        self._clock = time.process_time()
        super().__init__(optimizer)

    def get_lr(self) -> list[float]:
        """After a step."""
        now = time.process_time()
        self.used, self._clock = self.used + now - self._clock, now
        share = self.used / self.seconds
        if share >= 1:
            signal.raise_signal(signal.SIGTERM)
        rise = min(1.0, share / WARM_UP)
        fall = 0.5 * (1 + math.cos(math.pi * min(1.0, max(0.0, share - WARM_UP) / (1 - WARM_UP))))
        return [max(rise, 1e-3) * fall * rate for rate in self.base_lrs]

    def load_state_dict(self, state: dict[str, object]) -> None:
        """Go on from the processor time of another process."""
        super().load_state_dict(state)
        self._clock = time.process_time()


def few_to_validate(data: DataSet, count: int = 1000) -> DataSet:
    """The data with so many of the validation images."""
    assert isinstance(data.valid, MemorySplit)
    some = {name: value[:count] for name, value in data.valid.tensors.items()}
    return DataSet(data.info, data.train, MemorySplit(some), data.test)


def nats(program: Program, data: DataSet) -> tuple[float, float]:
    """Mean −log p(x) of the test images, and its standard error."""
    found = torch.cat([log_weights(program, batch)[0] for batch in data.test.batches(250)])
    return -float(found.mean()), float(found.std()) / math.sqrt(len(found))


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=30.0)
    options.add_argument("--cores", type=int, default=2)
    options.add_argument("--channels", type=int, default=16)
    options.add_argument("--layers", type=int, default=8)
    options.add_argument("--kernel_size", type=int, default=5)
    options.add_argument("--batch", type=int, default=32)
    options.add_argument("--learning_rate", type=float, default=3e-3)
    options.add_argument("--precision", default="bf16")
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--compile", action="store_true")
    options.add_argument("--out", type=Path, default=Path("runs/pixelcnn_mnist"))
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    seed_all(0)
    data = load_data("binarized_mnist")
    program = as_program(PixelCNN(data.info.x_shape, args.channels, args.layers, args.kernel_size))
    started = time.monotonic()
    with suppress(TrainingInterrupted):
        fit(
            program,
            few_to_validate(data),
            optimizer=lambda parameters: torch.optim.AdamW(
                parameters, lr=args.learning_rate, betas=(0.9, 0.95), weight_decay=1e-4, fused=True
            ),
            lr_schedule=lambda optimizer: ProcessorTime(optimizer, 60 * args.minutes * args.cores),
            epochs=10_000,  # the budget ends it
            batch_size=args.batch,
            clip_grad_norm=100.0,
            precision=args.precision,
            compile=args.compile,
            run_dir=args.out,
            resume=True,
        )
    path = args.out / "checkpoints" / "last.ckpt"
    state = load_checkpoint(path)
    used = state["schedule"]["used"] / 60
    if used < args.minutes * args.cores:
        raise SystemExit(f"interrupted after {used:.1f} processor minutes; the same goes on")
    load_parameters(program, state, path)
    mean, error = nats(program, data)
    position = state["position"]
    save(
        "pixelcnn_mnist",
        {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        {
            "test_nats": round(mean, 3),
            "standard_error": round(error, 3),
            "parameters": sum(p.numel() for p in program.parameters()),
            "processor_minutes": round(used, 1),
            "wall_minutes_of_this_process": round((time.monotonic() - started) / 60, 1),
            "epochs": round(position["epoch"] + position["data_seen"] / len(data.train), 2),
            "steps": position["step"],
            "validation": [
                {k: round(row[k], 3) for k in ("epoch", "train_loss", "valid_elbo")}
                for row in position["history"]
            ],
        },
    )


if __name__ == "__main__":
    main()
