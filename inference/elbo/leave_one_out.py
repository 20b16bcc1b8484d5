"""The score function with the other particles' mean cost as baseline (RLOO)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from inference.elbo.rao_blackwellized import RaoBlackwellized
from inference.elbo.terms import Terms
from inference.elbo.traces import Traces


class LeaveOneOut(RaoBlackwellized):
    """The score function, each particle's cost against the mean of the others'.

    r_k − mean_{j≠k} r_j = (r_k − mean_j r_j) K / (K − 1). It is also the gradient of the
    log-variance loss (VarGrad).

    References:
        Kool, van Hoof, Welling: Buy 4 REINFORCE Samples, Get a Baseline for Free!, 2019.
        Richter, Boustati, Nüsken, Ruiz, Akyildiz: VarGrad, 2020, arXiv:2010.10436.
    """

    name: ClassVar[str] = "leave_one_out"
    reference: ClassVar[str] = "Kool et al. 2019; Richter et al. 2020, arXiv:2010.10436"
    min_particles: ClassVar[int] = 2

    def signal(self, terms: Terms, site: str, cost: Tensor, runs: list[Traces]) -> Tensor:
        """Each particle's excess over the mean of the others."""
        return excess_over_others(cost)


def excess_over_others(values: Tensor) -> Tensor:
    """Each particle's excess over the mean of the others, (K, ...) both."""
    k = len(values)
    return (values - values.mean(0, keepdim=True)) * (k / (k - 1))
