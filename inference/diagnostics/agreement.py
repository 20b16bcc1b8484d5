"""How far the guide's draws are from those of NUTS, and how much of that is chance.

Means and distances are in units of NUTS's standard deviation. Their standard errors count the draws
of both sides, those of NUTS by how many independent ones they are worth. The error of a standard
deviation is taken with the kurtosis κ of the draws, √((κ − 1) / 4n) of its size: under heavy tails
it is much larger than the √(1 / 2n) of a normal. What it leaves unsure there, the width of the
interval that holds 90 of 100 draws can tell: quantiles do not mind the tails.

Shapes: D latent dimensions of all sites and data, S draws.

References:
    Vehtari, Gelman, Simpson, Carpenter, Bürkner: Rank-normalization, folding, and localization,
    Bayesian Analysis 16, 2021, arXiv:1903.08008: when chains are to be believed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from pyro.ops.stats import effective_sample_size, split_gelman_rubin
from scipy import stats
from torch import Tensor

from inference.diagnostics.check import Check, cannot_tell
from inference.plotting.nuts import posterior_intervals

MOST_R_HAT, LEAST_ESS, MOST_DIVERGENT = 1.05, 50.0, 0.01
"""Chains beyond these are not believed."""
ERRORS = 3.0
"""Standard errors of Monte Carlo that a difference must be clear of."""
MEAN, SD, DISTANCE = (0.3, 1.0), (1.25, 2.0), (0.2, 0.5)
"""From what on a difference is a warning, and bad; means and distances in standard deviations."""
QUANTILES = 200
_GRID = np.linspace(-8, 8, 2001)
_SPREAD = float(np.sqrt(stats.norm.cdf(_GRID) * stats.norm.sf(_GRID)).sum() * (_GRID[1] - _GRID[0]))
"""∫ √(F(1 − F)) of a normal: what chance alone makes of the Wasserstein distance of draws."""


@dataclass(frozen=True)
class AgainstNuts:
    """Every latent dimension by the guide and by NUTS; tensors (D,)."""

    names: tuple[str, ...]
    """Such as ``z[2, 0]``: of datum 2, dimension 0; of a global site without the datum."""
    nuts_mean: Tensor
    nuts_sd: Tensor
    guide_mean: Tensor
    guide_sd: Tensor
    wasserstein: Tensor
    """1-Wasserstein distance in units of ``nuts_sd``."""
    chance: Tensor
    """About what it is between draws of one distribution, as many as these."""
    r_hat: Tensor
    ess: Tensor
    """Effective draws of NUTS, for the mean."""
    ess_of_sd: Tensor
    """The same for the standard deviation: of squared distances from the mean."""
    nuts_quantiles: Tensor
    """At 5, 25, 50, 75, 95 %, (5, D)."""
    guide_quantiles: Tensor
    divergences: int
    nuts_draws: Tensor
    """Of all chains, (S, D)."""
    guide_draws: Tensor
    """(S, D)."""

    @property
    def num_samples(self) -> int:
        """Of all chains."""
        return len(self.nuts_draws)

    @property
    def shift(self) -> Tensor:
        """Guide's mean less NUTS's, in units of NUTS's standard deviation, (D,)."""
        return (self.guide_mean - self.nuts_mean) / self.nuts_sd

    @property
    def sd_ratio(self) -> Tensor:
        """Guide's over NUTS's, (D,)."""
        return self.guide_sd / self.nuts_sd

    @property
    def shift_error(self) -> Tensor:
        """Standard error of ``shift`` by the draws of both, (D,)."""
        return (1 / self.ess + self.sd_ratio**2 / len(self.guide_draws)).sqrt()

    @property
    def sd_error(self) -> Tensor:
        """Standard error of the logarithm of ``sd_ratio`` by the draws of both, (D,).

        With the larger kurtosis: under heavy tails one side may have none of the draws far out.
        """
        kurtosis = torch.maximum(_kurtosis(self.nuts_draws), _kurtosis(self.guide_draws))
        return ((kurtosis - 1) / 4 * (1 / self.ess_of_sd + 1 / len(self.guide_draws))).sqrt()

    @property
    def width_ratio(self) -> Tensor:
        """Width of the guide's interval from 5 to 95 % over that of NUTS's, (D,)."""
        ours, theirs = (q[-1] - q[0] for q in (self.guide_quantiles, self.nuts_quantiles))
        return ours / theirs

    @property
    def width_error(self) -> Tensor:
        """Standard error of the logarithm of ``width_ratio`` by the draws of both, (D,)."""
        independent = torch.minimum(self.ess, self.ess_of_sd)
        theirs = _width_error(self.nuts_draws, independent)
        ours = _width_error(self.guide_draws, torch.full_like(self.ess, len(self.guide_draws)))
        return (theirs**2 + ours**2).sqrt()

    @property
    def trouble(self) -> str | None:
        """Why the chains are not to be believed; None if they are."""
        r_hat, ess = float(self.r_hat.max()), float(self.ess.min())
        if not math.isfinite(r_hat) or r_hat > MOST_R_HAT:
            at = self.names[int(self.r_hat.nan_to_num(math.inf).argmax())]
            return (
                f"the chains of NUTS do not agree (R-hat {r_hat:.2f} at {at}, at most {MOST_R_HAT} "
                "is believed): give more `warmup` and `num_samples`; or the posterior has several "
                "modes (such as components of a mixture numbered otherwise), and `starts='guide'` "
                "compares within the guide's"
            )
        if ess < LEAST_ESS:
            return f"NUTS has but {ess:.0f} effective draws; give more `num_samples`"
        if self.divergences > MOST_DIVERGENT * self.num_samples:
            return f"{self.divergences} of {self.num_samples} steps of NUTS diverged"
        return None

    def checks(self) -> list[Check]:
        """``nuts_mean``, ``nuts_sd`` and ``nuts_wasserstein``, of the worst dimension each."""
        if self.trouble is not None:
            names = ("nuts_mean", "nuts_sd", "nuts_wasserstein")
            return [cannot_tell(name, self.trouble) for name in names]
        shift, away = self.shift.abs(), self.wasserstein
        ratio, width = (r.clamp_min(1e-6).log().abs() for r in (self.sd_ratio, self.width_ratio))
        clear_shift = shift - ERRORS * self.shift_error
        clear_ratio = torch.maximum(
            ratio - ERRORS * self.sd_error, width - ERRORS * self.width_error
        )
        clear_away = away - self.chance
        return [
            self._check("nuts_mean", self.shift, shift, clear_shift, MEAN),
            self._check(
                "nuts_sd", self.sd_ratio, torch.maximum(ratio, width).exp(), clear_ratio.exp(), SD
            ),
            self._check("nuts_wasserstein", away, away, clear_away, DISTANCE),
        ]

    def _check(
        self,
        name: str,
        values: Tensor,
        sizes: Tensor,
        certain: Tensor,
        limits: tuple[float, float],
    ) -> Check:
        """Of what is shown, its size whatever the side, and what of that is no chance, (D,)."""
        worst = int(certain.argmax())
        value, least = float(values[worst]), float(certain[worst])
        verdict = "bad" if least > limits[1] else "warning" if least > limits[0] else "ok"
        what = {
            "nuts_mean": f"the guide's mean is {value:+.2f} standard deviations from NUTS's",
            "nuts_sd": f"the guide's standard deviation is {value:.2f} times NUTS's, and its 90 % "
            f"interval {float(self.width_ratio[worst]):.2f} times as wide",
            "nuts_wasserstein": f"the guide is {value:.2f} standard deviations from NUTS "
            "(1-Wasserstein)",
        }[name]
        message = f"At worst, at {self.names[worst]}, {what}; median {float(values.median()):.2f}."
        if verdict == "ok" and float(sizes[worst]) > limits[0]:
            message += " With so few draws chance alone may do that."
        if name == "nuts_sd" and verdict != "ok":
            narrow = float(self.width_ratio[worst]) < 1
            message += " Its intervals are too narrow." if narrow else " It is too wide."
        numbers = {
            "at": self.names[worst],
            "median": float(values.median()),
            "r_hat": float(self.r_hat.max()),
            "ess": float(self.ess.min()),
            "divergences": self.divergences,
        }
        return Check(name, verdict, message, value, limits[0], numbers)

    def figures(self) -> dict[str, Figure]:
        """``nuts``: intervals of both, of the dimensions that are furthest apart."""
        order = self.wasserstein.argsort(descending=True, stable=True)
        names = [self.names[int(i)] for i in order]
        both = (self.nuts_quantiles, self.guide_quantiles)
        return {"nuts": posterior_intervals(names, *(q[:, order].numpy() for q in both))}


def compare(names: tuple[str, ...], nuts: Tensor, guide: Tensor, divergences: int) -> AgainstNuts:
    """Of NUTS (chains, S, D) and of the guide (S, D)."""
    drawn = (nuts != guide[0]).any(0).any(0) | (guide != guide[0]).any(0)
    nuts, guide = nuts[..., drawn], guide[:, drawn]  # a Cholesky factor has its zeros
    names = tuple(name for name, kept in zip(names, drawn.tolist(), strict=True) if kept)
    both = nuts.flatten(0, 1)
    ess = _effective(nuts)
    shares = ((torch.arange(QUANTILES) + 0.5) / QUANTILES).double()
    shown = torch.tensor([0.05, 0.25, 0.5, 0.75, 0.95]).double()
    away = (both.quantile(shares, 0) - guide.quantile(shares, 0)).abs().mean(0) / both.std(0)
    # E|N(0, 1)| √(1/n + 1/m) ∫ √(F(1 − F)): the distance of draws of one distribution.
    chance = math.sqrt(2 / math.pi) * _SPREAD * (1 / ess + 1 / len(guide)).sqrt()
    return AgainstNuts(
        names=names,
        nuts_mean=both.mean(0),
        nuts_sd=both.std(0),
        guide_mean=guide.mean(0),
        guide_sd=guide.std(0),
        wasserstein=away,
        chance=chance,
        r_hat=split_gelman_rubin(nuts, chain_dim=0, sample_dim=1),
        ess=ess,
        ess_of_sd=_effective((nuts - both.mean(0)) ** 2),
        nuts_quantiles=both.quantile(shown, 0),
        guide_quantiles=guide.quantile(shown, 0),
        divergences=divergences,
        nuts_draws=both,
        guide_draws=guide,
    )


def _effective(draws: Tensor) -> Tensor:
    """How many independent draws chains are worth, at most as many as they have.

    (chains, S, D) -> (D,).
    """
    ess = effective_sample_size(draws, chain_dim=0, sample_dim=1)
    return ess.clamp_max(draws.shape[0] * draws.shape[1])


def _width_error(draws: Tensor, independent: Tensor) -> Tensor:
    """Standard error of the logarithm of the width from 5 to 95 %, (S, D), (D,) -> (D,).

    That of a quantile at p is half the way between those at p ± √(p(1 − p) / n).
    """
    found = draws.new_zeros(draws.shape[1])
    for i, (column, number) in enumerate(zip(draws.T, independent.tolist(), strict=True)):
        step = math.sqrt(0.05 * 0.95 / number)
        low, high = max(0.05 - step, 0.0), 0.05 + step
        at = column.new_tensor([low, high, 0.05, 0.95, 1 - high, 1 - low])
        a, b, start, end, c, d = column.quantile(at).tolist()
        found[i] = math.hypot(b - a, d - c) / 2 / (end - start) if end > start else math.inf
    return found


def _kurtosis(draws: Tensor) -> Tensor:
    """E(z − Ez)⁴ / (E(z − Ez)²)², three for a normal, (S, D) -> (D,)."""
    squares = (draws - draws.mean(0)) ** 2
    return (squares**2).mean(0) / squares.mean(0) ** 2
