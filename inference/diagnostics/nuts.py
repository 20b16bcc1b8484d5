"""The guide against the exact posterior, as NUTS draws it with the model's parameters fixed.

Every latent dimension is compared by its mean, its standard deviation and the 1-Wasserstein
distance, in units of NUTS's standard deviation. Local latents of a few data make one posterior
whose blocks are independent; global ones are of the whole batch. Discrete latents are summed out
and not compared.

Shapes: B data, D latent dimensions of all sites and data, S draws.

References:
    Hoffman, Gelman: The No-U-Turn Sampler, JMLR 15, 2014, arXiv:1111.4246.
    Vehtari, Gelman, Simpson, Carpenter, Bürkner: Rank-normalization, folding, and localization,
    Bayesian Analysis 16, 2021, arXiv:1903.08008: when chains are to be believed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from pyro.infer.autoguide import AutoGuide
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from scipy import stats
from torch import Tensor

from inference.densities import Plate, data_plate, is_local
from inference.devices import isolated_rng
from inference.diagnostics.chains import run_chains
from inference.diagnostics.check import CannotTell, Check, cannot_tell
from inference.diagnostics.columns import full_value, row_axis
from inference.diagnostics.fixed import fixed_parameters
from inference.diagnostics.weighing import refuse_part
from inference.elbo.traces import Site, Traces, run_traces, sample_sites
from inference.plotting.nuts import posterior_intervals
from inference.sites import is_discrete
from inference.weights import batch_size, evaluation_mode, repeat
from ppl_models.errors import PplError, UnknownNameError, whole_number
from ppl_models.program import Batch, Program, as_program

MOST_R_HAT, LEAST_ESS, MOST_DIVERGENT = 1.05, 50.0, 0.01
"""Chains beyond these are not believed."""
ERRORS = 3.0
"""Standard errors of Monte Carlo that a difference must be clear of."""
MEAN, SD, DISTANCE = (0.3, 1.0), (1.25, 2.0), (0.2, 0.5)
"""From what on a difference is a warning, and bad; means and distances in standard deviations."""
FEW = 5
STARTS = ("prior", "guide")
QUANTILES = 200
_GRID = np.linspace(-8, 8, 2001)
_SPREAD = float(np.sqrt(stats.norm.cdf(_GRID) * stats.norm.sf(_GRID)).sum() * (_GRID[1] - _GRID[0]))
"""∫ √(F(1 − F)) of a normal: what chance alone makes of the Wasserstein distance of draws."""


@dataclass(frozen=True)
class AgainstNuts:
    """Every latent dimension by the guide and by NUTS; tensors (D,)."""

    names: tuple[str, ...]
    """Such as ``z[2, 0]``: of datum 2, dimension 0; of a global site without the datum."""
    nuts_mean: Tensor
    nuts_sd: Tensor
    guide_mean: Tensor
    guide_sd: Tensor
    wasserstein: Tensor
    """1-Wasserstein distance in units of ``nuts_sd``."""
    chance: Tensor
    """About what it is between draws of one distribution, as many as these."""
    r_hat: Tensor
    ess: Tensor
    """Effective draws of NUTS."""
    nuts_quantiles: Tensor
    """At 5, 25, 50, 75, 95 %, (5, D)."""
    guide_quantiles: Tensor
    divergences: int
    nuts_draws: Tensor
    """Of all chains, (S, D)."""
    guide_draws: Tensor
    """(S, D)."""

    @property
    def num_samples(self) -> int:
        """Of all chains."""
        return len(self.nuts_draws)

    @property
    def shift(self) -> Tensor:
        """Guide's mean less NUTS's, in units of NUTS's standard deviation, (D,)."""
        return (self.guide_mean - self.nuts_mean) / self.nuts_sd

    @property
    def sd_ratio(self) -> Tensor:
        """Guide's over NUTS's, (D,)."""
        return self.guide_sd / self.nuts_sd

    @property
    def trouble(self) -> str | None:
        """Why the chains are not to be believed; None if they are."""
        r_hat, ess = float(self.r_hat.max()), float(self.ess.min())
        if not math.isfinite(r_hat) or r_hat > MOST_R_HAT:
            at = self.names[int(self.r_hat.nan_to_num(math.inf).argmax())]
            return (
                f"the chains of NUTS do not agree (R-hat {r_hat:.2f} at {at}, at most {MOST_R_HAT} "
                "is believed): give more `warmup` and `num_samples`; or the posterior has several "
                "modes (such as components of a mixture numbered otherwise), and `starts='guide'` "
                "compares within the guide's"
            )
        if ess < LEAST_ESS:
            return f"NUTS has but {ess:.0f} effective draws; give more `num_samples`"
        if self.divergences > MOST_DIVERGENT * self.num_samples:
            return f"{self.divergences} of {self.num_samples} steps of NUTS diverged"
        return None

    def checks(self) -> list[Check]:
        """``nuts_mean``, ``nuts_sd`` and ``nuts_wasserstein``, of the worst dimension each."""
        if self.trouble is not None:
            names = ("nuts_mean", "nuts_sd", "nuts_wasserstein")
            return [cannot_tell(name, self.trouble) for name in names]
        noise = (1 / self.ess + 1 / len(self.guide_draws)).sqrt()
        logs, chance = self.sd_ratio.clamp_min(1e-6).log(), self.chance
        return [
            self._check("nuts_mean", self.shift, self.shift.abs() - ERRORS * noise, MEAN),
            self._check(
                "nuts_sd", self.sd_ratio, (logs.abs() - ERRORS * noise / math.sqrt(2)).exp(), SD
            ),
            self._check("nuts_wasserstein", self.wasserstein, self.wasserstein - chance, DISTANCE),
        ]

    def _check(
        self, name: str, values: Tensor, certain: Tensor, limits: tuple[float, float]
    ) -> Check:
        worst = int(certain.argmax())
        value, least = float(values[worst]), float(certain[worst])
        verdict = "bad" if least > limits[1] else "warning" if least > limits[0] else "ok"
        what = {
            "nuts_mean": f"the guide's mean is {value:+.2f} standard deviations from NUTS's",
            "nuts_sd": f"the guide's standard deviation is {value:.2f} times NUTS's",
            "nuts_wasserstein": f"the guide is {value:.2f} standard deviations from NUTS "
            "(1-Wasserstein)",
        }[name]
        message = f"At worst, at {self.names[worst]}, {what}; median {float(values.median()):.2f}."
        if verdict == "ok" and abs(value) > limits[0] and name != "nuts_sd":
            message += " With so few draws chance alone may do that."
        if name == "nuts_sd" and verdict != "ok":
            message += " Its intervals are too narrow." if value < 1 else " It is too wide."
        numbers = {
            "at": self.names[worst],
            "median": float(values.median()),
            "r_hat": float(self.r_hat.max()),
            "ess": float(self.ess.min()),
            "divergences": self.divergences,
        }
        return Check(name, verdict, message, value, limits[0], numbers)

    def figures(self) -> dict[str, Figure]:
        """``nuts``: intervals of both, of the dimensions that are furthest apart."""
        order = self.wasserstein.argsort(descending=True, stable=True)
        names = [self.names[int(i)] for i in order]
        both = (self.nuts_quantiles, self.guide_quantiles)
        return {"nuts": posterior_intervals(names, *(q[:, order].numpy() for q in both))}


def against_nuts(
    program: object,
    batch: Batch,
    *,
    max_data: int | None = None,
    num_data: int | None = None,
    num_samples: int = 500,
    warmup: int = 300,
    num_chains: int = 2,
    num_draws: int = 1000,
    starts: str = "prior",
    compile: bool = True,
    seed: int = 0,
) -> AgainstNuts:
    """Compare the guide with NUTS on the same model.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (B, ...); of a program with global latents, all data that its guide is of.
        max_data: at most the first so many are taken, five when left out; of a program with
            global latents or with an autoguide, all.
        num_data: size of the data set that the guide of global latents was fitted to; the batch
            is all of it when left out.
        num_samples: of each chain of NUTS.
        warmup: its steps before.
        num_chains: the first starts from the guide.
        num_draws: of the guide.
        starts: of the other chains: ``prior``, which finds other modes; or ``guide``, which keeps
            to its own (a mixture with its components numbered otherwise is another mode).
        compile: trace the model for NUTS, for cheaper steps, where a trace gives the same.
        seed: of the draws; the global random state is left as it was.

    Returns:
        An :class:`AgainstNuts`; its checks cannot tell where the chains are not to be believed.

    Raises:
        CannotTell: no real-valued latent stands in model and guide, the guide is a point, the
            batch is a part of what a global posterior is about, or NUTS cannot run the model.
        PplError: ``max_data`` is fewer than the guide is of.
    """
    num_samples = whole_number("num_samples", num_samples, 20)
    warmup, num_chains = whole_number("warmup", warmup), whole_number("num_chains", num_chains)
    num_draws = whole_number("num_draws", num_draws, 20)
    if starts not in STARTS:
        raise UnknownNameError("starts", starts, STARTS)
    program = as_program(program)
    with evaluation_mode(program), isolated_rng(seed), program.scope():
        batch, shared = _part(program, batch, max_data, num_data)
        with torch.no_grad():
            runs = [
                run_traces(program.run_model, program.run_guide, (batch,), {})
                for _ in range(num_chains)
            ]
        traces = runs[0]
        plate = data_plate(traces.model, batch_size(batch))
        sites = _compared(traces)
        guide = _guide_draws(program, batch, sites, plate, num_draws, shared)
        for name, draws in guide.items():
            if bool((draws == draws[0]).all()):
                raise CannotTell(f"the guide is a point at {name!r}; it has no width to compare")
        with fixed_parameters(program):
            chains = run_chains(program, batch, runs, num_samples, warmup, starts, compile)
    names, exact, ours = [], [], []
    for name, site in sites.items():
        if name not in chains.samples:
            continue
        rows = _rows_first(chains.samples[name], site, plate, 2)
        names += _names(name, rows.shape[2:])
        exact.append(rows.reshape(*rows.shape[:2], -1))
        ours.append(guide[name].reshape(num_draws, -1))
    nuts, draws = torch.cat(exact, -1).double(), torch.cat(ours, -1).double()
    return _compare(tuple(names), nuts, draws, chains.divergences)


def _part(
    program: Program, batch: Batch, max_data: int | None, num_data: int | None
) -> tuple[Batch, bool]:
    """The data that are taken, and whether the guide must be run once a draw."""
    auto = any(isinstance(module, AutoGuide) for module in program.modules())
    with torch.no_grad():
        traces = run_traces(program.run_model, program.run_guide, (batch,), {})
    size = batch_size(batch)
    plate = data_plate(traces.model, size)
    shared = [name for name, site in sample_sites(traces.guide) if not is_local(site, plate)]
    if shared:
        refuse_part(shared, size, num_data)
    whole = auto or bool(shared)
    usual = size if whole else FEW
    most = usual if max_data is None else whole_number("max_data", max_data)
    if whole and most < size:
        raise PplError(
            f"max_data={most}, but the guide is of all the {size} data given: it has global "
            "latents, or parameters for each of them. Leave max_data out"
        )
    return {name: value[:most] for name, value in batch.items()}, whole


def _compared(traces: Traces) -> dict[str, Site]:
    """Real-valued latents of the model that the guide has too."""
    guide = dict(sample_sites(traces.guide))
    found = {
        name: guide[name]
        for name, site in sample_sites(traces.model)
        if name in guide and not site["is_observed"] and not is_discrete(site["fn"])
    }
    if not found:
        raise CannotTell("no real-valued latent stands both in the model and in the guide")
    return found


@torch.no_grad()
def _guide_draws(
    program: Program,
    batch: Batch,
    sites: dict[str, Site],
    plate: Plate,
    num_draws: int,
    shared: bool,
) -> dict[str, Tensor]:
    """By site, (S, ...), with the data first where they have an axis."""
    if shared:
        runs: dict[str, list[Tensor]] = {name: [] for name in sites}
        for _ in range(num_draws):
            traces = run_traces(program.run_model, program.run_guide, (batch,), {})
            for name in sites:
                site = traces.guide.nodes[name]
                runs[name].append(_rows_first(full_value(site), site, plate, 0))
        return {name: torch.stack(values) for name, values in runs.items()}
    wide = repeat(batch, num_draws)
    traces = run_traces(program.run_model, program.run_guide, (wide,), {})
    found = {}
    for name in sites:
        site = traces.guide.nodes[name]
        value = _rows_first(full_value(site), site, plate, 0)
        found[name] = value.unflatten(0, (num_draws, batch_size(batch)))
    return found


def _rows_first(value: Tensor, site: Site, plate: Plate, before: int) -> Tensor:
    """The data's axis moved to the front, behind ``before`` others; as it is of a global site."""
    return value.movedim(row_axis(site, plate), before) if is_local(site, plate) else value


def _names(name: str, shape: torch.Size) -> list[str]:
    inner = [", ".join(map(str, index)) for index in np.ndindex(*shape)]
    return [f"{name}[{index}]" if index else name for index in inner]


def _compare(names: tuple[str, ...], nuts: Tensor, guide: Tensor, divergences: int) -> AgainstNuts:
    """Of NUTS (chains, S, D) and of the guide (S, D)."""
    drawn = (nuts != guide[0]).any(0).any(0) | (guide != guide[0]).any(0)
    nuts, guide = nuts[..., drawn], guide[:, drawn]  # a Cholesky factor has its zeros
    names = tuple(name for name, kept in zip(names, drawn.tolist(), strict=True) if kept)
    both = nuts.flatten(0, 1)
    ess = effective_sample_size(nuts, chain_dim=0, sample_dim=1).clamp_max(len(both))
    shares = ((torch.arange(QUANTILES) + 0.5) / QUANTILES).double()
    shown = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]).double()
    away = (both.quantile(shares, 0) - guide.quantile(shares, 0)).abs().mean(0) / both.std(0)
    # E|N(0, 1)| √(1/n + 1/m) ∫ √(F(1 − F)): the distance of draws of one distribution.
    chance = math.sqrt(2 / math.pi) * _SPREAD * (1 / ess + 1 / len(guide)).sqrt()
    return AgainstNuts(
        names=names,
        nuts_mean=both.mean(0),
        nuts_sd=both.std(0),
        guide_mean=guide.mean(0),
        guide_sd=guide.std(0),
        wasserstein=away,
        chance=chance,
        r_hat=split_gelman_rubin(nuts, chain_dim=0, sample_dim=1),
        ess=ess,
        nuts_quantiles=both.quantile(shown, 0),
        guide_quantiles=guide.quantile(shown, 0),
        divergences=divergences,
        nuts_draws=both,
        guide_draws=guide,
    )
