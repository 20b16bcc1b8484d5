"""The reparameterized ("pathwise") gradient of the ELBO."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from inference.elbo.base import (
    Estimator,
    Traces,
    require_reparameterized,
    sample_sites,
    scaled_log_prob,
)


class Pathwise(Estimator):
    """E_q[log p(x, z) − log q(z)] by draws through which the gradient flows.

    References:
        Kingma, Welling: Auto-Encoding Variational Bayes, 2014, arXiv:1312.6114.
    """

    name: ClassVar[str] = "pathwise"
    latents: ClassVar[str] = "continuous"
    reference: ClassVar[str] = "Kingma & Welling 2014, arXiv:1312.6114"

    def particle_elbo(self, traces: Traces) -> Tensor:
        """Σ log p − Σ log q over the sites."""
        log_p = [scaled_log_prob(site).sum() for _, site in sample_sites(traces.model)]
        log_q = []
        for name, site in sample_sites(traces.guide):
            require_reparameterized(name, site, self.name)
            log_q.append(scaled_log_prob(site).sum())
        return sum(log_p[1:], log_p[0]) - sum(log_q)
