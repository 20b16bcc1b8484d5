"""What rounding to 16 bits makes of gradients is let through, and other numbers are not."""

from __future__ import annotations

import pytest
import torch

from inference.agreement import HALF_GRADIENTS, check_alike
from inference.graphs import NotCompiledError


def gradient(seed):
    return torch.randn(200, generator=torch.Generator().manual_seed(seed))


def test_one_number_may_be_far_off_but_not_the_whole():
    g = gradient(0)
    off = g.clone()
    off[3] += 0.2 * g.abs().max()
    check_alike("g", off, g, HALF_GRADIENTS, 0.0, 2)
    with pytest.raises(NotCompiledError, match="differ at g"):
        check_alike("g", off, g, HALF_GRADIENTS, 0.0)
    with pytest.raises(NotCompiledError, match="differ at g"):
        check_alike("g", g + 0.2 * gradient(1), g, HALF_GRADIENTS, 0.0, 2)


@pytest.mark.parametrize("order", [2, float("inf")])
def test_numbers_that_are_as_good_as_zero_and_those_that_are_none(order):
    small, other = 1e-6 * gradient(0), 1e-6 * gradient(1)
    check_alike("g", small, other, HALF_GRADIENTS, 1e-3, order)
    with pytest.raises(NotCompiledError):
        check_alike("g", small, other, HALF_GRADIENTS, 0.0, order)
    broken = small.clone()
    broken[0] = float("nan")
    check_alike("g", broken, broken, HALF_GRADIENTS, 0.0, order)
    with pytest.raises(NotCompiledError):
        check_alike("g", broken, small, HALF_GRADIENTS, 1.0, order)
