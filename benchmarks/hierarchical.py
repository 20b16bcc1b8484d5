"""What a step of a hierarchical VAE costs against a loss written by hand on the same nets.

The hand-written loss runs the top-down pass once, knows that every group is Normal, and has no
sites, plates or traces: the least that torch needs for the same numbers. Batch 100, Adam, float32,
one process. The arms take turns in one run; ratios are medians over rounds of the ratio within a
round, to the hand-written loss in the same mode. Compiling is not counted. Before anything is
timed, both losses are compared on the same random numbers.

    python benchmarks/hierarchical.py [--rounds 12] [--steps 2] [--threads 1] [--eager]
        [--models hvae_mnist_small ladder_vae]
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import torch
from harness import interleave, medians, parser, ratios, save
from torch import Tensor
from torch.nn import functional as F

from inference.devices import make_fabric
from inference.elbo import AnalyticKL
from inference.handlers import KLWarmup
from inference.priming import prime
from inference.step import SVIStep
from ppl_models import as_program, build
from ppl_models.grouped import MAX_LOG_SCALE, GroupedVAE

BATCH = 100
Arm = Callable[[], object]


def halves(raw: Tensor, dim: int) -> tuple[Tensor, Tensor]:
    """Loc and bounded log-scale."""
    loc, log_scale = raw.chunk(2, dim=dim)
    return loc, MAX_LOG_SCALE * (log_scale / MAX_LOG_SCALE).tanh()


def loss_by_hand(net: GroupedVAE, x: Tensor) -> Tensor:
    """−ELBO per datum of a Bernoulli likelihood, with the rates in closed form."""
    features, state = net.encoder(x), net.start()
    loss = x.new_zeros(())
    for group, scale in zip(net.groups, net.scale_of, strict=True):
        loc, log_scale = halves(group.prior(state), -net.event_dim)
        delta, log_ratio = halves(group.change(state, features[scale]), -net.event_dim)
        rate = (delta / log_scale.exp()).square() + (2 * log_ratio).exp() - 2 * log_ratio - 1
        loss = loss + 0.5 * rate.sum()
        noise = torch.randn_like(delta)
        state = group.step(state, loc + delta + (log_scale + log_ratio).exp() * noise)
    logits = net.decoder(state).reshape(x.shape)
    return (loss + F.binary_cross_entropy_with_logits(logits, x, reduction="sum")) / len(x)


LIKELIHOOD = "bernoulli"


def by_hand(name: str, x: Tensor, compiled: bool) -> Arm:
    """A step of the hand-written loss."""
    net = build(name, likelihood=LIKELIHOOD)
    optimizer = torch.optim.Adam(net.parameters(), lr=1e-3, fused=True)
    loss_of = torch.compile(loss_by_hand) if compiled else loss_by_hand

    def once() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(net, x).backward()
        optimizer.step()

    once()
    return once


def ours(name: str, x: Tensor, compiled: bool) -> Arm:
    """A step of the program by the engine."""
    program, estimator = as_program(build(name, likelihood=LIKELIHOOD)), AnalyticKL()
    estimator.prepare(prime(program, {"x": x}, None))
    optimizer = torch.optim.Adam(program.parameters(), lr=1e-3, fused=True)
    worth = (lambda rows: True) if compiled else None
    step = SVIStep(
        program, estimator, optimizer, make_fabric("cpu"), [KLWarmup(0)], len(x), None, worth
    )

    def once() -> None:
        with program.scope(), pyro.validation_enabled(False):
            step({"x": x})

    once()  # the first step is eager
    once()
    if step.compiled is not None and step.compiled.failure:
        raise RuntimeError(step.compiled.failure)
    return once


def check_same(name: str, x: Tensor) -> None:
    """Both losses, on the same random numbers."""
    net = build(name, likelihood=LIKELIHOOD)
    program, estimator = as_program(net), AnalyticKL()
    with torch.no_grad(), program.scope():
        estimator.prepare(prime(program, {"x": x}, None))
        torch.manual_seed(0)
        engine = estimator.differentiable_loss(program.run_model, program.run_guide, {"x": x})
        torch.manual_seed(0)
        hand = loss_by_hand(net, x)
    torch.testing.assert_close(engine / len(x), hand, rtol=1e-4, atol=1e-3)


def measure(name: str, rounds: int, steps: int, modes: list[bool]) -> dict[str, Any]:
    """Milliseconds a step and ratios, by mode."""
    x = (torch.rand(BATCH, 1, 28, 28) > 0.8).float()
    check_same(name, x)
    found: dict[str, Any] = {}
    for compiled in modes:
        arms = {"by hand": by_hand(name, x, compiled), "ours": ours(name, x, compiled)}
        seconds = interleave(arms, rounds, steps)
        found["compiled" if compiled else "eager"] = {
            "milliseconds": {k: round(1000 * v, 1) for k, v in medians(seconds).items()},
            "ratio": round(ratios(seconds, "by hand")["ours"], 3),
        }
    return found


def main() -> None:
    """Measure and save."""
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=12)
    options.add_argument("--steps", type=int, default=2)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--eager", action="store_true", help="leave the compiled steps out")
    options.add_argument("--models", nargs="+", default=["hvae_mnist_small", "ladder_vae"])
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    modes = [False] if args.eager else [False, True]
    found = {name: measure(name, args.rounds, args.steps, modes) for name in args.models}
    save("hierarchical", vars(args) | {"batch": BATCH}, found)


if __name__ == "__main__":
    main()
