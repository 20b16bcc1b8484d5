"""Weight normalization and the largest singular values of weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from ppl_models.nets.residual_cells import depthwise_cell, plain_cell
from ppl_models.nets.spectral import SpectralNorms, matrices_of
from ppl_models.nets.weight_norm import WeightNormConv2d, WeightNormLinear


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(plain_cell(8), depthwise_cell(8, 2), nn.Conv2d(8, 3, 1)).double()


def exact(net: nn.Module) -> torch.Tensor:
    return torch.stack([torch.linalg.svdvals(m)[0] for m in matrices_of(net)]).sum()


def test_power_iterations_reach_the_singular_values_and_their_gradient():
    net = network()
    norms = SpectralNorms(net, iterations=2).double()
    for _ in range(300):
        found = norms()
    torch.testing.assert_close(found, exact(net), rtol=1e-6, atol=0)
    parameters = [p for p in net.parameters() if p.dim() > 1]
    ours = torch.autograd.grad(found, parameters)
    theirs = torch.autograd.grad(exact(net), parameters)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-5)


def test_few_iterations_give_at_most_the_sum_and_evaluation_changes_nothing():
    net = network()
    norms = SpectralNorms(net).double()
    first = norms()
    assert float(first.detach()) <= float(exact(net).detach())
    norms.eval()
    before = {name: value.clone() for name, value in norms.named_buffers()}
    norms()
    assert all(torch.equal(value, before[name]) for name, value in norms.named_buffers())


def test_autocast_leaves_them_in_full_precision():
    torch.manual_seed(0)
    norms = SpectralNorms(nn.Sequential(plain_cell(8), nn.Conv2d(8, 3, 1))).eval()
    expected = norms()
    with torch.autocast("cpu", torch.bfloat16):
        found = norms()
    assert found.dtype == torch.float32
    assert torch.equal(found, expected)


def test_the_weights_that_count_are_those_that_are_applied():
    layer = WeightNormConv2d(3, 5, 3, gain=2.0)
    (matrix,) = matrices_of(layer)
    torch.testing.assert_close(matrix.norm(dim=1), torch.full((5,), 2.0))
    x = torch.randn(2, 3, 6, 6)
    expected = nn.functional.conv2d(x, matrix.view(5, 3, 3, 3), layer.bias, padding=1)
    torch.testing.assert_close(layer(x), expected)


@pytest.mark.parametrize(
    "make", [lambda: WeightNormLinear(40, 7, 1.5), lambda: WeightNormConv2d(40, 7, 1, gain=1.5)]
)
def test_the_length_of_a_direction_does_not_matter(make):
    torch.manual_seed(0)
    layer = make()
    x = torch.randn(2000, 40) if isinstance(layer, nn.Linear) else torch.randn(2000, 40, 1, 1)
    before = layer(x)
    assert float(before.detach().std()) == pytest.approx(1.5, rel=0.1)
    with torch.no_grad():
        layer.weight.mul_(7)
    torch.testing.assert_close(layer(x), before, rtol=1e-4, atol=1e-5)
