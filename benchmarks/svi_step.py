"""What a step of SVI costs: ours, compiled and eager, stock Pyro, torch by hand, and numpyro.

Batch 128, Adam, float32, one process. The arms of a case take turns in one run; the ratios are
medians over rounds of the ratio within a round. Compiling is not counted, and told apart, with the
steps after which it has paid for itself.

    python benchmarks/svi_step.py [--rounds 20] [--steps 20] [--threads 2] [--device cpu]
        [--cases mlp conv mixture iwae leave_one_out evaluation]

The arm of numpyro (``pip install numpyro``) is left out where it is not installed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from harness import interleave, medians, parser, ratios, save
from programs import ConvVAE, Mixture, PlainVAE
from pyro.infer import ELBO
from torch import Tensor, nn

from inference.compiled_weights import CompiledDensities
from inference.devices import make_fabric
from inference.elbo import Estimator, make_estimator
from inference.handlers import KLWarmup
from inference.priming import prime
from inference.step import SVIStep
from inference.weights import Take, evaluation_mode, repeat, run_densities
from ppl_models import as_program
from ppl_models.vae import VAE

BATCH = 128
Turn = Callable[[int], object]
"""So many steps."""


@dataclass
class Case:
    """A program, its estimator, and Pyro's for the same objective."""

    program: Callable[[], nn.Module]
    estimator: str
    particles: int
    stock: Callable[[], ELBO]
    shape: tuple[int, ...] = (1, 28, 28)


def mlp() -> VAE:
    return VAE(likelihood="bernoulli")


CASES = {
    "mlp": Case(mlp, "analytic_kl", 1, pyro.infer.TraceMeanField_ELBO),
    "conv": Case(ConvVAE, "analytic_kl", 1, pyro.infer.TraceMeanField_ELBO),
    "mixture": Case(
        Mixture, "enumerate", 1, lambda: pyro.infer.TraceEnum_ELBO(max_plate_nesting=1), (64,)
    ),
    "iwae": Case(
        mlp, "iwae", 50,
        lambda: pyro.infer.RenyiELBO(
            alpha=0, num_particles=50, vectorize_particles=True, max_plate_nesting=1
        ),
    ),
    "leave_one_out": Case(
        mlp, "leave_one_out", 8,
        lambda: pyro.infer.Trace_ELBO(
            num_particles=8, vectorize_particles=True, max_plate_nesting=1
        ),
    ),
}  # fmt: skip


def ours(case: Case, x: Tensor, compiled: bool) -> tuple[Turn, float]:
    """A step, and the seconds that tracing and compiling took."""
    program = as_program(case.program().to(x.device))
    estimator: Any = make_estimator(case.estimator, case.particles, vectorize_particles=True)
    traces = prime(program, {"x": x}, None)
    assert isinstance(estimator, Estimator)
    estimator.prepare(traces)
    optimizer = torch.optim.Adam(program.parameters(), lr=1e-3, fused=True)
    worth = (lambda rows: True) if compiled else None
    fabric = make_fabric(x.device.type)
    step = SVIStep(
        program, estimator, optimizer, fabric, [KLWarmup(0)], len(x), compile_worth=worth
    )

    def turn(count: int) -> None:  # in the program's scope, as ``fit`` is for a whole run
        with program.scope(), pyro.validation_enabled(False):
            for _ in range(count):
                step({"x": x})

    turn(1)
    started = time.perf_counter()
    turn(1)
    if compiled and step.compiled is not None and step.compiled.failure:
        raise RuntimeError(step.compiled.failure)
    return turn, time.perf_counter() - started


def stock(case: Case, x: Tensor, validation: bool) -> Turn:
    """``SVI.step`` as its users take it."""
    program = case.program().to(x.device)
    own: dict = {"params": {}, "constraints": {}}
    svi = pyro.infer.SVI(
        lambda x: (pyro.module("program", program), program.model(x)),
        program.guide,
        pyro.optim.Adam({"lr": 1e-3}),
        case.stock(),
    )

    def turn(count: int) -> None:
        with pyro.get_param_store().scope(own), pyro.validation_enabled(validation):
            for _ in range(count):
                svi.step(x)

    return turn


def by_hand(x: Tensor, compiled: bool) -> Turn:
    """A loop over the written-out loss."""
    model = PlainVAE().to(x.device)
    loss_of = torch.compile(model.loss) if compiled else model.loss
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def once() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(x).backward()
        optimizer.step()

    once()
    return repeated(once)


def repeated(once: Callable[[], object]) -> Turn:
    def turn(count: int) -> None:
        for _ in range(count):
            once()

    return turn


def peers(x: Tensor) -> dict[str, Turn]:
    """The same network by other means."""
    arms = {"torch by hand": by_hand(x, False), "torch.compile by hand": by_hand(x, True)}
    try:
        from numpyro_arm import numpyro_step
    except ImportError:
        print("numpyro is not installed: its arm is left out")
        return arms
    return arms | {"numpyro, jitted": repeated(numpyro_step(x))}


def synced(turn: Turn, device: torch.device, steps: int) -> Callable[[], object]:
    """So many steps, and the wait until they are done."""

    def timed() -> None:
        turn(steps)
        if device.type == "cuda":
            torch.cuda.synchronize()

    return timed


def run(name: str, case: Case, args: Any) -> dict[str, Any]:
    """The arms of a case."""
    x = (torch.rand(BATCH, *case.shape, device=args.device) > 0.8).float()
    eager, _ = ours(case, x, compiled=False)
    fast, seconds = ours(case, x, compiled=True)
    arms: dict[str, Turn] = {
        "compiled": fast,
        "eager": eager,
        "stock SVI.step": stock(case, x, validation=True),
        "stock SVI.step, validation off": stock(case, x, validation=False),
    }
    if name == "mlp":
        arms |= peers(x)
    turns = {arm: synced(turn, x.device, args.steps) for arm, turn in arms.items()}
    timed = interleave(turns, args.rounds, 1)
    each = {arm: value / args.steps for arm, value in medians(timed).items()}
    saved = each["eager"] - each["compiled"]
    return {
        "milliseconds_a_step": {arm: round(v * 1e3, 3) for arm, v in each.items()},
        "compiled_to": {
            arm: round(ratios(timed, arm)["compiled"], 3) for arm in arms if arm != "compiled"
        },
        "seconds_to_trace_and_compile": round(seconds, 1),
        "steps_that_pay_for_it": round(seconds / saved) if saved > 0 else None,
    }


def evaluation(args: Any) -> dict[str, Any]:
    """A block of an evaluation: 512 data, 32 particles each."""
    program = as_program(VAE(likelihood="bernoulli").to(args.device))
    batch = repeat({"x": (torch.rand(512, 1, 28, 28, device=args.device) > 0.8).float()}, 32)
    takes: dict[str, Take] = {"compiled": CompiledDensities(), "eager": run_densities}

    def arm(take: Take) -> Turn:
        return repeated(lambda: take(program, batch, 32, None))

    with evaluation_mode(program), torch.no_grad():
        takes["compiled"](program, batch, 32, None)  # the first block of a shape runs eagerly
        started = time.perf_counter()
        takes["compiled"](program, batch, 32, None)
        seconds = time.perf_counter() - started
        device = torch.device(args.device)
        turns = {name: synced(arm(take), device, 2) for name, take in takes.items()}
        timed = interleave(turns, args.rounds, 1)
    return {
        "milliseconds_a_block": {k: round(v * 500, 1) for k, v in medians(timed).items()},
        "compiled_to_eager": round(ratios(timed, "eager")["compiled"], 3),
        "seconds_to_trace_and_compile": round(seconds, 1),
    }


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=20)
    options.add_argument("--steps", type=int, default=20)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--device", default="cpu")
    options.add_argument(
        "--cases", nargs="*", default=[*CASES, "evaluation"], choices=[*CASES, "evaluation"]
    )
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results = {
        name: evaluation(args) if name == "evaluation" else run(name, CASES[name], args)
        for name in args.cases
    }
    save(f"svi_step-{args.device}", vars(args) | {"batch": BATCH}, results)


if __name__ == "__main__":
    main()
