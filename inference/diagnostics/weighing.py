"""The importance weights that diagnostics rest on: of each datum, or of all data together.

A latent in the data plate has a posterior for each datum, and its weights are the datum's own. A
latent outside it, a global one, has one posterior for all data; its weight is joint over them. A
program with both is weighed by its global latents: the local ones are summed out, exactly or by
importance sampling within each draw of the global ones.

Shapes: S draws, N data, M draws of the local latents within one of the global ones.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from pyro import poutine
from torch import Tensor

from inference.densities import SiteDensities, data_plate, is_local
from inference.devices import isolated_rng
from inference.diagnostics.check import CannotTell
from inference.elbo.traces import Traces, run_traces, sample_sites
from inference.sites import is_discrete, is_point
from inference.weights import (
    batch_size,
    evaluation_mode,
    particle_blocks,
    repeat,
    rows_at_once,
    run_densities,
)
from ppl_models.errors import PplError, whole_number
from ppl_models.program import Batch, Program, as_program

INNER = 32
"""Draws of local latents within one of the global ones."""
LEAST_INNER = 8
"""If the data are so many that more would take too much memory."""
MOST_NOISE = 0.5
"""Share of the variance of joint log weights that may be chance of the local draws."""
MOST_POINTWISE = 2**24
"""Numbers of log p(x_n | global draw) that are kept: 128 MiB."""


@dataclass(frozen=True)
class Weighed:
    """Log importance weights of one program on some data; float64, on the CPU."""

    local: Tensor | None
    """Log p(x_n, z_n) − log q(z_n | x_n), (N, S); None where latents are global."""
    joint: Tensor | None
    """Log p(x, z) − log q(z) over all data, (S,); None where all latents are local."""
    pointwise: Tensor | None
    """Log p(x_n | global draw), (N, S); None where there are none, or too many numbers."""
    global_sites: tuple[str, ...]
    local_sites: tuple[str, ...]
    drawn_within: int
    """M: what the local latents of each global draw were averaged over; 0 where none is drawn."""
    exact: bool
    """Whether nothing is drawn: all latents are summed out, or certain."""
    num_data: int
    single: Tensor | None = None
    """Joint log weights with one draw of the local latents, (S,), their mean over the M; the mean
    of these is the ELBO, that of ``joint`` is above it. None where ``drawn_within`` is 0."""
    noise: float = 0.0
    """Variance that the chance of the M draws gives to ``joint``: nothing that a guide of the
    global latents could mend."""

    @property
    def rows(self) -> Tensor:
        """A row of weights a datum, (N, S), or the joint ones, (1, S)."""
        if self.joint is not None:
            return self.joint.unsqueeze(0)
        assert self.local is not None
        return self.local

    @property
    def num_samples(self) -> int:
        """S."""
        return self.rows.shape[1]

    def too_noisy(self) -> str:
        """Why the joint weights do not tell of the guide of the global latents; empty if they do.

        They do not where most of their variance is chance of the local draws within each.
        """
        if self.joint is None or not self.noise > MOST_NOISE * float(self.joint.var()):
            return ""
        return (
            f"Cannot tell of {', '.join(self.global_sites)}, because most of what makes the joint "
            f"weights differ (a standard deviation of {self.noise**0.5:.2g} nats) is chance of the "
            f"{self.drawn_within} draws of {', '.join(self.local_sites)} within each: its guide is "
            "too far from its posterior, or the data are too many, for it to be averaged out. "
        )


@torch.no_grad()
def weigh(
    program: object,
    batch: Batch,
    num_samples: int = 1000,
    *,
    num_data: int | None = None,
    inner: int = INNER,
    seed: int = 0,
) -> Weighed:
    """Draw from the guide and weigh the draws.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (N, ...); all that the guide was fitted to, where latents are global.
        num_samples: S.
        num_data: size of the data set that the guide of global latents was fitted to; the batch
            is all of it when left out.
        inner: M, draws of local latents within each draw of the global ones.
        seed: of the draws; the global random state is left as it was.

    Raises:
        PplError: the program has no latents.
        CannotTell: the guide is a point; sites change from draw to draw; the batch is a part of
            what a global posterior is about.
    """
    program = as_program(program)
    whole_number("num_samples", num_samples, 2)
    whole_number("inner", inner)
    with evaluation_mode(program), isolated_rng(seed, "weigh"):
        refuse_points(program, batch, num_data)
        first = run_densities(program, batch, 1, num_data)
        if not first.kl:
            raise PplError(no_latents(program))
        if first.exact and any(name in first.posterior for name in _in_guide(program, batch)):
            raise CannotTell(
                f"the guide names one state of {_names(list(first.prior))} with certainty, so the "
                "weights say nothing of the states that it leaves out; `evaluate` gives the bound "
                "on log p(x) that it makes"
            )
        if not first.global_sites:
            return _per_datum(program, batch, num_samples, first)
        refuse_part(first.global_sites, batch_size(batch), num_data)
        return _over_all_data(program, batch, num_samples, first, inner)


def refuse_part(global_sites: list[str], rows: int, num_data: int | None) -> None:
    """Refuse a batch that is a part of the data that a global posterior is about.

    Raises:
        CannotTell: so it is.
    """
    if num_data is not None and num_data > rows:
        raise CannotTell(
            f"the posterior of {_names(global_sites)} is about all {num_data} data, and "
            f"{rows} were given; counted {num_data / rows:.3g} times over, these would have "
            "another posterior, off by many of its standard deviations. Give all of the data"
        )


def no_latents(program: Program) -> str:
    """What to say of a program in which nothing is latent."""
    return (
        f"{program.name} has no latent sites, so there is no posterior to diagnose; "
        "`evaluate` gives its log p(x), which is exact"
    )


def refuse_points(program: Program, batch: Batch, num_data: int | None = None) -> None:
    """Refuse a guide without a density, and a program whose sites change.

    Raises:
        CannotTell: one of these.
    """
    with program.scope():
        runs = [
            run_traces(program.run_model, program.run_guide, (batch,), {"num_data": num_data})
            for _ in range(2)
        ]
    points = _points(runs[0])
    if program.deterministic_guide or points:
        named = f" at {_names(points)}" if points else ""
        raise CannotTell(
            f"the guide is a point{named}, which has no density: there is no posterior to weigh"
        )
    one, two = (
        {name: tuple(site["value"].shape) for name, site in sample_sites(run.model)} for run in runs
    )
    if one != two:
        changed = [n for n in {**one, **two} if one.get(n) != two.get(n)]
        raise CannotTell(
            f"sites or their shapes change from draw to draw ({_names(changed)}), so draws cannot "
            "be compared; give every site one shape, and hide what is not there by a mask"
        )


def _points(traces: Traces) -> list[str]:
    """Continuous latents at which the guide is a point, and no function of another draw."""
    guide, model = dict(sample_sites(traces.guide)), dict(sample_sites(traces.model))
    if any(name not in model for name in guide):
        return []  # an autoguide draws an auxiliary site and puts a point where it takes it
    return [
        name
        for name, site in guide.items()
        if is_point(site["fn"])
        and not is_point(model[name]["fn"])
        and not is_discrete(model[name]["fn"])
    ]


def _names(sites: list[str]) -> str:
    return ", ".join(map(repr, sites))


def _per_datum(program: Program, batch: Batch, num: int, first: SiteDensities) -> Weighed:
    if first.exact:
        weights = first.log_weights.expand(num, -1)
    else:
        weights = _local_weights(program, batch, num)
    return Weighed(
        local=weights.double().cpu().T,
        joint=None,
        pointwise=None,
        global_sites=(),
        local_sites=tuple(first.prior),
        drawn_within=0,
        exact=first.exact,
        num_data=batch_size(batch),
    )


def _local_weights(program: Program, batch: Batch, num: int) -> Tensor:
    """(S, N); one run a draw of a guide that has parameters of each datum."""
    try:
        blocks = particle_blocks(program, batch, num, None, rows_at_once(batch))
        return torch.cat([block.log_weights for block in blocks])
    except PplError:
        raise
    except Exception:  # whatever such a guide makes of repeated rows
        runs = [run_densities(program, batch, 1, None) for _ in range(num)]
        return torch.cat([run.log_weights for run in runs])


def _over_all_data(
    program: Program, batch: Batch, num: int, first: SiteDensities, inner: int
) -> Weighed:
    size = batch_size(batch)
    fitting = max(LEAST_INNER, rows_at_once(batch) // size)
    within = min(inner, fitting) if _draws_local(program, batch) else 0
    rows = repeat(batch, max(1, within))
    joint, pointwise, single, noise = [], [], [], []
    keep = num * size <= MOST_POINTWISE
    for _ in range(num):
        run = _within(program, rows, max(1, within))
        weights = run.log_weights.double()  # (M, N)
        each = weights.logsumexp(0) - math.log(max(1, within))  # (N,)
        shared = sum(v[0].double() for v in run.kl.values() if v.dim() == 1)
        joint.append((each.sum() - shared).cpu())
        single.append((weights.mean(0).sum() - shared).cpu())
        noise.append(_noise(weights))
        if keep:
            pointwise.append(each.cpu())
    return Weighed(
        local=None,
        joint=torch.stack(joint),
        pointwise=torch.stack(pointwise, 1) if keep else None,
        global_sites=tuple(n for n, v in first.prior.items() if v.dim() == 1),
        local_sites=tuple(n for n, v in first.prior.items() if v.dim() == 2),
        drawn_within=within,
        exact=False,
        num_data=size,
        single=torch.stack(single) if within else None,
        noise=sum(noise) / num,
    )


def _noise(log_weights: Tensor) -> float:
    """Variance of Σ_n log mean_m w_mn, of (M, N) log weights: delta method; 0 of one draw."""
    num = len(log_weights)
    if num < 2:
        return 0.0
    shares = log_weights.softmax(0)
    return float((shares.square().sum(0) - 1 / num).sum()) * num / (num - 1)


def _in_guide(program: Program, batch: Batch) -> list[str]:
    """The guide's sites."""
    with program.scope():
        return [n for n, _ in sample_sites(poutine.trace(program.run_guide).get_trace(batch))]


def _draws_local(program: Program, batch: Batch) -> bool:
    """Whether the guide draws latents of each datum, beside the global ones."""
    with program.scope():
        traces = run_traces(program.run_model, program.run_guide, (batch,), {"num_data": None})
    plate = data_plate(traces.model, batch_size(batch))
    return any(is_local(site, plate) for _, site in sample_sites(traces.guide))


def _within(program: Program, rows: Batch, within: int) -> SiteDensities:
    """One draw of the global latents with M of the local ones: repeated rows share the first."""
    try:
        return run_densities(program, rows, within, None)
    except PplError:
        raise
    except Exception as error:
        if within == 1:
            raise
        raise CannotTell(
            "the guide draws local latents beside global ones and cannot be run on repeated data "
            "(it has parameters of its own for each datum?), so the local ones cannot be averaged "
            f"out; the run failed by {type(error).__name__}: {str(error).splitlines()[0][:120]}"
        ) from error
