"""The doubly reparameterized gradient of the K-sample bound (DReG)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from inference.elbo.base import value_neutral
from inference.elbo.checks import BOUND_FOR_DISCRETE, check_no_points, check_no_subsampled_joint
from inference.elbo.path import PathEstimator, through_draws
from inference.elbo.terms import Scale, Terms, same, terms_of
from inference.elbo.traces import Traces
from inference.elbo.weighted import weights_of
from ppl_models.errors import ProgramError


class DoublyReparameterized(PathEstimator):
    """The gradient of ``iwae``, with a guide's part that gains signal as K grows.

    Model: Σ_k w̃_k ∇ log p(x, z_k). Guide: Σ_k w̃_k² ∂ log w_k / ∂z_k · dz_k/dφ, by
    reparameterizing the score term of the bound's gradient once more. Where log q is weighed by β
    (KL warm-up), w̃² becomes β w̃² + (1 − β) w̃.

    References:
        Tucker, Lawson, Gu, Maddison: Doubly Reparameterized Gradient Estimators for Monte Carlo
        Objectives, 2018, arXiv:1810.04152.
    """

    name: ClassVar[str] = "doubly_reparameterized"
    objective: ClassVar[str] = "K-sample bound"
    target: ClassVar[str] = "K-sample bound"
    instead: ClassVar[str] = BOUND_FOR_DISCRETE
    reference: ClassVar[str] = "Tucker et al. 2018, arXiv:1810.04152"

    def check(self, traces: Traces) -> None:
        """Refuse draws without gradient, and minibatches of what is one datum."""
        super().check(traces)
        check_no_points(traces, self.name)
        check_no_subsampled_joint(traces, self.name)

    def _kl_weight(self, terms: Terms, scale: Scale) -> Scale:
        """β: what log q is scaled beyond the common scale."""
        first, *others = (term.scale for term in terms.guide.values())
        if not all(same(first, other) for other in others):
            raise ProgramError(
                f"estimator {self.name!r} needs one weight for all latents, and theirs differ: "
                f"{', '.join(terms.guide)}; use 'iwae'"
            )
        return 1.0 if same(first, scale) else first / scale

    def surrogate(self, runs: list[Any]) -> Tensor:
        """The bound, with the two parts of its gradient."""
        terms = terms_of(runs, self.max_plate_nesting)
        weights = weights_of(terms)
        scale = weights.scale
        if not torch.is_grad_enabled():
            return weights.objective()
        normalized = weights.normalized()
        of_model = (normalized * scale * weights.log_p).sum()
        beta = self._kl_weight(terms, scale)
        of_draws = beta * normalized.square() + (1 - beta) * normalized
        of_guide = (of_draws * scale * weights.log_w).sum()
        if weights.auxiliary is not None:
            of_model = of_model + weights.auxiliary.mean()
            of_guide = of_guide + weights.auxiliary.mean()
        through = through_draws(of_guide, runs)
        for run in runs:
            run.into_model.open = False  # what goes through the draws is all in there
        return weights.objective().detach() + value_neutral(of_model + through)
