"""Are ranks uniform? Exact bands for their distribution function, and tests.

Shapes: N ranks, each from 0 to L; so L + 1 possible ones.

References:
    Säilynoja, Bürkner, Vehtari: Graphical Test for Discrete Uniformity and its Applications in
    Goodness of Fit Evaluation and Multiple Sample Comparison, Statistics and Computing 32, 2022,
    arXiv:2103.10522: the probability that the whole function stays within a band, by recursion.
    Butler: A test for symmetry using the sample distribution function, Annals of Mathematical
    Statistics 40, 1969.
    Holm: A Simple Sequentially Rejective Multiple Test Procedure, Scandinavian Journal of
    Statistics 6, 1979.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import gammaln

Array = NDArray[np.floating]
Ranks = NDArray[np.integer]
EXPECTED = 20
"""Ranks in a bin of the chi-square test, at least."""
CLEAR = 4.0
"""Standard errors from which the mean or the spread of ranks is named."""


class Band(NamedTuple):
    """A region that the distribution function of uniform ranks leaves with a known chance."""

    points: Array
    """Shares i/(L+1), (L,)."""
    low: Array
    """Of the ranks below a point, the smallest share, (L,)."""
    high: Array
    """The largest, (L,)."""


def below_points(ranks: Ranks, num_draws: int) -> Ranks:
    """How many ranks lie below i = 1, ..., L, (L,)."""
    counts = np.bincount(ranks, minlength=num_draws + 1)
    return np.cumsum(counts)[:-1]


@lru_cache(maxsize=8)
def _tails(num: int, num_draws: int) -> tuple[Array, Array]:
    """P(count ≤ c) and P(count ≥ c) at each point, (L, N + 1)."""
    shares = np.arange(1, num_draws + 1)[:, None] / (num_draws + 1)
    counts = np.arange(num + 1)[None, :]
    return stats.binom.cdf(counts, num, shares), stats.binom.sf(counts - 1, num, shares)


def _leaves(level: float, num: int, num_draws: int) -> float:
    """P(some point's count has a tail of at most level / 2), of uniform ranks."""
    cdf, sf = _tails(num, num_draws)
    half = level / 2 * (1 + 1e-9)
    allowed = (cdf > half) & (sf > half)
    log_factorial = gammaln(np.arange(num + 1) + 1.0)
    at, chance = np.array([0]), np.array([1.0])
    for i in range(num_draws):
        share = 1 / (num_draws + 1 - i)  # of the ranks that are not below point i
        to = np.flatnonzero(allowed[i])
        left, step = num - at[:, None], to[None, :] - at[:, None]
        ok = step >= 0
        step = np.where(ok, step, 0)
        log_p = log_factorial[left] - log_factorial[step] - log_factorial[left - step]
        log_p += step * math.log(share) + (left - step) * math.log1p(-share)
        chance, at = chance @ np.where(ok, np.exp(log_p), 0.0), to
    return float(max(0.0, 1.0 - chance.sum()))


def ecdf_p_value(ranks: Ranks, num_draws: int) -> float:
    """The chance that uniform ranks stray as far somewhere, exactly (to about 1e-12).

    Args:
        ranks: (N,).
        num_draws: L.
    """
    cdf, sf = _tails(len(ranks), num_draws)
    counts, points = below_points(ranks, num_draws), np.arange(num_draws)
    level = 2 * float(np.minimum(cdf[points, counts], sf[points, counts]).min())
    return min(1.0, _leaves(level, len(ranks), num_draws))


@lru_cache(maxsize=8)
def ecdf_band(num: int, num_draws: int, alpha: float) -> Band:
    """The band that the whole distribution function leaves with a chance of at most alpha.

    Args:
        num: N.
        num_draws: L.
        alpha: the chance.
    """
    low, high = math.log(alpha / (20 * num_draws)), math.log(alpha)
    for _ in range(14):
        middle = (low + high) / 2
        if _leaves(math.exp(middle), num, num_draws) <= alpha:
            low = middle
        else:
            high = middle
    cdf, sf = _tails(num, num_draws)
    allowed = (cdf > math.exp(low) / 2) & (sf > math.exp(low) / 2)
    first, last = allowed.argmax(1), num - allowed[:, ::-1].argmax(1)
    return Band(np.arange(1, num_draws + 1) / (num_draws + 1), first / num, last / num)


def num_bins(num: int, num_draws: int, most: int = 20) -> int:
    """Bins of as many possible ranks each, with enough ranks expected in each."""
    fitting = [b for b in range(1, most + 1) if (num_draws + 1) % b == 0 and num / b >= EXPECTED]
    return fitting[-1] if fitting else 1


def binned(ranks: Ranks, num_draws: int, bins: int) -> Ranks:
    """Ranks in each bin, (bins,)."""
    return np.bincount(ranks * bins // (num_draws + 1), minlength=bins)


def chi_square_p_value(ranks: Ranks, num_draws: int) -> float:
    """Of the ranks in bins; 1 where they are too few for two bins."""
    bins = num_bins(len(ranks), num_draws)
    return float(stats.chisquare(binned(ranks, num_draws, bins)).pvalue) if bins > 1 else 1.0


def symmetry_p_value(ranks: Ranks, num_draws: int) -> float:
    """Of Butler's test that ranks are symmetric about L / 2, whatever else they are.

    Sorted by their distance from the middle, the sides that they lie on are fair coins.
    """
    away = 2 * ranks - num_draws
    steps = np.bincount(np.abs(away), weights=np.sign(away))[::-1]
    walk = float(np.abs(np.cumsum(steps)).max()) / math.sqrt(max(1, int((away != 0).sum())))
    terms = [(-1) ** k * stats.norm.sf((2 * k + 1) * walk) for k in range(50)]
    return float(min(1.0, max(0.0, 4 * sum(terms)))) if walk > 0.3 else 1.0


def holm(p_values: Array) -> Array:
    """Adjusted for their number: any below alpha is a false alarm with chance alpha at most."""
    order, num = np.argsort(p_values), len(p_values)
    steps = np.maximum.accumulate(p_values[order] * (num - np.arange(num)))
    adjusted = np.empty(num)
    adjusted[order] = np.minimum(1.0, steps)
    return adjusted


def shape_of(ranks: Ranks, num_draws: int) -> tuple[str, ...]:
    """What is clear of the ranks' shape: ``low`` or ``high`` (shifted), ``U`` or ``hump``.

    Args:
        ranks: of what was drawn among the posterior's draws, (N,).
        num_draws: L.
    """
    # Normal scores: of a Gaussian that is shifted they are shifted, and of one that is too narrow
    # they are wider, so that neither is taken for the other.
    possible = np.asarray(stats.norm.ppf((np.arange(num_draws + 1) + 0.5) / (num_draws + 1)))
    scores, variance = possible[ranks], float((possible**2).mean())
    shift = scores.mean() / math.sqrt(variance / len(ranks))
    spread = scores.var() - variance
    spread /= math.sqrt(float((possible**2).var()) / len(ranks))
    found = []
    if abs(shift) > CLEAR:
        found.append((abs(shift), "high" if shift > 0 else "low"))
    if abs(spread) > CLEAR:
        found.append((abs(spread), "U" if spread > 0 else "hump"))
    return tuple(name for _, name in sorted(found, reverse=True))
