"""Sums over the importance weights of each datum, taken in block by block.

Shapes: K particles, B data.
"""

from __future__ import annotations

import torch
from torch import Tensor


class DatumWeights:
    """Running sums over particles of each datum's weight, in float64; (B,) each."""

    def __init__(self) -> None:
        self.count = 0
        self.log_sum = self.log_sum_sq = self.mean = self.sum_sq_dev = torch.tensor(0.0)

    def add(self, log_w: Tensor) -> None:
        """Take in a block of log weights (k, B)."""
        log_w = log_w.double()
        k = len(log_w)
        block_mean = log_w.mean(0)
        block_dev = (log_w - block_mean).square().sum(0)
        log_sum, log_sum_sq = log_w.logsumexp(0), (2 * log_w).logsumexp(0)
        if self.count == 0:
            self.log_sum, self.log_sum_sq = log_sum, log_sum_sq
            self.mean, self.sum_sq_dev = block_mean, block_dev
        else:
            delta, n = block_mean - self.mean, self.count + k
            self.log_sum = torch.logaddexp(self.log_sum, log_sum)
            self.log_sum_sq = torch.logaddexp(self.log_sum_sq, log_sum_sq)
            self.sum_sq_dev = self.sum_sq_dev + block_dev + delta**2 * (self.count * k / n)
            self.mean = self.mean + delta * (k / n)
        self.count += k
