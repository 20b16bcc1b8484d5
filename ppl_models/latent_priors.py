"""Priors p(z) of a code: fixed, or learned with the rest of the program.

Each is a module that gives a distribution with event shape (D,); it is handed the program's
q(z | x), of which the VampPrior is made.

Shapes: D latent, K components.

References:
    Tomczak, Welling: VAE with a VampPrior, 2018, arXiv:1705.07120; a mixture of Gaussians and the
    VampPrior, the mixture of posteriors at learned pseudo-inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from ppl_models.errors import ProgramError, UnknownNameError
from ppl_models.likelihoods import positive

AmortizedPosterior = Callable[[Tensor], dist.TorchDistribution]


class StandardNormal(nn.Module):
    """z ~ Normal(0, I).

    Args:
        latent_dim: D.
    """

    loc: Tensor
    scale: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        self.register_buffer("loc", torch.zeros(latent_dim), persistent=False)
        self.register_buffer("scale", torch.ones(latent_dim), persistent=False)

    def forward(self, posterior: AmortizedPosterior | None = None) -> dist.TorchDistribution:
        """p(z)."""
        return dist.Normal(self.loc, self.scale).to_event(1)


class Mixture(nn.Module):
    """z ~ Σ_k weight_k Normal(loc_k, scale_k), all learned.

    Args:
        latent_dim: D.
        num_components: K.
    """

    def __init__(self, latent_dim: int, num_components: int) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.zeros(num_components))
        self.locs = nn.Parameter(torch.randn(num_components, latent_dim))
        self.raw_scales = nn.Parameter(torch.full((num_components, latent_dim), 0.5))

    def forward(self, posterior: AmortizedPosterior | None = None) -> dist.TorchDistribution:
        """p(z)."""
        components = dist.Normal(self.locs, positive(self.raw_scales)).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)


class Vamp(nn.Module):
    """z ~ 1/K Σ_k q(z | u_k): the posterior at K learned pseudo-inputs.

    Args:
        x_shape: shape of a pseudo-input, that of one datum.
        num_components: K.
    """

    logits: Tensor

    def __init__(self, x_shape: Sequence[int], num_components: int) -> None:
        super().__init__()
        self.pseudo_inputs = nn.Parameter(torch.rand(num_components, *x_shape))
        self.register_buffer("logits", torch.zeros(num_components), persistent=False)

    def forward(self, posterior: AmortizedPosterior) -> dist.TorchDistribution:
        """p(z), given q(z | x)."""
        components = posterior(self.pseudo_inputs)  # batch (K,)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits), components)


LATENT_PRIORS = ("standard_normal", "mixture", "vamp")
"""Priors by the name that models take."""
MIXED = ("diagonal", "full_covariance")
"""Posteriors whose density at any z is cheap, of which a VampPrior can be made."""


def make_latent_prior(
    name: str, latent_dim: int, num_components: int, x_shape: Sequence[int], posterior: str
) -> nn.Module:
    """The prior of this name.

    Args:
        name: one of ``LATENT_PRIORS``.
        latent_dim: D.
        num_components: K, of a mixture.
        x_shape: of one datum, for pseudo-inputs.
        posterior: name of the family of q(z | x).

    Raises:
        UnknownNameError: no prior has that name.
        ProgramError: no component, or a VampPrior of posteriors that it cannot be made of.
    """
    if name not in LATENT_PRIORS:
        raise UnknownNameError("prior", name, LATENT_PRIORS)
    if name == "standard_normal":
        return StandardNormal(latent_dim)
    if num_components < 1:
        raise ProgramError(f"prior_components must be at least 1, got {num_components}")
    if name == "mixture":
        return Mixture(latent_dim, num_components)
    if posterior not in MIXED:
        raise ProgramError(
            f"prior='vamp' scores every z under the posterior at each pseudo-input, and "
            f"posterior={posterior!r} has no cheap density at a z that it did not draw; use "
            f"posterior={' or '.join(map(repr, MIXED))}, or prior='mixture'"
        )
    return Vamp(x_shape, num_components)
