"""Draws of bits, most of the time that images of them take, at half of the usual cost."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Bernoulli
from pyro.poutine.messenger import Messenger
from torch import Tensor

from inference.sites import innermost, is_partial
from ppl_models.errors import PplError


def draw_bits(probs: Tensor) -> Tensor:
    """Bits that are 1 with these probabilities, in bytes.

    A uniform number decides by its first eight binary digits, drawn for eight bits at once, and by
    the rest, drawn apart, where those digits are the same as the probability's: one time in 256.

    Args:
        probs: p, any shape, in [0, 1].

    Returns:
        int8 of that shape.

    Raises:
        PplError: numbers that are no probabilities.

    Example:
        >>> draw_bits(torch.tensor([0.0, 1.0]))
        tensor([0, 1], dtype=torch.int8)
    """
    if probs.numel():
        _check(probs)
    places = probs.reshape(-1) * 256
    words = torch.empty(-(-len(places) // 8), dtype=torch.int64, device=probs.device)
    digits = words.random_(-(2**63), None).view(torch.uint8)[: len(places)]
    first = places.to(torch.int16).clamp_(max=255).to(torch.uint8)  # of p = 1 too
    ones = digits < first
    undecided = (digits == first).nonzero().squeeze(-1)
    rest = places[undecided] - first[undecided]
    ones[undecided] = torch.rand_like(rest) < rest
    return ones.view(torch.int8).view(probs.shape)


def _check(probs: Tensor) -> None:
    low, high = (float(v) for v in probs.aminmax())  # NaN is either of them
    if not (low >= 0 and high <= 1):
        got = "nan" if low != low else f"numbers from {low:g} to {high:g}"
        raise PplError(
            f"probabilities of bits must be in [0, 1], got {got}. Give Bernoulli its logits, and "
            "look for what is not finite: a diverged fit, or data that are not scaled"
        )


def bit_probs(fn: Any) -> Tensor | None:
    """The probabilities of independent bits; None of another distribution.

    Args:
        fn: a distribution.
    """
    inner = innermost(fn)
    plain = type(inner) is Bernoulli and not is_partial(fn)
    return inner.probs if plain and inner.probs.shape == fn.shape() else None


class QuickBits(Messenger):
    """Within, sites of independent bits that are not observed are drawn by :func:`draw_bits`."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["value"] is None and not msg["is_observed"]:
            probs = bit_probs(msg["fn"])
            msg["value"] = None if probs is None else draw_bits(probs).to(probs.dtype)
