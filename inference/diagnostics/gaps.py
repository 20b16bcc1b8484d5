"""Why an ELBO falls short of the evidence: the encoder, or the family of the posterior.

    log p(x) − L[q_φ]  =  (log p(x) − L[q*])  +  (L[q*] − L[q_φ])
                           approximation gap       amortization gap

where q* is of the guide's family with parameters of its own for every datum, refitted from where
the guide has them, the model fixed. log p(x) is estimated by importance sampling, from q* or from
the guide, whichever has the more even weights.

Shapes: B data, K draws, S particles of a step.

References:
    Cremer, Li, Duvenaud: Inference Suboptimality in Variational Autoencoders, 2018,
    arXiv:1801.03558.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor

from inference.densities import data_plate, densities_of
from inference.devices import isolated_rng
from inference.diagnostics.amortized import refusal_of
from inference.diagnostics.check import CannotTell, Check
from inference.diagnostics.fixed import fixed_parameters
from inference.diagnostics.free_parameters import Freed, has_transforms
from inference.elbo.traces import Site, log_prob_of, run_traces, sample_sites
from inference.plotting.gaps import gap_figure
from inference.summed_out import enumerates
from inference.weights import batch_size, evaluation_mode, repeat, rows_at_once
from ppl_models.errors import whole_number
from ppl_models.program import Batch, Program, as_program

PARTICLES = 16
LEARNING_RATE = 0.1
"""In scales of q, for its loc."""
ROUNDS = 6
TOLERANCE = 0.005
"""Nats per datum that another round must bring to be followed by one more."""
NOTICED, LARGE = 0.5, 5.0
"""Nats per datum."""
LEAST_ESS = 10.0
"""Effective draws below which a datum's evidence is only a lower bound."""


@dataclass(frozen=True)
class Gaps:
    """Both gaps of every datum; nats."""

    elbo: Tensor
    """L[q_φ], (B,)."""
    refitted: Tensor
    """L[q*], (B,)."""
    log_evidence: Tensor
    """Estimate of log p(x), by importance sampling, (B,)."""
    ess: Tensor
    """Effective number of the draws that it rests on, (B,)."""
    amortization_se: float
    """Monte-Carlo standard error of the mean amortization gap, given the data."""
    approximation_se: float
    """Of the mean approximation gap."""
    num_draws: int
    """K."""
    steps: int
    """Of the refit."""
    converged: bool
    """Whether the last round of the refit brought next to nothing."""
    limits: tuple[str, ...]
    """Why q* may not be the best of its family, if so; the amortization gap is then at least what
    is given here."""

    @property
    def amortization(self) -> Tensor:
        """L[q*] − L[q_φ], (B,)."""
        return self.refitted - self.elbo

    @property
    def approximation(self) -> Tensor:
        """Log p(x) − L[q*], (B,)."""
        return self.log_evidence - self.refitted

    def checks(self) -> list[Check]:
        """``amortization_gap`` and ``approximation_gap``; nats per datum."""
        return [self._amortization(), self._approximation()]

    def _amortization(self) -> Check:
        value = float(self.amortization.mean())
        numbers = {"se": self.amortization_se, "elbo": float(self.elbo.mean()), "steps": self.steps}
        parts = [
            f"An encoder that fitted every datum would gain {value:.3f} ± "
            f"{2 * self.amortization_se:.3f} nats per datum"
        ]
        if not self.converged:
            parts.append("at least, for the refit had not converged (give more `steps`)")
        parts += [f"at least, for {limit}" for limit in self.limits]
        message = ", ".join(parts) + "."
        verdict = _verdict(value, self.amortization_se)
        if verdict != "ok":
            message += " A larger encoder, or longer training of it, would help."
        elif not self.converged:
            verdict = "cannot tell"
        return Check("amortization_gap", verdict, message, value, NOTICED, numbers)

    def _approximation(self) -> Check:
        value = float(self.approximation.mean())
        poor = float((self.ess < LEAST_ESS).double().mean())
        numbers = {
            "se": self.approximation_se,
            "log_evidence": float(self.log_evidence.mean()),
            "median_ess": float(self.ess.median()),
            "share_of_poor_ess": poor,
        }
        message = (
            f"The best posterior of the guide's family falls {value:.3f} ± "
            f"{2 * self.approximation_se:.3f} nats per datum short of log p(x)."
        )
        verdict = _verdict(value, self.approximation_se)
        if verdict != "ok":
            message += " A richer family (full covariance, a flow) would help."
        if poor > 0.1:
            message += (
                f" The estimate of log p(x) rests on fewer than {LEAST_ESS:.0f} effective draws "
                f"for {poor:.0%} of the data, so the gap is larger than that."
            )
            verdict = "cannot tell" if verdict == "ok" else verdict
        return Check("approximation_gap", verdict, message, value, NOTICED, numbers)

    def figures(self) -> dict[str, Figure]:
        """``gaps``: both gaps of every datum, and their means."""
        return {"gaps": gap_figure(self.amortization.numpy(), self.approximation.numpy())}


def _verdict(value: float, error: float) -> str:
    certain = value - 2 * error
    return "bad" if certain > LARGE else "warning" if certain > NOTICED else "ok"


class _Draws(NamedTuple):
    """What K draws say of each datum, (B,)."""

    elbo: Tensor
    iwae: Tensor
    ess: Tensor
    log_weights: Tensor
    """(K, B)."""


def inference_gaps(
    program: object, batch: Batch, *, num_draws: int = 1000, steps: int = 300, seed: int = 0
) -> Gaps:
    """Refit the guide's distributions to every datum, and say what that gains.

    Args:
        program: any object with ``model`` and ``guide``; the guide's latents are local and
            reparameterized.
        batch: fields (B, ...), some tens of data or hundreds.
        num_draws: K, for each ELBO and for log p(x).
        steps: of Adam a round; there are at most six rounds, and no more than are needed.
        seed: of the draws; the global random state is left as it was.

    Returns:
        A :class:`Gaps`.

    Raises:
        CannotTell: a latent is global, discrete, a point or summed out, its distribution does not
            tell its parameters, or the guide has its own for each datum.
    """
    num_draws = whole_number("num_draws", num_draws, 10)
    steps = whole_number("steps", steps)
    program = as_program(program)
    with evaluation_mode(program), isolated_rng(seed), program.scope():
        freed, limits = _free(program, batch)
        with fixed_parameters(program):
            before = _draws(program, batch, freed, num_draws, seed, moved=False)
            taken, converged = _refit(program, batch, freed, steps, seed)
            after = _draws(program, batch, freed, num_draws, seed, moved=True)
    best = max(before, after, key=lambda found: float(found.ess.mean()))
    gain = (after.log_weights - before.log_weights).var(0) / num_draws
    short = (num_draws / best.ess - 1) / num_draws + after.log_weights.var(0) / num_draws
    size = batch_size(batch)
    return Gaps(
        elbo=before.elbo,
        refitted=after.elbo,
        log_evidence=best.iwae,
        ess=best.ess,
        amortization_se=math.sqrt(float(gain.sum())) / size,
        approximation_se=math.sqrt(float(short.sum())) / size,
        num_draws=num_draws,
        steps=taken,
        converged=converged,
        limits=limits,
    )


@torch.no_grad()
def _free(program: Program, batch: Batch) -> tuple[Freed, tuple[str, ...]]:
    """The guide's parameters set free, and what keeps them from being all of them."""
    runs = [run_traces(program.run_model, program.run_guide, (batch,), {}) for _ in range(2)]
    traces = runs[0]
    sites = dict(sample_sites(traces.guide))
    if not sites:
        raise CannotTell("the guide samples nothing, so there is no posterior to refit")
    if enumerates(traces):
        raise CannotTell(
            "the model sums a latent out; a refit of the other latents under that sum is not done"
        )
    freed = Freed(traces, data_plate(traces.model, batch_size(batch)))
    refusal = refusal_of(program, repeat(batch, 2))
    if refusal is not None:
        raise CannotTell(
            f"the guide runs on these data, and fails on the same twice over ({refusal}), as one "
            "does that has parameters of its own for each datum: it is not amortized"
        )
    limits = []
    other = dict(sample_sites(runs[1].guide))
    parents = [n for n in sites if len(sites) > 1 and _depends(sites[n], other[n])]
    if parents:
        limits.append(
            f"{', '.join(map(repr, parents))} kept how its parameters depend on the latents before"
        )
    flows = [name for name, site in sites.items() if has_transforms(site["fn"])]
    if flows:
        limits.append(f"the transforms of {', '.join(map(repr, flows))} were kept")
    return freed, tuple(limits)


def _depends(site: Site, other: Site) -> bool:
    """Whether a site's distribution is another one when other latents are drawn before it."""
    if has_transforms(site["fn"]):
        return False  # of a value from elsewhere its density may be unknown
    return not torch.allclose(log_prob_of(site), other["fn"].log_prob(site["value"]), rtol=1e-4)


def _log_weights(
    program: Program, batch: Batch, freed: Freed, particles: int, moved: bool
) -> Tensor:
    """Of the guide as it is, or with its parameters moved, (S, B)."""
    freed.num_particles = particles
    wide = repeat(batch, particles)
    guide = freed(program.run_guide) if moved else program.run_guide
    traces = run_traces(program.run_model, guide, (wide,), {})
    return densities_of(traces, batch_size(wide), particles).log_weights


@torch.no_grad()
def _draws(
    program: Program, batch: Batch, freed: Freed, num: int, seed: int, moved: bool
) -> _Draws:
    """The same random numbers, whether moved or not."""
    block = max(1, min(num, rows_at_once(batch) // batch_size(batch)))
    with isolated_rng(seed + 1):
        found = [
            _log_weights(program, batch, freed, min(block, num - start), moved).double().cpu()
            for start in range(0, num, block)
        ]
    log_w = torch.cat(found)
    log_sum = log_w.logsumexp(0)
    ess = (2 * log_sum - (2 * log_w).logsumexp(0)).exp()
    return _Draws(log_w.mean(0), log_sum - math.log(num), ess, log_w)


def _refit(program: Program, batch: Batch, freed: Freed, steps: int, seed: int) -> tuple[int, bool]:
    """Maximize every datum's ELBO in the offsets. Returns the steps, and whether they suffice."""
    offsets = list(freed.offsets.values())
    value = -math.inf
    for turn in range(1, ROUNDS + 1):
        adam = torch.optim.Adam(offsets, LEARNING_RATE / turn**2, betas=(0.9, 0.99))
        means = [torch.zeros_like(offset) for offset in offsets]
        for step in range(steps):
            log_w = _log_weights(program, batch, freed, PARTICLES, moved=True)
            grads = torch.autograd.grad(-log_w.mean(0).sum(), offsets)
            for offset, grad in zip(offsets, grads, strict=True):
                offset.grad = grad
            adam.step()
            if step >= steps // 2:
                for mean, offset in zip(means, offsets, strict=True):
                    mean += offset.detach() / (steps - steps // 2)
        with torch.no_grad():  # the mean of the second half: steps wander about the optimum
            for mean, offset in zip(means, offsets, strict=True):
                offset.copy_(mean)
        now = float(_draws(program, batch, freed, 64, seed, moved=True).elbo.mean())
        if turn > 1 and now - value < TOLERANCE:
            return turn * steps, True
        value = now
    return ROUNDS * steps, False
