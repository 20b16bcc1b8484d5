"""Pareto k of the importance weights: how far the guide can be trusted where it differs.

The weights p(x, z) / q(z | x) have a heavy tail where the guide leaves out what the posterior
holds; the shape k of a generalized Pareto distribution fitted to the largest of them says how
heavy. Below ½ their variance is finite; above 1 not even their mean exists.

Shapes: S draws, N data.

References:
    Vehtari, Simpson, Gelman, Yao, Gabry: Pareto Smoothed Importance Sampling, JMLR 25, 2024,
    arXiv:1507.02646.
    Yao, Vehtari, Simpson, Gelman: Yes, but Did It Work?, 2018, arXiv:1802.02538.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from inference.diagnostics.arviz_lines import psis
from inference.diagnostics.check import CannotTell, Check
from inference.diagnostics.weighing import Weighed, weigh
from inference.plotting.posterior_checks import pareto_figure
from ppl_models.program import Batch

LEAST_TAIL = 5
"""Weights that a tail is fitted to."""
EQUAL = 1e-3
"""Nats; log weights that differ by less are equal, and the draws as good as the posterior's."""
MOST_SPREAD = 700.0
"""Nats below the largest log weight, where a weight is 0 in float64."""
FEW_DRAWS, UNCERTAIN = 2000, 0.2
"""Draws below which a k that is so near to the threshold may lie on its other side."""
TOLERATED = 0.05
"""Share of data above the threshold that is let pass."""


def k_threshold(num_samples: int) -> float:
    """The k up to which estimates from so many draws can be trusted: min(1 − 1/log10 S, 0.7)."""
    return min(1 - 1 / math.log10(num_samples), 0.7)


def check_draws(num_samples: int) -> None:
    """Refuse so few draws that there is no tail to fit.

    Raises:
        CannotTell: a fifth of them, which the tail is, are fewer than five.
    """
    if num_samples // 5 < LEAST_TAIL:
        raise CannotTell(
            f"{num_samples} draws are too few to fit the tail of the weights: at least "
            f"{5 * LEAST_TAIL} are needed, and 1,000 are better"
        )


def smooth(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pareto-smooth each row of log weights that has a tail.

    Args:
        log_weights: (N, S).

    Returns:
        The log weights, (N, S), smoothed and normalized; without smoothing where there is no tail
        to fit, and NaN where they are not finite. Pareto k, (N,): −inf where all weights are equal
        (no tail at all), +inf where they are not finite, NaN where too few differ for a tail
        (discrete latents with few states).

    Raises:
        CannotTell: too few draws for any tail.
    """
    check_draws(log_weights.shape[1])
    found = np.full(len(log_weights), np.inf)
    broken = ~usable_rows(log_weights)
    usable = np.where(broken[:, None], 0.0, log_weights)
    usable = np.maximum(usable, usable.max(1, keepdims=True) - MOST_SPREAD)
    top = usable.max(1)
    equal = ~broken & (top - usable.min(1) <= EQUAL + 1e-6 * np.abs(top))
    with_tail = np.array([_has_tail(row) for row in usable], dtype=bool)
    found[equal] = -np.inf
    found[~broken & ~equal & ~with_tail] = np.nan
    fitted = ~broken & ~equal & with_tail
    weights = usable - np.logaddexp.reduce(usable, axis=1, keepdims=True)
    weights[broken] = np.nan
    if fitted.any():
        weights[fitted], found[fitted] = psis(usable[fitted])
    return weights, found


def usable_rows(log_weights: np.ndarray) -> np.ndarray:
    """Rows without NaN and +inf, with a weight above 0: (N,). Single weights may be 0.

    Args:
        log_weights: (N, S).
    """
    broken = np.isnan(log_weights) | np.isposinf(log_weights)
    return ~broken.any(1) & ~np.isneginf(log_weights).all(1)


def quantile(values: np.ndarray, share: float) -> float:
    """The smallest of the values that so many of them are not above; infinite ones count.

    Args:
        values: (N,), not NaN.
        share: in (0, 1].
    """
    return float(np.quantile(values, share, method="inverted_cdf"))


def _has_tail(row: np.ndarray) -> bool:
    """Whether at least five different weights are above where the tail begins."""
    ordered = np.sort(row)
    length = math.ceil(min(len(row) / 5, 3 * math.sqrt(len(row))))
    tail = ordered[-length:]
    return len(np.unique(tail[tail > ordered[-length - 1]])) >= LEAST_TAIL


@dataclass(frozen=True)
class ImportanceWeights:
    """How heavy the tails of the importance weights are."""

    pareto_k: np.ndarray
    """(N,) of local latents, one a datum; (1,) of global ones, joint over all data; −inf where
    the weights are all equal, +inf where not finite, NaN where there is no tail to fit."""
    joint: bool
    """Whether the weights are joint over all data."""
    sites: tuple[str, ...]
    """The latents that are weighed."""
    threshold: float
    num_samples: int
    num_data: int
    drawn_within: int
    """Draws over which local latents were averaged out within each draw of the global ones."""
    exact: bool
    """Whether no latent is drawn at all."""
    too_noisy: str = ""
    """Why joint weights do not tell of the guide of the global latents; empty if they do."""

    @property
    def median(self) -> float:
        """Over the data for which there is a k."""
        known = self.pareto_k[~np.isnan(self.pareto_k)]
        return float(np.median(known)) if len(known) else math.nan

    @property
    def highest(self) -> float:
        """The k that 95 of 100 data are not above."""
        known = self.pareto_k[~np.isnan(self.pareto_k)]
        return quantile(known, 1 - TOLERATED) if len(known) else math.nan

    @property
    def share_above(self) -> float:
        """Share of the data above the threshold, or without finite weights."""
        known = self.pareto_k[~np.isnan(self.pareto_k)]
        return float((known > self.threshold).mean()) if len(known) else math.nan

    def checks(self) -> list[Check]:
        """One: of the joint k, or of the k that all but one in twenty data stay below."""
        return [self._of_all() if self.joint else self._of_data()]

    def figures(self) -> dict[str, Figure]:
        """The k of every datum; none of a joint one, which is a single number."""
        finite = self.pareto_k[np.isfinite(self.pareto_k)]
        if self.joint or len(finite) == 0:
            return {}
        return {"pareto_k": pareto_figure(finite, self.threshold)}

    def _numbers(self) -> dict[str, object]:
        return {
            "sites": list(self.sites),
            "median": self.median,
            "share_above": self.share_above,
            "num_samples": self.num_samples,
            "num_data": self.num_data,
            "not_finite": int(np.isposinf(self.pareto_k).sum()),
            "all_equal": int(np.isneginf(self.pareto_k).sum()),
            "without_tail": int(np.isnan(self.pareto_k).sum()),
        }

    def _of_all(self) -> Check:
        k = float(self.pareto_k[0])
        named = ", ".join(self.sites)
        how = f"joint weights of {named} over all {self.num_data} data"
        if self.drawn_within:
            how += f", local latents averaged out by {self.drawn_within} draws each"
        if math.isnan(k):
            text = f"Cannot tell: the {how} take too few values for a tail to be fitted."
            return Check("pareto_k", "cannot tell", text, None, self.threshold, self._numbers())
        if math.isinf(k) and k < 0:
            text = f"The {how} are all equal: the guide is the exact posterior."
            return Check("pareto_k", "ok", text, k, self.threshold, self._numbers())
        if math.isinf(k):
            text = f"The {how} are not finite: {NOT_FINITE}"
            return Check("pareto_k", "bad", text, k, self.threshold, self._numbers())
        if k > self.threshold and self.too_noisy:
            text = f"{self.too_noisy}k = {k:.2f} of the {how}."
            return Check("pareto_k", "cannot tell", text, k, self.threshold, self._numbers())
        verdict = "ok" if k <= self.threshold else "bad"
        text = f"k = {k:.2f} of the {how}: {meaning(k, self.threshold)}"
        if self.num_samples < FEW_DRAWS and abs(k - self.threshold) < UNCERTAIN:
            text += f" Of {self.num_samples} draws k is uncertain by {UNCERTAIN}: give 4,000."
        return Check("pareto_k", verdict, text, k, self.threshold, self._numbers())

    def _of_data(self) -> Check:
        ks, numbers = self.pareto_k, self._numbers()
        if self.exact:
            text = f"{', '.join(self.sites)}: nothing is drawn, the sum over all states is exact."
            return Check("pareto_k", "ok", text, -math.inf, self.threshold, numbers)
        if np.isneginf(ks).all():
            text = (
                "The weights of every datum are all equal, so the gap of the ELBO is 0: the guide "
                "is the exact posterior."
            )
            return Check("pareto_k", "ok", text, -math.inf, self.threshold, numbers)
        known = int((~np.isnan(ks)).sum())
        if known == 0:
            text = (
                "Cannot tell, because the weights take too few values for a tail to be fitted "
                "(discrete latents with few states?); see ess instead."
            )
            return Check("pareto_k", "cannot tell", text, None, self.threshold, numbers)
        above, highest = int((ks > self.threshold).sum()), self.highest
        text = (
            f"{above} of {known} data have k above {self.threshold:.2f}; the median is "
            f"{self.median:.2f}. "
        )
        broken = int(np.isposinf(ks).sum())
        if broken:
            text += f"The weights of {broken} data are not finite: {NOT_FINITE}"
            return Check("pareto_k", "bad", text, highest, self.threshold, numbers)
        if highest <= self.threshold:
            text += "The guide covers the posterior: importance sampling can correct the rest."
            return Check("pareto_k", "ok", text, highest, self.threshold, numbers)
        text += (
            "For these the guide misses a part of the posterior; use a richer guide, or refit q "
            "for each datum to see whether the encoder is at fault."
        )
        verdict = "bad" if self.median > self.threshold else "warning"
        return Check("pareto_k", verdict, text, highest, self.threshold, numbers)


NOT_FINITE = (
    "a density is NaN or infinite, or the model finds every draw of the guide impossible; compare "
    "the supports of guide and model."
)


def meaning(k: float, threshold: float) -> str:
    """What a Pareto k says of a guide, as a sentence."""
    if k <= threshold:
        return "the guide covers the posterior, and importance sampling can correct the rest."
    if k < 1:
        return (
            "the guide's tails are too light for the posterior (or it is somewhere else); "
            "expectations under it are not to be trusted."
        )
    return "the guide misses the posterior so far that the weights have no mean."


def importance_weights(
    program: object,
    batch: Batch,
    *,
    num_samples: int = 1000,
    num_data: int | None = None,
    weighed: Weighed | None = None,
    seed: int = 0,
) -> ImportanceWeights:
    """Pareto k per datum of local latents, or joint over all data of global ones.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (N, ...); all that the guide was fitted to, where latents are global.
        num_samples: S.
        num_data: size of the data set that a global posterior is about.
        weighed: weights that are there already.
        seed: of the draws.

    Raises:
        CannotTell: too few draws, a guide that is a point, or a part of the data of a global
            posterior.
        PplError: the program has no latents.
    """
    check_draws(num_samples if weighed is None else weighed.num_samples)
    if weighed is None:
        weighed = weigh(program, batch, num_samples, num_data=num_data, seed=seed)
    joint = weighed.joint is not None
    return ImportanceWeights(
        pareto_k=smooth(weighed.rows.numpy())[1],
        joint=joint,
        sites=weighed.global_sites if joint else weighed.local_sites,
        threshold=k_threshold(weighed.num_samples),
        num_samples=weighed.num_samples,
        num_data=weighed.num_data,
        drawn_within=weighed.drawn_within,
        exact=weighed.exact,
        too_noisy=weighed.too_noisy(),
    )
