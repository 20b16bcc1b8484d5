"""Discrete draws made continuous: Bernoulli and one-hot sites by the Gumbel-softmax trick.

Shapes: event: the last dimensions of a one-hot site (..., C) or of a Bernoulli (...).
"""

from __future__ import annotations

import math
from collections.abc import Container
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import kl_divergence, register_kl

from inference.elbo.traces import Site, Traces, sample_sites
from inference.elbo.wrapped import Wrapped
from inference.sites import family, innermost
from ppl_models.errors import ProgramError

_ONE_HOT, _BERNOULLI = torch.distributions.OneHotCategorical, torch.distributions.Bernoulli


def relaxable(fn: Any) -> bool:
    """Whether its draws can be made continuous: Bernoulli and OneHotCategorical."""
    return isinstance(innermost(fn), _ONE_HOT | _BERNOULLI)


def is_one_hot(fn: Any) -> bool:
    """Whether it is a one-hot categorical, and not a Bernoulli."""
    return isinstance(innermost(fn), _ONE_HOT)


def logits_of(fn: Any) -> Tensor:
    """Log-odds of a Bernoulli, or normalized log-probabilities of a one-hot categorical.

    Those of impossible states are finite, for 0 · −∞ has no gradient.
    """
    logits = innermost(fn).logits
    if not is_one_hot(fn):
        return logits
    return logits.log_softmax(-1).clamp(min=math.log(torch.finfo(logits.dtype).tiny))


def noise_like(logits: Tensor) -> Tensor:
    """Uniform draws in the open interval (0, 1)."""
    tiny = torch.finfo(logits.dtype).tiny
    return torch.rand_like(logits).clamp(min=tiny, max=1 - torch.finfo(logits.dtype).eps)


def perturbed(fn: Any, logits: Tensor, uniform: Tensor) -> Tensor:
    """Logits with Gumbel noise (logistic for a Bernoulli), whose discretization is a draw."""
    return logits - (-uniform.log()).log() if is_one_hot(fn) else logits + uniform.logit()


def soften(fn: Any, perturbed_logits: Tensor, temperature: float) -> Tensor:
    """The continuous value, in (0, 1) or in the simplex."""
    scaled = perturbed_logits / temperature
    return scaled.softmax(-1) if is_one_hot(fn) else scaled.sigmoid()


def harden(fn: Any, perturbed_logits: Tensor) -> Tensor:
    """The discrete value, 0/1 or one-hot, detached."""
    values = perturbed_logits.detach()
    if is_one_hot(fn):
        return torch.zeros_like(values).scatter(-1, values.argmax(-1, keepdim=True), 1.0)
    return (values > 0).to(values.dtype)


class Relaxed(Wrapped):
    """A discrete distribution with continuous draws.

    The log density is that of the discrete distribution, continued linearly in the value: at 0/1
    and one-hot values they agree.

    Args:
        base_dist: Bernoulli or OneHotCategorical, perhaps with ``to_event``.
        temperature: of the softmax; towards zero the draws become discrete.
        straight_through: draw discrete values that have the continuous ones' gradient.
    """

    has_rsample = True

    def __init__(self, base_dist: Any, temperature: float, straight_through: bool) -> None:
        super().__init__(base_dist)
        self.temperature = temperature
        self.straight_through = straight_through

    def around(self, base_dist: Any) -> Relaxed:
        """The same around another distribution."""
        return Relaxed(base_dist, self.temperature, self.straight_through)

    @property
    def support(self) -> Any:
        """Anything real, for soft values lie between the discrete ones."""
        return torch.distributions.constraints.independent(
            torch.distributions.constraints.real, len(self.event_shape)
        )

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """A continuous draw, or a discrete one with its gradient."""
        logits = logits_of(self.base_dist)
        uniform = noise_like(logits.expand(torch.Size(sample_shape) + self.shape()))
        noisy = perturbed(self.base_dist, logits, uniform)
        soft = soften(self.base_dist, noisy, self.temperature)
        if not self.straight_through:
            return soft
        return harden(self.base_dist, noisy) + (soft - soft.detach())

    def log_prob(self, value: Tensor) -> Tensor:
        """Log density, linear in the value, (batch...)."""
        return linear_log_prob(self.base_dist, logits_of(self.base_dist), value)


def linear_log_prob(fn: Any, logits: Tensor, value: Tensor) -> Tensor:
    """Log density of a discrete distribution, continued linearly to soft values, (batch...)."""
    softplus = torch.nn.functional.softplus
    terms = value * logits if is_one_hot(fn) else value * logits - softplus(logits)
    dims = tuple(range(-len(fn.event_shape), 0))
    return terms.sum(dims) if dims else terms


@register_kl(Relaxed, Relaxed)
def _kl_relaxed(p: Relaxed, q: Relaxed) -> Tensor:
    if not is_one_hot(p):
        return kl_divergence(p.base_dist, q.base_dist)
    log_p, log_q = logits_of(p), logits_of(q)
    kl = log_p.exp() * (log_p - log_q)
    return kl.sum(tuple(range(-len(p.event_shape), 0)))


class RelaxMessenger(Messenger):
    """Makes the discrete latent sites of guide and model continuous.

    Args:
        temperature: of the softmax.
        straight_through: keep discrete values, with the continuous ones' gradient.
        sites: which; all that are Bernoulli or one-hot when left out.
    """

    def __init__(
        self, temperature: float, straight_through: bool, sites: Container[str] | None = None
    ) -> None:
        super().__init__()
        self.sites = sites
        self.temperature = temperature
        self.straight_through = straight_through

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or isinstance(fn, _Subsample) or not relaxable(fn):
            return
        if self.sites is not None and msg["name"] not in self.sites:
            return
        msg["fn"] = Relaxed(fn, self.temperature, self.straight_through)


def discrete_sites(traces: Traces) -> dict[str, Site]:
    """Guide sites whose draws carry no gradient."""
    return {n: s for n, s in sample_sites(traces.guide) if not s["fn"].has_rsample}


def check_relaxable(traces: Traces, estimator: str) -> None:
    """Refuse discrete sites that cannot be made continuous, and programs without any.

    Raises:
        ProgramError: naming the site.
    """
    found = discrete_sites(traces)
    if not found:
        raise ProgramError(
            f"estimator {estimator!r} makes discrete latents continuous, but every site of the "
            "guide is reparameterized already; use 'pathwise'"
        )
    for name, site in found.items():
        in_model = traces.model.nodes.get(name, site)
        for role, fn in (("guide", site["fn"]), ("model", in_model["fn"])):
            if not relaxable(fn):
                raise ProgramError(
                    f"estimator {estimator!r} serves Bernoulli and OneHotCategorical sites, but "
                    f"{role} site {name!r} is {family(fn)}"
                    + (
                        "; write it as OneHotCategorical in model and guide"
                        if "Categorical" in family(fn)
                        else ""
                    )
                    + ", or use 'leave_one_out'"
                )
