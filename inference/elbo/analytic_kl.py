"""The ELBO with its KL terms in closed form where there is one."""

from __future__ import annotations

from typing import ClassVar

import torch
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import kl_divergence

from inference.elbo.checks import require_reparameterized
from inference.elbo.pathwise import Reparameterized
from inference.elbo.traces import Site, Traces, sample_sites, scaled_log_prob
from inference.sites import is_point


class AnalyticKL(Reparameterized):
    """E_q[log p(x | z)] − KL(q(z) ‖ p(z)), site by site.

    A site's KL is taken in closed form where that is right: there is a formula, and everything
    that the model draws before the site is drawn before it in the guide too (so that the prior
    at this site does not depend on the site's own value). Elsewhere its draw is used, which is
    the pathwise estimator. Hierarchical and structured guides are therefore right as they are.

    References:
        Kingma, Welling: Auto-Encoding Variational Bayes, 2014, arXiv:1312.6114, eq. 7.
    """

    name: ClassVar[str] = "analytic_kl"
    reference: ClassVar[str] = "Kingma & Welling 2014, arXiv:1312.6114, eq. 7"

    def particle_elbo(self, traces: Traces) -> Tensor:
        """Σ log p over observed sites − Σ KL over latent ones."""
        terms: list[Tensor] = []
        before: set[str] = set()  # latents that the model has drawn so far
        drawn = latents_before(traces)
        for name, site in sample_sites(traces.model):
            if site["is_observed"]:
                terms.append(scaled_log_prob(site).sum())
                continue
            guide_site = traces.guide.nodes[name]
            require_reparameterized(name, guide_site, self.name)
            kl = closed_form_kl(guide_site, site) if before <= drawn[name] else None
            if kl is None:
                kl = scaled_log_prob(guide_site) - scaled_log_prob(site)
            terms.append(-kl.sum())
            before.add(name)
        for name, site in sample_sites(traces.guide):
            if name not in traces.model.nodes:  # auxiliary variable of the guide
                require_reparameterized(name, site, self.name)
                terms.append(-scaled_log_prob(site).sum())
        return sum(terms[1:], terms[0])


def latents_before(traces: Traces) -> dict[str, set[str]]:
    """For each site of the guide, the sites drawn before it."""
    names = [name for name, _ in sample_sites(traces.guide)]
    return {name: set(names[:i]) for i, name in enumerate(names)}


def closed_form_kl(guide_site: Site, model_site: Site) -> Tensor | None:
    """KL(q ‖ p) of one site with its scale and mask (batch shape), or None: no formula.

    A point mass has its draw for a formula; that Pyro knows leaves out its ``log_density``.
    """
    if is_point(guide_site["fn"]):
        return None
    try:
        kl = kl_divergence(guide_site["fn"], model_site["fn"])
    except NotImplementedError:
        return None
    if not isinstance(kl, Tensor):
        kl = torch.as_tensor(float(kl)).expand(guide_site["fn"].batch_shape)
    return scale_and_mask(kl, guide_site["scale"], guide_site["mask"])
