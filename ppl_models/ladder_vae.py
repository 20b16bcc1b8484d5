"""The ladder VAE: a few layers of dense latents, each given those above it.

Generative story, for each datum in the plate ``data``:

    z_1 ~ Normal(loc_1, scale_1)        site ``z_1``, (D_1,): the layer at the top
    z_l ~ Normal(loc_l(h_{l−1}), scale_l(h_{l−1}))
                                        sites ``z_2`` ... ``z_L``, (D_l,)
    x ~ likelihood(decoder(h_L))        site ``x``

with h_l a function of h_{l−1} and z_l. The guide reads x upwards by a deterministic pass and then
goes down with the model, moving p(z_l | z_<l) by a function of both (``grouped.py``). It is
:class:`~ppl_models.hierarchical_vae.HierarchicalVAE` without grids, the small case to understand
it by. The paper joins the two passes by precision; here q is said relative to p, as in NVAE.

Shapes: B data, D_l latents of a layer, F_l hidden features.

References:
    Sønderby, Raiko, Maaløe, Sønderby, Winther: Ladder Variational Autoencoders, 2016,
    arXiv:1602.02282.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from ppl_models.errors import ProgramError, whole_numbers
from ppl_models.grouped import QUIET, Group, GroupedVAE, Start
from ppl_models.likelihoods import make_likelihood
from ppl_models.nets.residual_cells import AFTER_SWISH, dense_cell
from ppl_models.nets.weight_norm import WeightNormLinear


class DenseHead(nn.Module):
    """Vectors to loc and log-scale.

    Args:
        in_features: of all vectors together.
        hidden_features: between two affine maps.
        latent_dim: D.
    """

    def __init__(self, in_features: int, hidden_features: int, latent_dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.SiLU(),
            WeightNormLinear(in_features, hidden_features, gain=AFTER_SWISH),
            nn.SiLU(),
            WeightNormLinear(hidden_features, 2 * latent_dim, gain=QUIET),
        )

    def forward(self, *vectors: Tensor) -> Tensor:
        """(..., 2D) of vectors (..., F) whose batches broadcast."""
        batch = torch.broadcast_shapes(*(v.shape[:-1] for v in vectors))
        out: Tensor = self.net(torch.cat([v.expand(*batch, v.shape[-1]) for v in vectors], dim=-1))
        return out


class DenseStep(nn.Module):
    """h_l of h_{l−1} and z_l.

    Args:
        latent_dim: D.
        in_features: of h_{l−1}.
        out_features: of h_l.
    """

    def __init__(self, latent_dim: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.spread = WeightNormLinear(latent_dim, in_features)
        self.net = nn.Sequential(
            dense_cell(in_features), WeightNormLinear(in_features, out_features)
        )

    def forward(self, state: Tensor, z: Tensor) -> Tensor:
        """(..., out_features) of the state, (F,) or (..., F), and z (..., D)."""
        out: Tensor = self.net(state + self.spread(z))
        return out


class DenseBottomUp(nn.Module):
    """The deterministic pass upwards: features of x for every layer.

    Args:
        x_shape: of one datum.
        widths: of the layers, the topmost first.
    """

    def __init__(self, x_shape: Sequence[int], widths: Sequence[int]) -> None:
        super().__init__()
        self.event_dim = len(x_shape)
        upwards = [math.prod(x_shape), *widths[::-1]]
        self.layers = nn.ModuleList(
            nn.Sequential(WeightNormLinear(a, b), dense_cell(b)) for a, b in pairwise(upwards)
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        """Of x (..., *x_shape): features (..., F) of every layer, the topmost first."""
        vector, found = x.flatten(-self.event_dim), []
        for layer in self.layers:
            vector = layer(vector)
            found.append(vector)
        return found[::-1]


class Outputs(nn.Module):
    """The last state to what a likelihood wants of a datum.

    Args:
        features: of the state.
        output_shape: of one datum.
    """

    def __init__(self, features: int, output_shape: Sequence[int]) -> None:
        super().__init__()
        self.output_shape = tuple(output_shape)
        last = WeightNormLinear(features, math.prod(output_shape), gain=QUIET)
        self.net = nn.Sequential(dense_cell(features), nn.SiLU(), last)

    def forward(self, state: Tensor) -> Tensor:
        """(..., *output_shape) of (..., F)."""
        out: Tensor = self.net(state).unflatten(-1, self.output_shape)
        return out


class LadderVAE(GroupedVAE):
    """A VAE of any number of dense layers of latents.

    Args:
        x_shape: shape of one datum.
        latent_dims: D of every layer, the topmost first.
        hidden_dims: F of every layer, likewise.
        likelihood: a name of ``LIKELIHOODS``.
        grey_levels: of the data, for likelihoods of levels; 256 when left out.
        checkpoint_cells: compute the top-down pass again in the backward pass instead of keeping
            what it computed.
        spectral_weight: of the auxiliary loss ``spectral``; 0: none.

    Raises:
        ProgramError: no layer, or not one width for each.
    """

    def __init__(
        self,
        x_shape: Sequence[int] = (1, 28, 28),
        latent_dims: Sequence[int] = (16, 32),
        hidden_dims: Sequence[int] = (256, 512),
        likelihood: str = "normal_shared_scale",
        grey_levels: int | None = None,
        checkpoint_cells: bool = False,
        spectral_weight: float = 0.0,
    ) -> None:
        latent = whole_numbers("latent_dims", latent_dims)
        hidden = whole_numbers("hidden_dims", hidden_dims)
        if not latent or len(latent) != len(hidden):
            raise ProgramError(
                "latent_dims and hidden_dims name one number for every layer, the topmost first, "
                f"and one layer at least; got {latent} and {hidden}"
            )
        observed = make_likelihood(likelihood, x_shape, grey_levels)
        super().__init__(
            Start((hidden[0],)),
            [
                [Group(DenseHead(a, a, d), DenseHead(2 * a, a, d), DenseStep(d, a, b))]
                for d, (a, b) in zip(latent, pairwise([*hidden, hidden[-1]]), strict=True)
            ],
            DenseBottomUp(x_shape, hidden),
            Outputs(hidden[-1], observed.output_shape),
            observed,
            checkpoint_cells=checkpoint_cells,
            spectral_weight=spectral_weight,
        )
        self.x_shape = tuple(x_shape)
