"""Moments of a stream of vectors, by Welford's recurrences in float64.

What is kept is one vector and a few numbers, however long the stream.

Shapes: P entries of a vector, G groups of them.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class Moments:
    """Mean and variance of every entry of a stream of tensors of one shape."""

    def __init__(self) -> None:
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.squares = torch.zeros((), dtype=torch.float64)
        """Sum of squared deviations from the mean."""

    def update(self, value: Tensor) -> None:
        """Take in the next tensor."""
        value = value.double()
        self.count += 1
        delta = value - self.mean
        self.mean = self.mean + delta / self.count
        self.squares = self.squares + delta * (value - self.mean)

    @property
    def variance(self) -> Tensor:
        """Unbiased; NaN for fewer than two values."""
        return self.squares / (self.count - 1) if self.count > 1 else self.squares * torch.nan

    @property
    def variance_of_mean(self) -> Tensor:
        """Squared standard error of the mean."""
        return self.variance / self.count if self.count else self.squares * torch.nan


class VectorMoments:
    """Mean (P,) of a stream of vectors, and the trace of its covariance by group (G,).

    Args:
        sum_by_group: from (P,) to (G,).
    """

    def __init__(self, sum_by_group: Callable[[Tensor], Tensor]) -> None:
        self.sum_by_group = sum_by_group
        self.count = 0
        self.mean = torch.zeros((), dtype=torch.float64)
        self.scatter = torch.zeros((), dtype=torch.float64)
        """Sum of squared distances from the mean, by group."""

    def update(self, vector: Tensor) -> None:
        """Take in the next vector."""
        self.count += 1
        delta = vector.double() - self.mean
        self.mean = self.mean + delta / self.count
        self.scatter = self.scatter + self.sum_by_group(delta * (vector - self.mean))

    @property
    def variance(self) -> Tensor:
        """Trace of the covariance, by group (G,)."""
        return self.scatter / (self.count - 1) if self.count > 1 else self.scatter * torch.nan

    @property
    def second_moment(self) -> Tensor:
        """Mean of the squared norm, by group (G,)."""
        return self.scatter / self.count + self.sum_by_group(self.mean**2)

    def squared_distance(self, point: Tensor | float = 0.0, noise: Tensor | float = 0.0) -> Tensor:
        """‖E g − point‖² by group (G,), without what the noise of the mean adds to it.

        Args:
            point: (P,), or the origin.
            noise: squared standard error of the point, by group (G,).
        """
        raw = self.sum_by_group((self.mean - point) ** 2)
        return (raw - self.variance / self.count - noise).clamp(min=0.0)


def signal_to_noise(squared_norm: Tensor, variance: Tensor) -> Tensor:
    """‖E g‖ / sd(g): infinite without noise, and NaN where there is neither."""
    return (squared_norm / variance).sqrt()
