"""Families of amortized posteriors q(z | x): modules that turn an encoder's outputs into one.

Each is built for a latent dimension and says how many outputs it wants: an encoder yields
``(..., num_outputs)``, the family a distribution with batch shape ``...`` and event shape (D,).

Shapes: D latent.

References:
    Kingma, Welling: An Introduction to Variational Autoencoders, 2019, arXiv:1906.02691,
    sections 2.5 and 3.2: diagonal, full covariance, flows.
    Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling: Improving Variational Inference with
    Inverse Autoregressive Flow, 2016, arXiv:1606.04934.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial

import pyro.distributions as dist
import torch
from pyro.distributions.transforms import AffineAutoregressive
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn

import ppl_models.distributions.kl  # noqa: F401  (of the full covariance, in closed form)
from ppl_models.errors import ProgramError, UnknownNameError
from ppl_models.likelihoods import full_precision, positive


class Posterior(nn.Module):
    """Base of the families.

    Args:
        latent_dim: D.
    """

    num_outputs: int
    """Outputs wanted of the encoder, per datum."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__()
        if latent_dim < 1:
            raise ProgramError(f"latent_dim must be at least 1, got {latent_dim}")
        self.latent_dim = latent_dim


def diagonal_normal(outputs: Tensor, event_dim: int = 1) -> dist.TorchDistribution:
    """Normal(loc, scale) of outputs (..., 2D, *rest): loc first; event shape (D, *rest).

    Args:
        outputs: of an encoder.
        event_dim: dimensions of the event.
    """
    loc, raw_scale = full_precision(outputs).chunk(2, dim=-event_dim)
    return dist.Normal(loc, positive(raw_scale)).to_event(event_dim)


class Diagonal(Posterior):
    """z ~ Normal(loc, scale), independent dimensions."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.num_outputs = 2 * latent_dim

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """q(z | x) of encoder outputs (..., 2D): loc first."""
        return diagonal_normal(outputs)


class FullCovariance(Posterior):
    """z ~ MultivariateNormal(loc, L Lᵀ), L lower triangular with a positive diagonal."""

    rows: Tensor
    columns: Tensor

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        below = torch.tril_indices(latent_dim, latent_dim, offset=-1)
        self.num_outputs = 2 * latent_dim + below.shape[1]
        self.register_buffer("rows", below[0].clone(), persistent=False)
        self.register_buffer("columns", below[1].clone(), persistent=False)

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """q(z | x) of encoder outputs (..., 2D + D(D−1)/2): loc, diagonal of L, what is below.

        What is below is in units of the row's diagonal entry / √D: the D − 1 terms of an
        untrained encoder, all of them noise, then add little to that dimension's scale.
        """
        dim = self.latent_dim
        sizes = [dim, dim, len(self.rows)]
        loc, raw_diagonal, below = full_precision(outputs).split(sizes, dim=-1)
        lower = below.new_zeros(*below.shape[:-1], dim, dim)
        lower[..., self.rows, self.columns] = below / math.sqrt(dim)
        unit_tril = lower + torch.eye(dim, dtype=lower.dtype, device=lower.device)
        scale_tril = positive(raw_diagonal).unsqueeze(-1) * unit_tril
        return dist.MultivariateNormal(loc, scale_tril=scale_tril)


class Flow(Posterior):
    """z = f_T(... f_1(z_0)): z_0 ~ Normal(loc, scale), f_t inverse autoregressive flows.

    Each step f_t(z) = s ⊙ z + (1 − s) ⊙ m has m and the gate s in (0, 1) from a masked network
    of z and of a context that the encoder reads off x. Drawing z with its density takes one pass;
    the density of a z from elsewhere takes D.

    Args:
        latent_dim: D, at least 2.
        num_steps: T; every other one goes through the dimensions backwards.
        hidden_dim: width of each step's network, at least D.
        context_dim: size of the context.
    """

    def __init__(
        self,
        latent_dim: int,
        num_steps: int = 4,
        hidden_dim: int = 200,
        context_dim: int = 50,
    ) -> None:
        super().__init__(latent_dim)
        if latent_dim < 2:
            raise ProgramError(
                "a flow in one dimension has nothing to condition on; use posterior='diagonal'"
            )
        self.num_outputs = 2 * latent_dim + context_dim
        self.context_dim = context_dim
        order = torch.arange(latent_dim)
        self.steps = nn.ModuleList(
            ConditionalAutoRegressiveNN(
                latent_dim,
                context_dim,
                [max(hidden_dim, latent_dim)],
                permutation=order.flip(0) if step % 2 else order,
                nonlinearity=nn.ELU(),
            )
            for step in range(num_steps)
        )

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """q(z | x) of encoder outputs (..., 2D + context_dim): loc, scale, context."""
        sizes = [self.latent_dim, self.latent_dim, self.context_dim]
        loc, raw_scale, context = full_precision(outputs).split(sizes, dim=-1)
        ascending = range(self.latent_dim)
        steps = [
            _InverseAutoregressive(net, context, ascending[::-1] if step % 2 else ascending)
            for step, net in enumerate(self.steps)
        ]
        start = dist.Normal(loc, positive(raw_scale)).to_event(1)
        return dist.TransformedDistribution(start, steps)


class _InverseAutoregressive(AffineAutoregressive):
    """Pyro's step, whose inverse takes any dtype and reads no tensor's value.

    Args:
        net: masked network of z and context.
        context: (..., context_dim).
        order: in which the network goes through the dimensions.
    """

    def __init__(self, net: nn.Module, context: Tensor, order: Sequence[int]) -> None:
        super().__init__(partial(net, context=context), stable=True)
        self.order = order

    def _inverse_stable(self, y: Tensor) -> Tensor:
        x, dims = torch.zeros_like(y), torch.arange(y.shape[-1], device=y.device)
        logits = x
        for dim in self.order:  # one dimension more is right after every pass
            loc, logits = self.arn(x)
            gate = torch.sigmoid(logits + self.sigmoid_bias)
            x = torch.where(dims == dim, (y - (1 - gate) * loc) / gate, x)
        self._cached_log_scale = self.logsigmoid(logits + self.sigmoid_bias)
        return x


class Point(Posterior):
    """z = loc with certainty: a ``Delta``. A guide of this family gives no bound."""

    def __init__(self, latent_dim: int) -> None:
        super().__init__(latent_dim)
        self.num_outputs = latent_dim

    def forward(self, outputs: Tensor) -> dist.TorchDistribution:
        """The point at encoder outputs (..., D)."""
        return dist.Delta(full_precision(outputs)).to_event(1)


POSTERIORS: dict[str, type[Posterior]] = {
    "diagonal": Diagonal,
    "full_covariance": FullCovariance,
    "flow": Flow,
    "point": Point,
}
"""Families by the name that models take."""


def make_posterior(name: str, latent_dim: int) -> Posterior:
    """The family of this name for latents of this dimension.

    Raises:
        UnknownNameError: no family has that name.
        ProgramError: it does not serve that dimension.
    """
    if name not in POSTERIORS:
        raise UnknownNameError("posterior", name, POSTERIORS)
    return POSTERIORS[name](latent_dim)
