"""Schedules of the objective as effect handlers.

They weigh training alone: evaluation takes log densities without any scale, so the reported
ELBO is never affected.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample

from ppl_models.errors import PplError


class KLWeight(Messenger):
    """Weighs the KL term of latent sites, log p(z) and log q(z) alike.

    Put it around model **and** guide; scaling one alone is a different objective. Observed
    sites and auxiliary losses keep their weight.

    Args:
        weight: factor of the KL term; may be changed between steps.
        sites: names of the latent sites it weighs; all when left out.
    """

    def __init__(self, weight: float = 1.0, sites: Collection[str] | None = None) -> None:
        super().__init__()
        self.weight = weight
        self.sites = sites

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return
        if self.sites is None or msg["name"] in self.sites:
            msg["scale"] = msg["scale"] * self.weight


class KLWarmup(KLWeight):
    """Linear warm-up of the KL term from zero to one.

    Args:
        num_steps: steps until the weight is one; 0 means no warm-up.
        sites: names of the latent sites; all when left out.

    References:
        Sønderby, Raiko, Maaløe, Sønderby, Winther: Ladder Variational Autoencoders, 2016,
        arXiv:1602.02282, section 3.1.

    Raises:
        PplError: a negative number of steps.
    """

    def __init__(self, num_steps: int, sites: Collection[str] | None = None) -> None:
        if num_steps < 0:
            raise PplError(f"kl_warmup must not be negative, got {num_steps}")
        super().__init__(weight=1.0, sites=sites)
        self.num_steps = num_steps
        self.at(0)

    def at(self, step: int) -> float:
        """Set the weight for the step of this number (from 0) and return it."""
        self.weight = min(1.0, (step + 1) / self.num_steps) if self.num_steps else 1.0
        return self.weight
