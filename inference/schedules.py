"""Numbers that change over a training run, as functions of the step (from 0).

They are what handlers follow: ``KLSchedule(cyclical(period=2000))``.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from ppl_models.errors import PplError

StepSchedule = Callable[[int], float]


def _check(name: str, steps: int) -> None:
    if steps < 1:
        raise PplError(f"{name} must be at least 1 step, got {steps}")


def linear(num_steps: int, start: float = 0.0, end: float = 1.0) -> StepSchedule:
    """From ``start`` to ``end`` in equal steps; ``end`` is reached at step ``num_steps`` − 1.

    References:
        Sønderby, Raiko, Maaløe, Sønderby, Winther: Ladder Variational Autoencoders, 2016,
        arXiv:1602.02282, section 3.1.
    """
    _check("num_steps", num_steps)
    return lambda step: start + (end - start) * min(1.0, (step + 1) / num_steps)


def cosine(num_steps: int, start: float = 0.0, end: float = 1.0) -> StepSchedule:
    """From ``start`` to ``end`` along half a cosine: slow, fast, slow."""
    rise = linear(num_steps)
    return lambda step: start + (end - start) * (1 - math.cos(math.pi * rise(step))) / 2


def exponential(rate: float, start: float = 0.01, end: float = 1.0) -> StepSchedule:
    """From ``start`` to ``end``, whose distance falls by the factor ``rate`` at every step.

    References:
        Ha, Eck: A Neural Representation of Sketch Drawings, 2018, arXiv:1704.03477, section 3.2.
    """
    if not 0 < rate < 1:
        raise PplError(f"rate must be between 0 and 1, got {rate}")
    return lambda step: end - (end - start) * rate**step


def cyclical(
    period: int, rising: float = 0.5, start: float = 0.0, end: float = 1.0
) -> StepSchedule:
    """Again and again from ``start`` to ``end``, linearly in a part of each period.

    Args:
        period: steps of one round.
        rising: the part of it in which the number rises; it stays for the rest.
        start: at the start of a round.
        end: at its end.

    References:
        Fu, Li, Liu, Gao, Celikyilmaz, Carin: Cyclical Annealing Schedule, 2019, arXiv:1903.10145.
    """
    _check("period", period)
    if not 0 < rising <= 1:
        raise PplError(f"rising must be above 0 and at most 1, got {rising}")
    ramp = linear(max(1, round(period * rising)), start, end)
    return lambda step: ramp(step % period)
