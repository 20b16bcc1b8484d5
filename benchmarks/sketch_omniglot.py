"""Sketch-RNN on Omniglot's strokes: what a code is worth, after so many minutes of two cores.

Two programs in turn, each for its budget of processor seconds of this process, all threads:
``conditional`` (the recurrent VAE, with the paper's annealed rate and floor, its rate weighed by
``beta``), ``decoder`` (alone).
Compared are nats a movement on test drawings: the conditional distortion, −E log p(x | z), against
the decoder's exact −log p(x). Validation is unscaled; its running mean is over five epochs, and the
objective's KL weight rises, so that the bound is compared from where the weight has come near one.
A run that is interrupted goes on by the same command.

    python benchmarks/sketch_omniglot.py [--minutes 30] [--cores 2] [--encoder 128] [--decoder 256]
        [--latent 16] [--beta 0.25] [--components 20] [--batch 100] [--learning_rate 2e-3]
        [--decay 0.999] [--threads 1] [--out FOLDER]
"""

from __future__ import annotations

import time
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from harness import parser, save
from pixelcnn_mnist import ProcessorTime

from inference import evaluate, load_data
from inference.checkpoint import load_checkpoint, load_parameters
from inference.data import DataSet
from inference.devices import seed_all
from inference.handlers import FreeBits, KLAnnealing
from inference.signals import TrainingInterrupted
from inference.sketches import sketch_numbers
from inference.svi import fit
from ppl_models import Program, as_program
from ppl_models.sketch_rnn import SketchDecoder, SketchRNN

FLOOR = 0.2
"""Nats of each latent dimension that cost nothing, as in the paper."""
WINDOW = 5


def make(name: str, args: Namespace, data: DataSet) -> Program:
    seed_all(0)
    shape, scale = data.info.x_shape, data.info.offset_scale
    if name == "decoder":
        return as_program(SketchDecoder(shape, args.decoder, args.components, offset_scale=scale))
    sizes = (args.latent, args.encoder, args.decoder, args.components)
    return as_program(SketchRNN(shape, *sizes, beta=args.beta, offset_scale=scale))


def train(name: str, args: Namespace, data: DataSet) -> tuple[Program, dict[str, Any]]:
    """Until the budget is used up; the program as it was best, and its last state."""
    program = make(name, args, data)
    handlers = [KLAnnealing(args.decay), FreeBits(FLOOR * args.latent)]
    folder = args.out / name
    with suppress(TrainingInterrupted):
        fit(
            program,
            data,
            learning_rate=args.learning_rate,
            optimizer="Adam",
            lr_schedule=lambda optimizer: ProcessorTime(optimizer, 60 * args.minutes * args.cores),
            handlers=handlers if name == "conditional" else [],
            epochs=10_000,  # the budget ends it
            batch_size=args.batch,
            clip_grad_norm=10.0,
            compile=False,
            run_dir=folder,
            resume=True,
        )
    state = load_checkpoint(folder / "checkpoints" / "last.ckpt")
    used = state["schedule"]["used"] / 60
    if used < args.minutes * args.cores:
        raise SystemExit(f"{name} was interrupted after {used:.1f} minutes; the same goes on")
    load_parameters(program, state, folder)
    return program, state


def numbers(program: Program, state: dict[str, Any], data: DataSet) -> dict[str, Any]:
    """Of test drawings, and of every epoch."""
    result = evaluate(program, data.test, num_particles=10)
    history = [row["valid_elbo"] for row in state["position"]["history"]]
    means = [sum(history[i : i + WINDOW]) / WINDOW for i in range(len(history) - WINDOW + 1)]
    falls = [i + WINDOW for i in range(1, len(means)) if means[i] < means[i - 1]]
    return {
        "test_elbo": round(result.elbo, 3),
        "rate": round(result.rate, 3),
        "distortion": round(result.distortion, 3),
        **sketch_numbers(program, data, "test", result),
        "steps": state["position"]["step"],
        "processor_minutes": round(state["schedule"]["used"] / 60, 1),
        "validation_elbo": [round(value, 2) for value in history],
        "epochs_at_which_its_running_mean_fell": falls,
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--minutes", type=float, default=30.0)
    options.add_argument("--cores", type=int, default=2)
    options.add_argument("--encoder", type=int, default=128)
    options.add_argument("--decoder", type=int, default=256)
    options.add_argument("--latent", type=int, default=16)
    options.add_argument("--beta", type=float, default=0.25)
    options.add_argument("--components", type=int, default=20)
    options.add_argument("--batch", type=int, default=100)
    options.add_argument("--learning_rate", type=float, default=2e-3)
    options.add_argument("--decay", type=float, default=0.999)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--out", type=Path, default=Path("runs/sketch_omniglot"))
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    started = time.monotonic()
    data = load_data("omniglot_strokes")
    results: dict[str, Any] = {}
    for name in ("conditional", "decoder"):
        program, state = train(name, args, data)
        results[name] = numbers(program, state, data)
    pair = [results[name]["distortion_per_movement"] for name in ("decoder", "conditional")]
    results["nats_a_movement_below_the_decoder"] = round(pair[0] - pair[1], 3)
    results["floor_of_the_rate"] = FLOOR * args.latent
    results["wall_minutes_of_this_process"] = round((time.monotonic() - started) / 60, 1)
    configuration = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    save("sketch_omniglot", configuration, results)


if __name__ == "__main__":
    main()
