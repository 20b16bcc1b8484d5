"""The compiled step against the eager one, stock Pyro, and a hand-written compiled loop.

Batch 128, Adam, float32, one process. The arms of a case take turns in one run; the ratios are
medians over rounds of the ratio within a round. Compiling is not counted, and told apart.

    python benchmarks/compiled_step.py [--rounds 15] [--steps 10] [--threads 2] [--cases mlp iwae]
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from harness import interleave, medians, parser, ratios, save
from pyro.infer import ELBO
from svi_step import PlainVAE
from torch import Tensor, nn

from inference.devices import make_fabric
from inference.elbo import Estimator, make_estimator
from inference.handlers import KLWarmup
from inference.priming import prime
from inference.step import SVIStep
from ppl_models import as_program
from ppl_models.vae import VAE

BATCH = 128
Step = Callable[[], object]


class ConvVAE(nn.Module):
    """Two convolutions in, two out."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(
            nn.Conv2d(1, 16, 4, 2, 1), nn.ReLU(), nn.Conv2d(16, 32, 4, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(32 * 49, 40),
        )  # fmt: skip
        self.project = nn.Linear(20, 32 * 49)
        self.decoder = nn.Sequential(
            nn.ConvTranspose2d(32, 16, 4, 2, 1), nn.ReLU(), nn.ConvTranspose2d(16, 1, 4, 2, 1)
        )

    def model(self, x: Tensor) -> None:
        """Draw z, then the pixels."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Normal(torch.zeros(20), 1.0).to_event(1))
            logits = self.decoder(self.project(z).relu().unflatten(-1, (32, 7, 7)))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw z given the pixels."""
        with pyro.plate("data", len(x), dim=-1):
            loc, raw = self.encoder(x).chunk(2, dim=-1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw) + 1e-4).to_event(1))


class Mixture(nn.Module):
    """Twenty diagonal Gaussians over 64 dimensions; which one is summed out."""

    def __init__(self) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(20))
        self.locs = nn.Parameter(torch.randn(20, 64))
        self.log_scales = nn.Parameter(torch.zeros(20, 64))

    def model(self, x: Tensor) -> None:
        """Draw a component, then a datum from it."""
        with pyro.plate("data", len(x), dim=-1):
            component = dist.Categorical(logits=self.logits)
            c = pyro.sample("c", component, infer={"enumerate": "parallel"})
            fn = dist.Normal(self.locs[c], self.log_scales[c].exp()).to_event(1)
            pyro.sample("x", fn, obs=x)

    def guide(self, x: Tensor) -> None:
        """Nothing is left to draw."""


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


def ours(case: Case, x: Tensor, compiled: bool) -> tuple[Step, float]:
    """A step, and the seconds that its first one took."""
    program = as_program(case.program())
    estimator: Any = make_estimator(case.estimator, case.particles, vectorize_particles=True)
    traces = prime(program, {"x": x}, None)
    assert isinstance(estimator, Estimator)
    estimator.prepare(traces)
    optimizer = torch.optim.Adam(program.parameters(), lr=1e-3, fused=True)
    worth = (lambda rows: True) if compiled else None
    step = SVIStep(
        program, estimator, optimizer, make_fabric("cpu"), KLWarmup(0), len(x), compile_worth=worth
    )

    def once() -> None:
        with program.scope(), pyro.validation_enabled(False):
            step({"x": x})

    once()
    started = time.perf_counter()
    once()
    if compiled and step.compiled is not None and step.compiled.failure:
        raise RuntimeError(step.compiled.failure)
    return once, time.perf_counter() - started


def stock(case: Case, x: Tensor) -> Step:
    program = case.program()
    own: dict = {"params": {}, "constraints": {}}
    svi = pyro.infer.SVI(
        lambda x: (pyro.module("program", program), program.model(x)),
        program.guide,
        pyro.optim.Adam({"lr": 1e-3}),
        case.stock(),
    )

    def once() -> None:
        with pyro.get_param_store().scope(own):
            svi.step(x)

    return once


def by_hand(x: Tensor, compiled: bool) -> Step:
    model = PlainVAE()
    loss_of = torch.compile(model.loss) if compiled else model.loss
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def once() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(x).backward()
        optimizer.step()

    once()
    return once


def run(name: str, case: Case, rounds: int, steps: int) -> dict[str, Any]:
    """The arms of a case."""
    x = (torch.rand(BATCH, *case.shape) > 0.8).float()
    eager, _ = ours(case, x, compiled=False)
    fast, seconds = ours(case, x, compiled=True)
    arms: dict[str, Step] = {"compiled": fast, "eager": eager, "stock SVI.step": stock(case, x)}
    if name == "mlp":
        arms["torch by hand"] = by_hand(x, compiled=False)
        arms["torch.compile by hand"] = by_hand(x, compiled=True)
    timed = interleave(arms, rounds, steps)
    result: dict[str, Any] = {
        "milliseconds": {k: round(v * 1e3, 3) for k, v in medians(timed).items()},
        "compiled_to_stock": round(ratios(timed, "stock SVI.step")["compiled"], 3),
        "compiled_to_eager": round(ratios(timed, "eager")["compiled"], 3),
        "seconds_to_trace_and_compile": round(seconds, 1),
    }
    if name == "mlp":
        by = ratios(timed, "torch.compile by hand")["compiled"]
        result["compiled_to_torch_compile_by_hand"] = round(by, 3)
    return result


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--steps", type=int, default=10)
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--cases", nargs="*", default=list(CASES), choices=list(CASES))
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    results = {name: run(name, CASES[name], args.rounds, args.steps) for name in args.cases}
    save("compiled_step-cpu", vars(args) | {"batch": BATCH}, results)


if __name__ == "__main__":
    main()
