"""Bits are drawn with their probabilities, those between two of 256 steps too."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from inference.diagnostics.bits import QuickBits, bit_probs, draw_bits
from ppl_models import PplError

NUM = 2**20
PROBS = (1e-3, 1 / 256 - 1e-3, 1 / 256, 0.1234, 0.5, 0.5 + 1 / 512, 255.5 / 256, 1 - 1e-3)


@pytest.mark.parametrize("p", PROBS)
def test_shares_are_the_probabilities(p):
    """Within 5.5 standard errors: by luck it fails once in 25 million."""
    torch.manual_seed(0)
    share = draw_bits(torch.full((NUM,), p)).double().mean()
    assert abs(share - p) < 5.5 * (p * (1 - p) / NUM) ** 0.5


def test_neighbours_are_independent():
    """Eight bits come of one word. Correlations within 5.5 standard errors each."""
    torch.manual_seed(0)
    bits = draw_bits(torch.full((NUM // 8, 8), 0.3)).double() - 0.3
    found = (bits.T @ bits / len(bits) / 0.21).fill_diagonal_(0.0)
    assert found.abs().max() < 5.5 * len(bits) ** -0.5


def test_what_is_certain_is_so_and_shapes_are_kept():
    certain = torch.tensor([[0.0], [1.0]], dtype=torch.float64).expand(2, NUM)
    assert draw_bits(certain).equal(certain.to(torch.int8))
    assert draw_bits(torch.tensor(1.0)).equal(torch.tensor(1, dtype=torch.int8))
    assert draw_bits(torch.zeros(0, 3)).shape == (0, 3)


@pytest.mark.parametrize("wrong", [float("nan"), -0.05, 1.001, float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_what_is_no_probability_is_refused(wrong, dtype):
    """As Bernoulli does itself; one of many is enough."""
    probs = torch.full((3, 5), 0.5, dtype=dtype)
    probs[1, 2] = wrong
    with pytest.raises(PplError, match=r"must be in \[0, 1\], got (nan|numbers from)"):
        draw_bits(probs)
    fn = dist.Bernoulli(probs, validate_args=False)
    with QuickBits(), pytest.raises(PplError, match="of bits"):
        pyro.sample("bit", fn)


def test_only_plain_bits_are_drawn_so():
    probs = torch.full((3,), 0.5)
    assert bit_probs(dist.Bernoulli(probs).to_event(1)).equal(probs)
    assert bit_probs(dist.Bernoulli(probs).mask(False)) is None
    assert bit_probs(dist.Normal(probs, 1.0)) is None


def test_a_model_finds_numbers_of_its_own_kind():
    with QuickBits():
        bit = pyro.sample("bit", dist.Bernoulli(torch.tensor(1.0)))
        held = pyro.sample("held", dist.Bernoulli(torch.tensor(1.0)), obs=torch.tensor(0.0))
    assert bit.dtype == torch.float32
    assert (bit, held) == (1.0, 0.0)
