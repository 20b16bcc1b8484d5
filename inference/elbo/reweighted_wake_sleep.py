"""Reweighted wake-sleep: model and guide by one set of importance weights."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from inference.elbo.base import value_neutral
from inference.elbo.checks import check_no_points, check_no_subsampled_joint
from inference.elbo.score import ScoreEstimator
from inference.elbo.terms import sum_to
from inference.elbo.traces import Traces
from inference.elbo.weighted import weights_of


class ReweightedWakeSleep(ScoreEstimator):
    """Wake-θ for the model and wake-φ for the guide.

    The model's gradient is that of the K-sample bound, Σ_k w̃_k ∇ log p(x, z_k). The guide's is
    Σ_k w̃_k ∇ log q(z_k), which lowers KL(p(z | x) ‖ q(z)) instead of a bound; as an estimate of
    that gradient it is biased by O(1/K). Weights are normalized for each datum.

    References:
        Bornschein, Bengio: Reweighted Wake-Sleep, 2015, arXiv:1406.2751.
        Le, Kosiorek, Siddharth, Teh, Wood: Revisiting Reweighted Wake-Sleep, 2019,
        arXiv:1805.10469.
    """

    name: ClassVar[str] = "reweighted_wake_sleep"
    objective: ClassVar[str] = "K-sample bound"
    target: ClassVar[str] = "K-sample bound (model), KL(p ‖ q) (guide)"
    bias: ClassVar[str] = "O(1/K)"
    min_particles: ClassVar[int] = 2
    reference: ClassVar[str] = "Le et al. 2019, arXiv:1805.10469"

    def __init__(self, num_particles: int = 2, **options: Any) -> None:
        super().__init__(num_particles, sites="all", **options)

    def _why_particles(self) -> str:
        return "of one, the normalized weight is 1 whatever it explains"

    def check(self, traces: Traces) -> None:
        """Refuse minibatches of what is one datum."""
        check_no_subsampled_joint(traces, self.name)
        check_no_points(traces, self.name)

    def surrogate(self, runs: list[Traces]) -> Tensor:
        """Σ_k w̃_k (log p(x, z_k) + log q(z_k)), with the value of the bound."""
        terms = self.terms(runs)
        weights, units = weights_of(terms), terms.units()
        normalized = weights.normalized() * weights.scale
        learned = (normalized * weights.log_p).sum()
        for term in terms.guide.values():
            log_q = sum_to(term.log_prob, term.plates, units)
            learned = learned + (normalized * log_q).sum()
        if weights.auxiliary is not None:
            learned = learned + weights.auxiliary.mean()
        return weights.objective().detach() + value_neutral(learned)
