"""A training step of Sketch-RNN against a plain torch loop on the same networks, and drawing.

Both arms take doodles in batches of 100 with Adam, the sizes of the paper, and gradient clipping;
the loop's loss is written out: encoder, a draw of z, decoder, mixture density, closed-form KL. They
take turns; the ratio is the median over rounds of the ratio within a round. The drawings are 64 of
exactly 100 movements, for which the pen is kept from ending. All is counted in processor seconds of
this process, so that a busy machine changes little; wall time is told for the drawings as well.

    python benchmarks/sketch.py [--rounds 8] [--steps 1] [--batch 100] [--threads 1]
        [--encoder 256] [--decoder 512] [--latent 128] [--components 20]
"""

from __future__ import annotations

import math
import statistics
import time
from argparse import Namespace
from collections.abc import Callable

import pyro
import torch
from harness import interleave, medians, parser, ratios, save
from torch import Tensor

from inference import load_data
from inference.devices import make_fabric
from inference.elbo import make_estimator
from inference.handlers import KLWarmup
from inference.priming import prime
from inference.sampling import sample
from inference.step import SVIStep
from ppl_models import as_program
from ppl_models.likelihoods import positive
from ppl_models.sketch_rnn import SketchDecoder, SketchRNN

CLIP = 1.0


def make(args: Namespace, rows: int) -> SketchRNN:
    torch.manual_seed(0)
    return SketchRNN((rows, 5), args.latent, args.encoder, args.decoder, args.components)


def ours(args: Namespace, x: Tensor) -> Callable[[], object]:
    """A step of the engine."""
    program, estimator = as_program(make(args, x.shape[1])), make_estimator("analytic_kl")
    estimator.prepare(prime(program, {"x": x}, None))
    optimizer = torch.optim.Adam(program.parameters(), lr=1e-3, fused=True)
    step = SVIStep(program, estimator, optimizer, make_fabric("cpu"), [KLWarmup(0)], len(x), CLIP)

    def once() -> None:
        with program.scope(), pyro.validation_enabled(False):
            step({"x": x})

    return once


def by_hand(args: Namespace, x: Tensor) -> Callable[[], object]:
    """A step of a loop that knows nothing of Pyro."""
    model = make(args, x.shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def once() -> None:
        optimizer.zero_grad()
        loss = written_out(model, x)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP)
        optimizer.step()
        float(loss.detach())

    return once


def written_out(model: SketchRNN, x: Tensor) -> Tensor:
    """The negative ELBO per drawing."""
    lengths = (x[..., 4] == 0).sum(1)
    x = x[:, : int(lengths.max()) + 1]
    loc, raw = model.code(model.encoder(x, lengths)).chunk(2, -1)
    scale = positive(raw)
    z = loc + scale * torch.randn_like(loc)
    start = x.new_tensor([0.0, 0, 1, 0, 0]).expand(len(x), 1, 5)
    outputs = model.decoder(torch.cat([start, x[:, :-1]], 1), z)
    logits, mx, my, sx, sy, r = outputs[..., :-3].chunk(6, -1)
    sx, sy, r = 5 * torch.tanh(sx / 5), 5 * torch.tanh(sy / 5), 0.999 * torch.tanh(r)
    u, v = (x[..., 0:1] - mx) / sx.exp(), (x[..., 1:2] - my) / sy.exp()
    rest = 1 - r * r
    density = -0.5 * (u * u + (v - r * u) ** 2 / rest) - sx - sy - 0.5 * rest.log()
    offset = torch.logsumexp(logits.log_softmax(-1) + density - math.log(2 * math.pi), -1)
    pen = (outputs[..., -3:].log_softmax(-1) * x[..., 2:]).sum(-1)
    rows = torch.arange(x.shape[1])
    drawn, scored = rows < lengths.unsqueeze(1), rows <= lengths.unsqueeze(1)
    kl = 0.5 * (loc * loc + scale * scale - 1) - scale.log()
    return (kl.sum() - (offset * drawn).sum() - (pen * scored).sum()) / len(x)


def seconds_to_draw(args: Namespace, num: int = 64, movements: int = 100) -> dict[str, float]:
    """Medians of three times, of drawings by the decoder alone and none ending before."""
    torch.manual_seed(0)
    program = SketchDecoder((movements + 1, 5), args.decoder, args.components)
    with torch.no_grad():
        program.decoder.output.bias[-1] = -1e4
    clocks = {"wall": time.perf_counter, "processor": time.process_time}
    taken: dict[str, list[float]] = {name: [] for name in clocks}
    for _ in range(4):
        started = {name: clock() for name, clock in clocks.items()}
        drawn = sample(program, num)["x"]
        for name, clock in clocks.items():
            taken[name].append(clock() - started[name])
    assert int((drawn[..., 4] == 0).sum()) == num * movements
    return {name: round(statistics.median(times[1:]), 2) for name, times in taken.items()}


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=8)
    options.add_argument("--steps", type=int, default=1)
    options.add_argument("--batch", type=int, default=100)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--encoder", type=int, default=256)
    options.add_argument("--decoder", type=int, default=512)
    options.add_argument("--latent", type=int, default=128)
    options.add_argument("--components", type=int, default=20)
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    x = next(iter(load_data("doodles").train.batches(args.batch)))["x"]
    timed = interleave(
        {"ours": ours(args, x), "by hand": by_hand(args, x)}, args.rounds, args.steps
    )
    results = {
        "processor_milliseconds_a_step": {k: round(v * 1e3, 1) for k, v in medians(timed).items()},
        "ours_to_by_hand": round(ratios(timed, "by hand")["ours"], 3),
        "seconds_to_draw_64_of_100_movements": seconds_to_draw(args),
    }
    save("sketch", vars(args), results)


if __name__ == "__main__":
    main()
