"""Balance between groups of latents while the KL term warms up, as an effect handler."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar

import torch
from torch import Tensor

from inference.handlers import RateObjective
from ppl_models.errors import PplError

FLOOR = 0.01
"""Nats per datum that are added to every rate: groups that start with none have equal weights."""


class KLBalance(RateObjective):
    """Weighs the rates of the latent sites against each other, in the first steps of a run.

    The rate of group l gets the weight γ_l = E[KL_l] / s_l, over the groups' mean of that, where
    s_l is the group's size (numbers in a draw): a group whose every number costs more than the
    others' is held back, one that costs less is encouraged to be used. γ is taken from the batch
    at hand, and no gradient goes through it. From step ``num_steps`` − 1 on, when a
    :class:`~inference.handlers.KLWarmup` of as many steps is over, all weights are 1.

    Args:
        num_steps: of the warm-up.
        sites: names of the latent sites; all when left out.

    References:
        Vahdat, Kautz: NVAE: A Deep Hierarchical Variational Autoencoder, 2020, arXiv:2007.03898,
        appendix A, where γ is said to grow with s_l; the authors call that a typo, and divide by
        it (issue 26 of their repository, NVlabs/NVAE), as do Vahdat, Macready, Bian, Khoshaman,
        Andriyash: DVAE++, 2018, arXiv:1802.04920, appendix H.

    Raises:
        PplError: no steps; in the first of them, that there is only one latent site.
    """

    changing: ClassVar[tuple[str, ...]] = ("balance",)

    def __init__(self, num_steps: int, sites: Collection[str] | None = None) -> None:
        if num_steps < 1:
            raise PplError(f"KL balancing is part of a warm-up of 1 step or more, got {num_steps}")
        super().__init__(sites)
        self.num_steps = num_steps
        self.at(0)

    def at(self, step: int) -> None:
        """On until the step at which the warm-up is over."""
        self.balance = float(step + 1 < self.num_steps)

    def weights(self, rates: dict[str, Tensor]) -> Tensor:
        """γ, (L,), with mean 1 over the L groups; detached."""
        each = [
            (rate.detach().clamp(min=0) + FLOOR) / self.sizes[name] for name, rate in rates.items()
        ]
        found = torch.stack(each)
        return found / found.mean()

    def penalty(self, rates: dict[str, Tensor], scales: dict[str, Any]) -> Tensor:
        """Σ scale · (γ − 1) · rate."""
        if len(rates) < 2:
            raise PplError(
                "KL balancing weighs two or more latent sites against each other, and there is "
                f"only {', '.join(rates)}; leave kl_balance out"
            )
        more = ((self.weights(rates) - 1) * self.balance).unbind(0)
        parts = [
            scales[name] * weight * rate
            for (name, rate), weight in zip(rates.items(), more, strict=True)
        ]
        return sum(parts[1:], parts[0])
