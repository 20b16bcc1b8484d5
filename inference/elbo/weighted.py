"""Importance weights of K particles, per datum, and the bound that they give.

Shapes: K particles; units: the elements of the plates that all sites share, such as the data.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from torch import Tensor

from inference.elbo.terms import Plates, Scale, Term, Terms, same, sum_to


@dataclass(frozen=True)
class Weights:
    """Log weights of K particles.

    The scale that the observed sites share (that of a minibatch, say) stands outside the
    logarithm: a bound times a scale is a bound on the evidence times it. What a site is scaled
    beyond that (a weight of the KL term, or of one likelihood among several) stands inside, with
    the site's log density.
    """

    log_p: Tensor
    """Log p(x, z), (K, units...), in the common scale."""
    log_w: Tensor
    """(K, units...)."""
    scale: Scale
    """Of each unit's bound in the objective."""
    auxiliary: Tensor | None
    """−auxiliary losses of each particle, (K,), or None."""

    @property
    def num_particles(self) -> int:
        """K."""
        return len(self.log_w)

    def log_mean(self) -> Tensor:
        """Log (1/K) Σ_k w_k, (units...)."""
        return self.log_w.logsumexp(0) - math.log(self.num_particles)

    def normalized(self) -> Tensor:
        """w_k / Σ_j w_j, (K, units...), detached."""
        return self.log_w.detach().softmax(0)

    def objective(self) -> Tensor:
        """The bound of all units, scaled, with auxiliary losses: a scalar."""
        bound = (self.log_mean() * self.scale).sum()
        return bound if self.auxiliary is None else bound + self.auxiliary.mean()


def weights_of(terms: Terms) -> Weights:
    """The weights p(x, z) / q(z) of particles, in each unit of the data."""
    units, scale = terms.units(), common_scale(terms)
    log_p, log_q = log_joint(terms, units, scale), log_guide(terms, units, scale)
    log_w = log_p if log_q is None else log_p - log_q
    return Weights(log_p, log_w, scale, terms.auxiliary())


def log_joint(terms: Terms, units: Plates, scale: Scale) -> Tensor:
    """Log p(x, z), (K, units...), in the common scale."""
    found = [_in_units(t, units, scale) for t in terms.model.values() if not t.auxiliary]
    return sum(found[1:], found[0])


def log_guide(terms: Terms, units: Plates, scale: Scale) -> Tensor | None:
    """Log q(z), (K, units...), in the common scale; None without latents."""
    found = [_in_units(t, units, scale) for t in terms.guide.values()]
    return sum(found[1:], found[0]) if found else None


def _in_units(term: Term, units: Plates, scale: Scale) -> Tensor:
    return sum_to(_relative(term, scale), term.plates, units)


def _relative(term: Term, scale: Scale) -> Tensor:
    """A term in units of the common scale."""
    return term.log_prob if same(term.scale, scale) else term.log_prob * (term.scale / scale)


def common_scale(terms: Terms) -> Scale:
    """The scale that the observed sites share; that of their plates, where they differ."""
    observed = [t for t in terms.model.values() if t.observed and not t.auxiliary]
    if not observed:
        return 1.0
    first = observed[0]
    if all(same(t.scale, first.scale) for t in observed):
        return first.scale
    return first.plate_scale
