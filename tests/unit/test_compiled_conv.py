"""Convolutions in a compiled step: how far rounding may go."""

from __future__ import annotations

import pytest
import torch
from compiled_helpers import step_of, traced
from programs import tiny_images, tiny_vae

from inference.agreement import tolerance_of
from inference.elbo import AnalyticKL
from ppl_models.conv_vae import ConvGridVAE


@pytest.mark.parametrize(
    ("dtype", "convolution", "matrix"), [(torch.float32, 1e-3, 1e-4), (torch.float64, 1e-9, 1e-9)]
)
def test_convolutions_may_round_further(dtype, convolution, matrix):
    x = tiny_images(4).to(dtype)
    for program, expected in (
        (ConvGridVAE((1, 4, 4), 2, (3,), "bernoulli"), convolution),
        (tiny_vae(), matrix),
    ):
        graph = traced(step_of(program.to(dtype), AnalyticKL(), x), x)
        assert tolerance_of(graph) == expected
