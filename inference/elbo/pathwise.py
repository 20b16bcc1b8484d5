"""The reparameterized ("pathwise") gradient of the ELBO."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from torch import Tensor

from inference.elbo.base import Estimator
from inference.elbo.checks import check_reparameterized, require_reparameterized
from inference.elbo.traces import Traces, sample_sites, scaled_log_prob


class Reparameterized(Estimator):
    """Base class of estimators that average over particles what each gives by itself."""

    latents: ClassVar[str] = "continuous"

    def check(self, traces: Traces) -> None:
        """Refuse draws without gradient."""
        check_reparameterized(traces, self.name)

    def surrogate(self, runs: list[Traces]) -> Tensor:
        """Mean over particles."""
        parts = [self.particle_elbo(traces) for traces in runs]
        total = sum(parts[1:], parts[0])
        return total if self.num_particles == 1 else total / self.num_particles

    @abstractmethod
    def particle_elbo(self, traces: Traces) -> Tensor:
        """The objective that one pair of traces gives (a scalar).

        With vectorized particles this is the sum over them.
        """


class Pathwise(Reparameterized):
    """E_q[log p(x, z) − log q(z)] by draws through which the gradient flows.

    References:
        Kingma, Welling: Auto-Encoding Variational Bayes, 2014, arXiv:1312.6114.
    """

    name: ClassVar[str] = "pathwise"
    reference: ClassVar[str] = "Kingma & Welling 2014, arXiv:1312.6114"

    def particle_elbo(self, traces: Traces) -> Tensor:
        """Σ log p − Σ log q over the sites."""
        log_p = [scaled_log_prob(site).sum() for _, site in sample_sites(traces.model)]
        log_q = []
        for name, site in sample_sites(traces.guide):
            require_reparameterized(name, site, self.name)
            log_q.append(scaled_log_prob(site).sum())
        return sum(log_p[1:], log_p[0]) - sum(log_q)
