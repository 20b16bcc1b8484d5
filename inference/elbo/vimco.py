"""The K-sample bound by the score function, with baselines from the other particles (VIMCO).

Shapes: K particles; units: the elements of the plates that all sites share, such as the data.
"""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from inference.elbo.base import value_neutral
from inference.elbo.checks import check_no_subsampled_joint
from inference.elbo.leave_one_out import excess_over_others
from inference.elbo.score import ScoreEstimator
from inference.elbo.terms import sum_to
from inference.elbo.traces import Traces
from inference.elbo.weighted import weights_of


class VIMCO(ScoreEstimator):
    """E[log (1/K) Σ_k p(x, z_k) / q(z_k)], per datum, for latents of any kind.

    A particle's learning signal is what the bound gains by it: the bound, less the bound with
    the particle's weight replaced by the geometric mean of the others'.

    References:
        Mnih, Rezende: Variational inference for Monte Carlo objectives, 2016, arXiv:1602.06725.
    """

    name: ClassVar[str] = "vimco"
    objective: ClassVar[str] = "K-sample bound"
    target: ClassVar[str] = "K-sample bound"
    min_particles: ClassVar[int] = 2
    reference: ClassVar[str] = "Mnih & Rezende 2016, arXiv:1602.06725"

    def check(self, traces: Traces) -> None:
        """Refuse minibatches of what is one datum."""
        check_no_subsampled_joint(traces, self.name)

    def surrogate(self, runs: list[Traces]) -> Tensor:
        """The bound, and the score-function sites' log q times the learning signals."""
        terms = self.terms(runs)
        weights, units = weights_of(terms), terms.units()
        signal = gain(weights.log_w.detach()) * weights.scale
        if weights.auxiliary is not None:
            others = excess_over_others(weights.auxiliary.detach()) / self.num_particles
            signal = signal + others.reshape(-1, *[1] * (signal.dim() - 1))
        score = torch.zeros(())
        for site in terms.score_sites():
            log_q = sum_to(terms.guide[site].score, terms.guide[site].plates, units)
            score = score + (log_q * signal).sum()
        return weights.objective() + value_neutral(score)


def gain(log_w: Tensor) -> Tensor:
    """What the bound gains by each particle, (K, units...).

    Args:
        log_w: (K, units...).
    """
    k = len(log_w)
    mean_of_others = (log_w.sum(0) - log_w) / (k - 1)
    itself = torch.eye(k, dtype=torch.bool, device=log_w.device)
    itself = itself.reshape(k, k, *[1] * (log_w.dim() - 1))
    replaced = torch.where(itself, mean_of_others.unsqueeze(1), log_w.unsqueeze(0))
    return log_w.logsumexp(0) - replaced.logsumexp(1)
