"""The K-sample bound of importance weighted autoencoders."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from inference.elbo.base import Estimator
from inference.elbo.checks import (
    BOUND_FOR_DISCRETE,
    check_no_subsampled_joint,
    check_reparameterized,
)
from inference.elbo.terms import terms_of
from inference.elbo.traces import Traces
from inference.elbo.weighted import weights_of


class IWAE(Estimator):
    """E[log (1/K) Σ_k p(x, z_k) / q(z_k)], per datum, by reparameterized draws.

    With one particle it is the ELBO. The guide's gradient loses its signal as K grows, as
    1/√K; ``doubly_reparameterized`` does not.

    References:
        Burda, Grosse, Salakhutdinov: Importance Weighted Autoencoders, 2016, arXiv:1509.00519.
        Rainforth et al.: Tighter Variational Bounds are Not Necessarily Better, 2018,
        arXiv:1802.04537.
    """

    name: ClassVar[str] = "iwae"
    objective: ClassVar[str] = "K-sample bound"
    target: ClassVar[str] = "K-sample bound"
    latents: ClassVar[str] = "continuous"
    reference: ClassVar[str] = "Burda et al. 2016, arXiv:1509.00519"

    def check(self, traces: Traces) -> None:
        """Refuse draws without gradient, and minibatches of what is one datum."""
        check_reparameterized(traces, self.name, BOUND_FOR_DISCRETE)
        check_no_subsampled_joint(traces, self.name)

    def surrogate(self, runs: list[Traces]) -> Tensor:
        """The bound, which is its own surrogate."""
        return weights_of(terms_of(runs, self.max_plate_nesting)).objective()
