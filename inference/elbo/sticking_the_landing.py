"""The path derivative of the ELBO ("sticking the landing")."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from inference.elbo.base import value_neutral
from inference.elbo.path import PathEstimator, through_draws
from inference.elbo.terms import terms_of
from inference.elbo.traces import sample_sites
from inference.sites import is_point


class StickingTheLanding(PathEstimator):
    """The pathwise gradient without the direct term ∂ log q(z) / ∂φ.

    That term is zero in expectation; without it the variance goes to zero as q approaches the
    posterior. Point masses (``Delta``) keep all of theirs, for they are no draws.

    References:
        Roeder, Wu, Duvenaud: Sticking the Landing, 2017, arXiv:1703.09194.
    """

    name: ClassVar[str] = "sticking_the_landing"
    reference: ClassVar[str] = "Roeder et al. 2017, arXiv:1703.09194"

    def surrogate(self, runs: list[Any]) -> Tensor:
        """The ELBO, where log q counts by way of the draws alone."""
        terms = terms_of(runs, self.max_plate_nesting)
        draws = [name for name, site in sample_sites(runs[0].guide) if not is_point(site["fn"])]
        elbo = terms.elbo(without=draws)
        if not draws or not torch.is_grad_enabled():
            return elbo
        log_q = sum(terms.guide[name].scaled().sum() for name in draws) / self.num_particles
        return elbo - value_neutral(through_draws(log_q, runs))
