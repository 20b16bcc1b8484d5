"""Programs whose latents are groups, each given those before it, by one top-down pass.

Generative story, for each datum in the plate ``data``:

    h_0                                 a learned start
    z_l ~ Normal(loc_l(h_{l−1}), scale_l(h_{l−1}))
                                        site ``z_l``, l = 1 ... L
    h_l = step_l(h_{l−1}, z_l)
    x ~ likelihood(decoder(h_L))        site ``x``

The guide goes down the same way, with features of x that a deterministic pass upwards has left on
its way, and says how q differs from p (the residual parametrization):

    z_l ~ Normal(loc_l + Δloc_l, scale_l · Δscale_l),
                                        Δ a function of h_{l−1} and of the features of x

with loc_l, scale_l and h_l those of the model: the steps are run once for both
(``shared_pass.py``). The rate of group l is ½ Σ (Δloc² / scale² + Δscale² − log Δscale² − 1).

Shapes: B data, D latent; whatever else an event has (h w of a grid).

References:
    Vahdat, Kautz: NVAE: A Deep Hierarchical Variational Autoencoder, 2020, arXiv:2007.03898.
    Sønderby, Raiko, Maaløe, Sønderby, Winther: Ladder Variational Autoencoders, 2016,
    arXiv:1602.02282.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import cast

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppl_models.errors import ProgramError
from ppl_models.likelihoods import full_precision
from ppl_models.nets.spectral import SpectralNorms
from ppl_models.program import auxiliary_loss
from ppl_models.shared_pass import SharedPass, computed, recomputed

MAX_LOG_SCALE = 5.0
"""Log-scales of p, and of q relative to p, stay within ± this: no step can make one infinite."""

QUIET = 0.1
"""Gain of the layers that give loc and log-scale, and the decoder's last: p starts near
Normal(0, 1), q near p, and pixels near even odds."""


class Start(nn.Module):
    """h_0, learned.

    Args:
        shape: of one datum's state.
    """

    def __init__(self, shape: Sequence[int]) -> None:
        super().__init__()
        self.state = nn.Parameter(torch.randn(*shape))

    def forward(self) -> Tensor:
        """The state, without a batch."""
        return self.state


class Group(nn.Module):
    """The networks of one group of latents.

    Args:
        prior: h_{l−1} to loc and log-scale of p, (..., 2D, *rest).
        change: h_{l−1} and features of x to Δloc and log Δscale, likewise.
        step: h_{l−1} and z_l to h_l.
    """

    def __init__(self, prior: nn.Module, change: nn.Module, step: nn.Module) -> None:
        super().__init__()
        self.prior = prior
        self.change = change
        self.step = step


class GroupedVAE(PyroModule):
    """A program of groups of latents; any networks that fit together will do.

    Args:
        start: a module without arguments, h_0.
        scales: the groups, scale by scale from the first drawn to the last; the groups of a scale
            share the features of x.
        encoder: x to the features of every scale, in the order of ``scales``.
        decoder: h_L to what ``likelihood`` takes.
        likelihood: turns the decoder's output into p(x | z).
        event_dim: dimensions of one datum's z_l.
        checkpoint_cells: keep no activations of the top-down pass for the backward pass, but
            compute them again there: less memory, more time, the same gradients.
        spectral_weight: of the auxiliary loss ``spectral``, Σ of the largest singular values of
            the networks' weights; nats per datum. 0: none.
    """

    def __init__(
        self,
        start: nn.Module,
        scales: Sequence[Sequence[Group]],
        encoder: nn.Module,
        decoder: nn.Module,
        likelihood: nn.Module,
        event_dim: int = 1,
        *,
        checkpoint_cells: bool = False,
        spectral_weight: float = 0.0,
    ) -> None:
        super().__init__()
        if not scales or not all(scales):
            counts = [len(groups) for groups in scales]
            raise ProgramError(f"every scale needs at least one group, got {counts}")
        if not 0 <= spectral_weight < math.inf:
            raise ProgramError(
                f"spectral_weight must be finite and not negative, got {spectral_weight}"
            )
        self.start = start
        self.groups = nn.ModuleList(group for groups in scales for group in groups)
        self.scale_of = [s for s, groups in enumerate(scales) for _ in groups]
        """Of every group, the scale that it is of."""
        self.encoder = encoder
        self.decoder = decoder
        self.likelihood = likelihood
        self.event_dim = event_dim
        self.spectral_weight = float(spectral_weight)
        self.shared = SharedPass(recomputed if checkpoint_cells else computed)
        self.spectral = SpectralNorms(self) if spectral_weight else None

    def _in_order(self) -> Iterator[tuple[str, Group, int]]:
        """Site, networks and scale of every group, the first drawn first."""
        for number, (group, scale) in enumerate(zip(self.groups, self.scale_of, strict=True), 1):
            yield f"z_{number}", cast(Group, group), scale

    @property
    def scales(self) -> list[list[str]]:
        """Names of the latent sites, scale by scale, the first drawn first."""
        found: list[list[str]] = [[] for _ in range(max(self.scale_of) + 1)]
        for name, _, scale in self._in_order():
            found[scale].append(name)
        return found

    def normal(self, raw: Tensor, change: Tensor | None = None) -> dist.TorchDistribution:
        """p(z_l | z_<l), or q(z_l | x, z_<l) by how it differs.

        Args:
            raw: of the prior, (..., 2D, *rest).
            change: of the guide, likewise.
        """
        loc, log_scale = self._split(raw)
        if change is not None:
            further, factor = self._split(change)
            loc, log_scale = loc + further, log_scale + factor
        return dist.Normal(loc, log_scale.exp()).to_event(self.event_dim)

    def _split(self, raw: Tensor) -> tuple[Tensor, Tensor]:
        loc, log_scale = full_precision(raw).chunk(2, dim=-self.event_dim)
        return loc, MAX_LOG_SCALE * (log_scale / MAX_LOG_SCALE).tanh()

    @pyro_method
    def model(self, x: Tensor | None = None, *, size: int = 1) -> Tensor:
        """p(x, z); without data, ``size`` draws from the prior predictive."""
        count = size if x is None else len(x)
        with self.shared.in_model(), pyro.plate("data", count, dim=-1):
            state = self.start()
            for name, group, _ in self._in_order():
                prior = self.normal(self.shared(group.prior, state))
                z = pyro.sample(name, prior)  # (B, D, *rest)
                state = self.shared(group.step, state, z)
            if self.spectral is not None and x is not None:
                penalty = self.spectral_weight * self.spectral()
                auxiliary_loss("spectral", penalty.expand(count))
            return pyro.sample("x", self.likelihood(self.decoder(state)), obs=x)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        """q(z | x)."""
        features = self.encoder(x)
        with self.shared.in_guide() as kept, pyro.plate("data", len(x), dim=-1):
            state = self.start()
            for name, group, scale in self._in_order():
                raw = self.shared(group.prior, state)
                posterior = self.normal(raw, group.change(state, features[scale]))
                z = pyro.sample(name, posterior, infer=kept())  # (B, D, *rest)
                state = self.shared(group.step, state, z)
