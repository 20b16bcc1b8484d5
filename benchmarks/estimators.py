"""What each ELBO estimator costs: loss and gradients, against ``pathwise`` with as many particles.

784-400-20-400-784, Bernoulli pixels, batch 100, float32, one process, particles vectorized.
Estimators of continuous latents run on the VAE with Normal(20) latents; those of discrete latents
alone on the same networks with Bernoulli(20) latents; ``enumerate`` on the same with one latent of
8 states, against ``pathwise`` with 8 particles. The arms take turns in one run; the ratios are
medians over rounds of the ratio within a round.

    python benchmarks/estimators.py [--rounds 15] [--steps 4] [--threads 1] [--device cpu]
"""

from __future__ import annotations

from collections.abc import Callable

import pyro
import pyro.distributions as dist
import torch
from harness import interleave, medians, parser, ratios, save
from pyro.infer import ELBO
from torch import Tensor, nn

from inference.elbo import ESTIMATORS, make_estimator
from ppl_models import as_program
from ppl_models.vae import VAE

BATCH, LATENT, STATES = 100, 20, 8
DISCRETE = ("disarm", "rebar", "relax", "gumbel_softmax", "straight_through")


class DiscreteVAE(nn.Module):
    """The VAE's networks around a discrete latent.

    Args:
        latent: from logits (..., D) to the distribution of z, with an event of D dimensions.
        dim: D.
    """

    def __init__(self, latent: Callable[[Tensor], dist.Distribution], dim: int) -> None:
        super().__init__()
        self.latent = latent
        self.prior_logits = nn.Parameter(torch.zeros(dim))
        self.encoder = nn.Sequential(nn.Linear(784, 400), nn.ReLU(), nn.Linear(400, dim))
        self.decoder = nn.Sequential(nn.Linear(dim, 400), nn.ReLU(), nn.Linear(400, 784))

    def model(self, x: Tensor) -> None:
        """Draw z, then the pixels."""
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", self.latent(self.prior_logits))
            logits = self.decoder(z).unflatten(-1, (1, 28, 28))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(3), obs=x)

    def guide(self, x: Tensor) -> None:
        """Draw z given the pixels."""
        with pyro.plate("data", len(x), dim=-1):
            pyro.sample("z", self.latent(self.encoder(x.flatten(1))))


def bits(logits: Tensor) -> dist.Distribution:
    return dist.Bernoulli(logits=logits).to_event(1)


def one_of(logits: Tensor) -> dist.Distribution:
    return dist.OneHotCategorical(logits=logits)


def gradient(program: nn.Module, estimator: ELBO, x: Tensor) -> Callable[[], None]:
    """Loss and gradients, once."""
    program = as_program(program).to(x.device)

    def once() -> None:
        with program.scope(), pyro.validation_enabled(False):
            for parameter in program.parameters():
                parameter.grad = None
            loss = estimator.differentiable_loss(program.run_model, program.run_guide, {"x": x})
            loss.backward()

    return once


def arms(x: Tensor, particles: int) -> dict[str, Callable[[], None]]:
    """Every estimator that can do with so many particles, each on its program."""
    found = {}
    for name, cls in ESTIMATORS.items():
        if particles < cls.min_particles:
            continue
        if name == "enumerate":
            if particles != STATES:
                continue
            program, estimator = DiscreteVAE(one_of, STATES), make_estimator(name)
        else:
            discrete = name in DISCRETE
            program = DiscreteVAE(bits, LATENT) if discrete else VAE(likelihood="bernoulli")
            estimator = make_estimator(name, particles, vectorize_particles=True)
        found[name] = gradient(program, estimator, x)
    return found


def timed(once: Callable[[], None], steps: int, device: str) -> Callable[[], None]:
    def turn() -> None:
        for _ in range(steps):
            once()
        if device != "cpu":
            torch.cuda.synchronize()

    return turn


def main() -> None:
    options = parser(__doc__)
    options.add_argument("--rounds", type=int, default=15)
    options.add_argument("--steps", type=int, default=4)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--device", default="cpu")
    args = options.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    x = (torch.rand(BATCH, 1, 28, 28, device=args.device) > 0.8).float()
    results = {}
    for particles in (1, 8):
        turns = {n: timed(f, args.steps, args.device) for n, f in arms(x, particles).items()}
        seconds = interleave(turns, args.rounds, 1)
        results[f"{particles} particle(s)"] = {
            "milliseconds": {
                n: round(v * 1e3 / args.steps, 2) for n, v in medians(seconds).items()
            },
            "ratio_to_pathwise": {n: round(v, 2) for n, v in ratios(seconds, "pathwise").items()},
        }
    save(f"estimators-{args.device}", vars(args) | {"batch": BATCH}, results)


if __name__ == "__main__":
    main()
