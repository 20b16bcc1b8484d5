"""How well stated confidences match how often they are right.

Shapes: N predictions, C classes.

References:
    Guo, Pleiss, Sun, Weinberger: On Calibration of Modern Neural Networks, 2017, arXiv:1706.04599:
    the expected calibration error over bins of equal width.
    Bröcker, Smith: Increasing the Reliability of Reliability Diagrams, Weather and Forecasting 22,
    2007: what perfect calibration looks like by chance, from draws of its labels.
    Brier: Verification of forecasts expressed in terms of probability, Monthly Weather Review 78,
    1950: the score summed over classes, from 0 to 2.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]
DRAWS = 2000
LEAST = 1e-12
"""Probability that the log score takes in the place of less."""


@dataclass(frozen=True)
class Reliability:
    """The confidence in the likeliest class against how often it is right."""

    ece: float
    """Expected calibration error: |accuracy − confidence|, averaged over bins by their counts."""
    ece_se: float
    """Its standard error, by the bootstrap."""
    ece_of_chance: float
    """Its mean were the calibration perfect: it is positive with finitely many data."""
    ece_limit: float
    """What it exceeds by chance in 1 case of 100 were the calibration perfect."""
    p_value: float
    """That perfect calibration gives as large an error; 1/2001 at least."""
    edges: Array
    """Of the bins, (bins + 1,)."""
    counts: NDArray[np.int64]
    """(bins,)."""
    confidence: Array
    """Mean in each bin, NaN in an empty one, (bins,)."""
    accuracy: Array
    """Share that is right in each bin, (bins,)."""


def reliability(confidence: Array, correct: NDArray[np.bool_], bins: int, seed: int) -> Reliability:
    """Compare confidences with how often they are right.

    Args:
        confidence: in the likeliest class, (N,).
        correct: whether it was right, (N,).
        bins: of equal width over [0, 1].
        seed: of the draws.
    """
    rng, num = np.random.default_rng(seed), len(confidence)
    place = np.minimum((confidence * bins).astype(int), bins - 1)
    inside = np.eye(bins)[place]  # (N, bins)

    def error(excess: Array) -> Array:
        """(..., N) right less confident -> (...,)."""
        return np.abs(excess @ inside).sum(-1) / num

    excess = correct - confidence
    ece = float(error(excess))
    perfect = error((rng.random((DRAWS, num)) < confidence) - confidence)
    again = error(rng.multinomial(num, np.full(num, 1 / num), DRAWS // 4) * excess)
    counts = inside.sum(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean, right = confidence @ inside / counts, correct @ inside / counts
    return Reliability(
        ece=ece,
        ece_se=float(again.std()),
        ece_of_chance=float(perfect.mean()),
        ece_limit=float(np.quantile(perfect, 0.99)),
        p_value=float((1 + (perfect >= ece - 1e-12).sum()) / (DRAWS + 1)),
        edges=np.linspace(0, 1, bins + 1),
        counts=counts.astype(np.int64),
        confidence=mean,
        accuracy=right,
    )


def brier(probabilities: Array, labels: NDArray[np.integer]) -> Array:
    """Σ_c (p_c − 1[c = label])² of each prediction (N, C), (N,)."""
    return ((probabilities - np.eye(probabilities.shape[1])[labels]) ** 2).sum(1)


def log_score(probabilities: Array, labels: NDArray[np.integer]) -> Array:
    """−log p(label) of each prediction (N, C), (N,); nats, of probabilities of at least 1e-12."""
    chosen = probabilities[np.arange(len(labels)), labels]
    return -np.log(np.maximum(chosen, LEAST))
