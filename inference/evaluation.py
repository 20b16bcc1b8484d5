"""What a program is worth on a data set: ELBO, rate, distortion, IWAE bound, bits, active units.

All of it comes from the log weights of :mod:`inference.weights`, in nats per datum, unscaled.

Shapes: K particles, B data, D latent.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from inference.collapse import collapse_note, collapsed_sites
from inference.compiled_weights import CompiledDensities
from inference.data.dataset import Split
from inference.datum_weights import DatumWeights
from inference.densities import SiteDensities
from inference.devices import isolated_rng
from inference.weights import Take, batch_size, evaluation_mode, particle_blocks, rows_at_once
from ppl_models.errors import PplError
from ppl_models.program import Batch, Program, as_program

ACTIVE_VARIANCE = 0.01
"""A latent dimension is active if Var_x E_q[z] exceeds this (Burda et al. 2016)."""


POINT = (
    "The guide is a point: elbo is log p(x, z) there (without what the program masks), no bound on "
    "log p(x)."
)
EXACT = "Nothing is latent: elbo is log p(x) itself, exactly, and no bound."


@dataclass
class Evaluation:
    """Numbers of one program on one data set; nats per datum."""

    elbo: float
    """Evidence lower bound, higher is better; unscaled."""
    elbo_se: float | None
    """Its Monte-Carlo standard error, given the data; None for a single particle."""
    rate: float
    """KL(q(z|x) ‖ p(z)), all latent sites together."""
    distortion: float
    """−E_q log p(x | z)."""
    kl: dict[str, float]
    """Rate by latent site."""
    iwae: float | None
    """log (1/K) Σ_k w_k, the K-particle bound; None where weights are not per datum."""
    iwae_se: float | None
    """Its Monte-Carlo standard error, given the data (delta method); None for one particle."""
    ess: float | None
    """Mean over data of the effective sample size over K, in (0, 1]."""
    bits_per_dim: float | None
    """From the ELBO; None where a density of these data is no probability of the originals."""
    iwae_bits_per_dim: float | None
    active_units: int | None
    """Latent dimensions in use, of the sites whose guide tells its mean; None if none does."""
    active_units_by_site: dict[str, int]
    perplexity: dict[str, float]
    """exp(entropy) of how often each state was drawn, all data and places together, by latent
    site with finitely many states (codes of a codebook)."""
    dead_codes: dict[str, int]
    """States that were never drawn, by such a site."""
    auxiliary: dict[str, float]
    """Auxiliary losses, by site; part of none of the above."""
    num_data: int
    num_particles: int
    deterministic_guide: bool
    """The guide is a point: ``elbo`` is then log p(x, z) there, and no bound on log p(x)."""
    collapsed: dict[str, float]
    """Rate of the local latent sites that tell next to nothing of a datum: below 0.1 nats."""
    note: str | None = None
    """What ``elbo`` is, where it is no bound on log p(x), and what collapsed sites mean."""

    def __str__(self) -> str:
        rows = {k: v for k, v in self.to_dict().items() if v is not None and v is not False}
        return "\n".join(f"{k:<22}{v}" for k, v in rows.items() if v != {})

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """What a notebook shows: one number a line."""
        printer.text(str(self))

    def to_dict(self) -> dict[str, Any]:
        """The numbers under their names, ready for JSON."""
        return asdict(self)


def evaluate(
    program: object,
    batches: Iterable[Batch] | Batch | Split,
    *,
    num_particles: int = 1,
    num_data: int | None = None,
    log_jacobian: float | None = None,
    max_rows: int | None = None,
    seed: int = 0,
    compile: bool | str = "auto",
) -> Evaluation:
    """Evaluate a program.

    Args:
        program: any object with ``model`` and ``guide``.
        batches: a split of a data set, dicts of fields (B, ...) on the program's device, or one.
        num_particles: K, importance samples per datum.
        num_data: size of the training set, for programs that name it; the KL of global latents
            is divided by it (by the number of data given, when left out).
        log_jacobian: log |dx/du| per dimension (nats) from the values that ``x`` is counted in
            (0 for binary data, −log 256 for dequantized bytes scaled to [0, 1]); None: no bits.
        max_rows: particles times data that are run at once; bounds the memory. When left out
            16,384, or fewer of data of more than 1,024 numbers.
        seed: of the draws; the global random state is left as it was.
        compile: run the program by a compiled graph, the same to rounding: True, False, or
            ``auto``: if blocks of one shape come so often that it pays.

    Returns:
        An :class:`Evaluation`.

    Raises:
        PplError: there are no data, or ``num_particles`` is not positive.
    """
    take = CompiledDensities.asked(compile)
    return evaluate_by(
        take,
        as_program(program),
        batches,
        num_particles,
        num_data,
        log_jacobian=log_jacobian,
        max_rows=max_rows,
        seed=seed,
    )


def evaluate_by(
    take: Take,
    program: Program,
    batches: Iterable[Batch] | Batch | Split,
    num_particles: int,
    num_data: int | None,
    *,
    log_jacobian: float | None = None,
    max_rows: int | None = None,
    seed: int = 0,
) -> Evaluation:
    """As :func:`evaluate`, which see, by a given way of running the program."""
    if num_particles < 1:
        raise PplError(f"num_particles must be at least 1, got {num_particles}")
    totals = _Totals(num_particles, num_data)
    with evaluation_mode(program), isolated_rng(seed):
        for batch in as_batches(batches):
            _add_batch(totals, program, batch, take, max_rows)
    return totals.result(log_jacobian, program.deterministic_guide)


def as_batches(given: Any) -> Iterable[Batch]:
    """Batches of a split, of one batch, or as they are.

    Raises:
        PplError: it is none of these.
    """
    if isinstance(given, Mapping):
        return [given]
    if hasattr(given, "batches"):
        return given.batches(512)
    if isinstance(given, Tensor) or not isinstance(given, Iterable):
        raise PplError(
            "evaluate takes a split (data.test), a batch as a dict {'x': x}, or batches; got "
            f"{type(given).__name__}"
        )
    return given


def _add_batch(
    totals: _Totals, program: Program, batch: Batch, take: Take, max_rows: int | None
) -> None:
    k, num_data = totals.num_particles, totals.training_size
    rows = max_rows or rows_at_once(batch)
    for start in range(0, batch_size(batch), rows):
        part = {name: value[start : start + rows] for name, value in batch.items()}
        weights = DatumWeights()
        for block in particle_blocks(program, part, k, num_data, rows, take):
            weights.add(block.log_weights)
            totals.add_block(block, first=weights.count == len(block.log_weights))
        totals.add_weights(weights)


def perplexity_of(counts: Tensor) -> float:
    """exp(entropy) of a distribution given by counts: so many states, if all were as frequent."""
    share = counts.double() / counts.sum()
    return float(torch.special.entr(share).sum().exp())


def _columns(means: Tensor) -> Tensor:
    """Means (B, event...) as (B, D) on the CPU."""
    return means.detach().reshape(len(means), -1).cpu()


@dataclass
class _Totals:
    """Sums over data."""

    num_particles: int
    training_size: int | None = None
    num_data: int = 0
    dims: int = 0
    discrete: bool = False
    elbo_var: float = 0.0
    iwae: float = 0.0
    iwae_var: float = 0.0
    ess: float = 0.0
    distortion: float = 0.0
    kl: dict[str, float] = field(default_factory=dict)
    global_kl: dict[str, list[float]] = field(default_factory=dict)
    auxiliary: dict[str, float] = field(default_factory=dict)
    means: dict[str, list[Tensor]] = field(default_factory=dict)
    states: dict[str, Tensor] = field(default_factory=dict)

    def add_block(self, block: SiteDensities, first: bool) -> None:
        """Take in a block of particles; their means over K add up to nats."""
        k = self.num_particles
        self.dims, self.discrete = block.dims, block.discrete
        self.distortion += float(block.distortion.double().sum()) / k
        for name, value in block.kl.items():
            if value.dim() == 2:
                self.kl[name] = self.kl.get(name, 0.0) + float(value.double().sum()) / k
            else:
                self.global_kl.setdefault(name, []).append(float(value.double().mean()))
        for name, value in block.auxiliary.items():
            self.auxiliary[name] = self.auxiliary.get(name, 0.0) + float(value.double().sum()) / k
        for name, counts in block.states.items():
            self.states[name] = self.states.get(name, 0) + counts.sum(0).cpu()
        if first:
            for name, mean in block.guide_means.items():
                self.means.setdefault(name, []).append(_columns(mean.double().mean(0)))

    def add_weights(self, weights: DatumWeights) -> None:
        """Take in a finished batch."""
        k = self.num_particles
        # In [1, K], but for rounding where all weights are equal (a collapsed posterior).
        ess = (2 * weights.log_sum - weights.log_sum_sq).exp().clamp(1, k)
        self.num_data += len(ess)
        self.iwae += float((weights.log_sum - math.log(k)).sum())
        self.ess += float(ess.sum()) / k
        if k > 1:
            self.iwae_var += float(((k / ess - 1) / (k - 1)).sum())
            self.elbo_var += float(weights.sum_sq_dev.sum()) / (k * (k - 1))

    def result(self, log_jacobian: float | None, deterministic: bool) -> Evaluation:
        """The numbers per datum."""
        n, k = self.num_data, self.num_particles
        if n == 0:
            raise PplError("there are no data to evaluate on")
        kl = {name: value / n for name, value in self.kl.items()}
        collapsed = {} if deterministic else collapsed_sites(kl)
        shares = self.training_size or n  # a global latent's KL is shared by the training data
        kl |= {name: sum(v) / len(v) / shares for name, v in self.global_kl.items()}
        rate, distortion = sum(kl.values()), self.distortion / n
        elbo = -(rate + distortion)
        per_datum = not self.global_kl and not deterministic
        iwae = self.iwae / n if per_datum else None
        spread = k > 1 and per_datum
        active = self._active_units()
        return Evaluation(
            elbo=elbo,
            elbo_se=math.sqrt(self.elbo_var) / n if spread else None,
            rate=rate,
            distortion=distortion,
            kl=kl,
            iwae=iwae,
            iwae_se=math.sqrt(self.iwae_var) / n if spread else None,
            ess=self.ess / n if per_datum else None,
            bits_per_dim=None if deterministic else self._bits(elbo, log_jacobian),
            iwae_bits_per_dim=self._bits(iwae, log_jacobian),
            active_units=sum(active.values()) if active else None,
            active_units_by_site=active,
            perplexity={name: perplexity_of(counts) for name, counts in self.states.items()},
            dead_codes={name: int((counts == 0).sum()) for name, counts in self.states.items()},
            auxiliary={name: value / n for name, value in self.auxiliary.items()},
            num_data=n,
            num_particles=k,
            deterministic_guide=deterministic,
            collapsed=collapsed,
            note=POINT if deterministic else collapse_note(collapsed) if kl else EXACT,
        )

    def _bits(self, nats: float | None, log_jacobian: float | None) -> float | None:
        if self.discrete:  # a probability of the data as they are
            log_jacobian = log_jacobian or 0.0
        if nats is None or log_jacobian is None:
            return None
        if log_jacobian == 0.0 and not self.discrete:
            return None  # a density of discrete data is no probability
        return -(nats / self.dims + log_jacobian) / math.log(2)

    def _active_units(self) -> dict[str, int]:
        found = {name: torch.cat(parts) for name, parts in self.means.items()}
        return {
            name: int((means.var(0) > ACTIVE_VARIANCE).sum())
            for name, means in found.items()
            if len(means) > 1 and not means.isnan().any()
        }
