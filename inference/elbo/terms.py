"""Log densities of K particles, site by site, with the plates they stand in.

Shapes: K particles; plates: right-aligned, as in Pyro, one of size 1 where a site is not in it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from pyro.poutine import Trace
from torch import Tensor

from inference.elbo.traces import (
    PARTICLES,
    Site,
    Traces,
    log_prob_of,
    masked_log_prob,
    sample_sites,
)
from ppl_models.errors import ProgramError

Plates = frozenset[tuple[str, int]]
"""Name and dimension of vectorized plates."""
Scale = float | Tensor


@dataclass(frozen=True)
class Term:
    """The log density of one site."""

    log_prob: Tensor
    """(K, plates...), masked, without scale."""
    score: Tensor
    """The same without mask: of the draw as it was made."""
    mask: Tensor | None
    """(K, plates...), or None."""
    scale: Scale
    """Of subsampling and ``poutine.scale``."""
    plate_scale: float
    """Of subsampling alone."""
    plates: Plates
    slices: frozenset[tuple[str, int]]
    """Name of sequential plates, and the turn that the site was drawn in."""
    observed: bool
    reparameterized: bool
    """Whether its draws carry a gradient."""
    auxiliary: bool
    """An auxiliary loss, part of the objective and of no weight."""

    def scaled(self) -> Tensor:
        """With the scale: what it adds to the ELBO."""
        return self.log_prob if same(self.scale, 1.0) else self.log_prob * self.scale

    def of_another_turn(self, slices: frozenset[tuple[str, int]]) -> bool:
        """Whether it was drawn in another turn of one of these sequential plates."""
        mine = dict(self.slices)
        return any(mine.get(name, turn) != turn for name, turn in slices)


@dataclass(frozen=True)
class Terms:
    """The terms of guide and model, in the order in which each drew them."""

    model: dict[str, Term]
    guide: dict[str, Term]

    def units(self) -> Plates:
        """The plates that every site stands in: across them, the data are independent.

        Weights belong to one element of these plates, such as a datum.
        """
        terms = [t for t in (*self.model.values(), *self.guide.values()) if not t.auxiliary]
        return frozenset.intersection(*(t.plates for t in terms))

    def own_plates(self, site: str) -> Plates:
        """The plates across which a guide site's draws cannot meet: its costs are per element.

        They meet in a later site of the guide that stands outside a plate and may depend on all.
        """
        order = [*self.guide]
        later = [self.guide[name].plates for name in order[order.index(site) + 1 :]]
        return self.guide[site].plates.intersection(*later)

    def own_slices(self, site: str) -> frozenset[tuple[str, int]]:
        """The same of sequential plates: those that no later site of the guide stands outside."""
        order = [*self.guide]
        names = [{n for n, _ in self.guide[o].slices} for o in order[order.index(site) + 1 :]]
        return frozenset(s for s in self.guide[site].slices if all(s[0] in n for n in names))

    def score_sites(self) -> list[str]:
        """Guide sites whose draws carry no gradient."""
        return [name for name, term in self.guide.items() if not term.reparameterized]

    def elbo(self, *, without: Iterable[str] = ()) -> Tensor:
        """Mean over particles of Σ log p − Σ log q, scaled: a scalar.

        Args:
            without: guide sites whose log q counts with its value but without its gradient; it
                is zero in expectation where the site's draws carry none.
        """
        log_p = [term.scaled().sum() for term in self.model.values()]
        log_q = [
            (term.scaled().detach() if name in without else term.scaled()).sum()
            for name, term in self.guide.items()
        ]
        return (sum(log_p[1:], log_p[0]) - sum(log_q)) / self.num_particles

    @property
    def num_particles(self) -> int:
        """K."""
        return len(next(iter(self.model.values())).log_prob)

    def auxiliary(self) -> Tensor | None:
        """−auxiliary losses of each particle, (K,), or None if there are none."""
        found = [
            t.scaled().reshape(self.num_particles, -1).sum(1)
            for t in self.model.values()
            if t.auxiliary
        ]
        return sum(found[1:], found[0]) if found else None


def terms_of(runs: list[Traces], depth: float) -> Terms:
    """The log densities of particles.

    Args:
        runs: one a particle, or a single one with all of them in an outermost plate.
        depth: of nested plates, that of the particles included.

    Raises:
        ProgramError: particles have different sites.
    """
    return Terms(gather([r.model for r in runs], depth), gather([r.guide for r in runs], depth))


def gather(traces: list[Trace], depth: float) -> dict[str, Term]:
    """The terms of the guide's runs, or of the model's."""
    sites = [dict(sample_sites(trace)) for trace in traces]
    every, common = set().union(*sites), set(sites[0]).intersection(*sites)
    if every != common:
        raise ProgramError(
            "this estimator compares particles site by site, but they differ in their sites: "
            f"{', '.join(sorted(every - common))}. Use "
            "'score_function' or 'pathwise' for programs of changing structure."
        )
    return {name: _term([s[name] for s in sites], int(depth)) for name in sites[0]}


def _term(sites: list[Site], depth: int) -> Term:
    first = sites[0]
    frames = [f for f in first["cond_indep_stack"] if f.name != PARTICLES]
    vectorized = len(frames) < len(first["cond_indep_stack"])
    masks = [site["mask"] for site in sites if isinstance(site["mask"], Tensor)]
    log_prob = stacked([masked_log_prob(site) for site in sites], depth, vectorized)
    masked = any(site["mask"] is not None for site in sites)
    return Term(
        mask=stacked(masks, depth, vectorized) if masks else None,
        log_prob=log_prob,
        score=stacked([log_prob_of(s) for s in sites], depth, vectorized) if masked else log_prob,
        scale=first["scale"],
        plates=plates_of(first),
        plate_scale=math.prod((f.full_size or f.size) / f.size for f in frames if f.vectorized),
        slices=frozenset((f.name, f.counter) for f in frames if not f.vectorized),
        observed=bool(first["is_observed"]),
        reparameterized=bool(first["fn"].has_rsample),
        auxiliary=bool(first["infer"].get("is_auxiliary_loss")),
    )


def plates_of(site: Site) -> Plates:
    """The vectorized plates of a site, but that of the particles."""
    return frozenset(
        (f.name, f.dim) for f in site["cond_indep_stack"] if f.vectorized and f.name != PARTICLES
    )


def stacked(parts: list[Tensor], depth: int, vectorized: bool) -> Tensor:
    """What each particle has at a site, (batch...), as one tensor (K, plates...).

    Args:
        parts: one a particle, or a single one with all of them in an outermost plate.
        depth: of nested plates, that of the particles included.
        vectorized: whether there is such a plate.
    """
    padded = [part.reshape((1,) * (depth - part.dim()) + part.shape) for part in parts]
    return padded[0] if vectorized else torch.stack(padded)


def sum_to(value: Tensor, plates: Plates, target: Plates) -> Tensor:
    """Sum out the plates that the target is not in; their dimensions stay, of size one."""
    dims = [dim for _, dim in plates - target]
    return value.sum(dims, keepdim=True) if dims else value


def same(scale: Scale, other: Scale) -> bool:
    """Whether two scales are one; of tensors, no value is read."""
    if isinstance(scale, Tensor) or isinstance(other, Tensor):
        return scale is other
    return scale == other
