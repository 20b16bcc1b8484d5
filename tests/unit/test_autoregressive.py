"""Causal networks and the distribution over grids that they make."""

from __future__ import annotations

import math

import pytest
import torch
from autoregressive_helpers import NETS, all_grids, causal_net
from scipy import stats

from ppl_models.distributions import AutoregressiveGrid
from ppl_models.errors import PplError, ProgramError
from ppl_models.nets import CausalTransformer, Context, GatedPixelCNN


def dependence(net, name, grid):
    """(n, n): whether the logits at a position (row) have a gradient from one before (column)."""
    height, width = grid
    codes = torch.randint(net.num_values, (2, height, width))
    embedded = net.embedding(codes).detach().requires_grad_()
    net.embedding.forward = lambda codes: (
        embedded if name == "pixelcnn" else embedded.flatten(1, 2)[:, :-1]
    )
    try:
        logits = net(codes).flatten(1, 2)
        reached = []
        for position in range(height * width):
            (gradient,) = torch.autograd.grad(
                logits[:, position].square().sum(), embedded, retain_graph=True, allow_unused=True
            )
            size = torch.zeros(2, height, width) if gradient is None else gradient.abs().sum(-1)
            reached.append(size.flatten(1).sum(0) > 0)
    finally:
        del net.embedding.forward
    return torch.stack(reached)


@pytest.mark.parametrize("name", NETS)
def test_logits_depend_on_all_that_is_before_and_on_nothing_else(name):
    grid = (5, 6)
    found = dependence(causal_net(name, grid=grid), name, grid)
    assert torch.equal(found, torch.ones(30, 30).tril(-1).bool())


def test_a_narrow_pixelcnn_has_no_blind_spot_within_its_reach():
    grid = (9, 9)
    torch.manual_seed(0)
    net = GatedPixelCNN(2, 4, 1).double()  # one layer of kernel 7
    found = dependence(net, "pixelcnn", grid)[4 * 9 + 4].reshape(9, 9)
    expected = torch.zeros(9, 9, dtype=torch.bool)
    expected[0:4, 1:8] = True  # reach 3, after the shift by one
    expected[4, 0:4] = True
    assert torch.equal(found, expected)
    deeper = GatedPixelCNN(2, 4, 3).double()
    assert dependence(deeper, "pixelcnn", grid)[40].sum() == 40


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize(("values", "shape"), [(3, (2, 2)), (2, (3, 3)), (2, (2, 2, 2))])
def test_probabilities_of_all_grids_sum_to_one(name, values, shape):
    raster = (shape[-2], shape[-1] * (shape[0] if len(shape) == 3 else 1))
    states = all_grids(values, *shape)
    grid = AutoregressiveGrid(causal_net(name, values, raster), shape)
    assert float(grid.log_prob(states).exp().sum()) == pytest.approx(1, abs=1e-12)
    conditioned = causal_net(name, values, raster, context_dim=2)
    context = torch.randn(2, 2, *raster).double()
    given = AutoregressiveGrid(conditioned, shape, context)
    log_prob = given.expand((len(states), 2)).log_prob(states.unsqueeze(1))
    assert torch.allclose(log_prob.exp().sum(0), torch.ones(2).double(), atol=1e-12)
    assert not torch.allclose(log_prob[:, 0], log_prob[:, 1])
    sharp = grid.sharpened(0.7, 2).log_prob(states)
    assert float(sharp.exp().sum()) == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("conditioned", [False, True])
def test_the_cached_sampler_gives_the_tokens_of_whole_passes(name, conditioned):
    net = causal_net(name, 5, (4, 6), context_dim=3 * conditioned)
    contexts = (torch.randn(7, 3, 4, 6), torch.randn(7, 3, 1, 1)) if conditioned else (None,)
    for context in contexts:
        drawn = []
        for cached in (True, False):
            wide = None if context is None else context.double()
            grid = AutoregressiveGrid(net, (4, 6), wide, batch_shape=(7,), cached=cached)
            torch.manual_seed(1)
            drawn.append(grid.sample((2,)))
        assert drawn[0].shape == (2, 7, 4, 6)
        assert torch.equal(*drawn)
        assert len(drawn[0].unique()) > 2


@pytest.mark.parametrize("name", NETS)
def test_the_cached_logits_are_those_of_a_whole_pass(name):
    net = causal_net(name, 4, (3, 5), context_dim=2)
    codes, context = torch.randint(4, (6, 3, 5)), torch.randn(6, 2, 3, 5).double()
    sampler = net.sampler(6, (3, 5), context)
    steps = []
    for values in codes.flatten(1).unbind(1):
        steps.append(sampler.logits())
        sampler.take(values)
    assert torch.allclose(torch.stack(steps, 1), net(codes, context).flatten(1, 2), atol=1e-12)


@pytest.mark.parametrize("name", NETS)
def test_draws_follow_the_density(name):
    """Chi-square over the 16 grids of 2×2 bits; fails by luck in one of 100,000 seeds."""
    grid = AutoregressiveGrid(causal_net(name, 2, (2, 2)), (2, 2))
    for sharp in (grid, grid.sharpened(temperature=0.5)):
        torch.manual_seed(0)
        drawn = sharp.sample((20_000,)).flatten(1) @ torch.tensor([8, 4, 2, 1])
        counts = torch.bincount(drawn, minlength=16)
        expected = 20_000 * sharp.log_prob(all_grids(2, 2, 2)).exp()
        often = expected > 5
        statistic = ((counts - expected).square() / expected)[often].sum()
        assert float(statistic) < stats.chi2.ppf(1 - 1e-5, int(often.sum()) - 1)


@pytest.mark.parametrize("name", NETS)
def test_temperature_and_top_k_sharpen_the_softmax(name):
    net = causal_net(name, 5, (2, 3))
    codes = torch.randint(5, (4, 2, 3))
    grid = AutoregressiveGrid(net, (2, 3))
    logits = net(codes)
    assert torch.allclose(grid.sharpened(2.0).logits(codes).softmax(-1), (logits / 2).softmax(-1))
    kept = grid.sharpened(0.5, 2).logits(codes).softmax(-1)
    exact = (logits / 0.5).softmax(-1)
    largest = exact.topk(2, dim=-1)
    expected = torch.zeros_like(exact).scatter(-1, largest.indices, largest.values)
    assert torch.allclose(kept, expected / expected.sum(-1, keepdim=True))
    torch.manual_seed(0)
    greedy = grid.sharpened(top_k=1).sample((3,))
    assert torch.equal(greedy[0], greedy[1])
    assert torch.allclose(grid.sharpened(top_k=1).log_prob(greedy), torch.zeros(3).double())
    tokens = grid.sharpened(top_k=3).sample((50,))
    assert bool(grid.sharpened(top_k=3).log_prob(tokens).isfinite().all())
    assert torch.equal(grid.sharpened(top_k=9).log_prob(codes), grid.log_prob(codes))
    cold = grid.sharpened(1e-310)  # logits / T overflow
    assert torch.equal(cold.sample((2,)), greedy[:2])
    assert torch.equal(cold.log_prob(greedy), torch.zeros(3).double())


@pytest.mark.parametrize("name", NETS)
def test_a_context_needs_no_batch(name):
    """(F, 1, 1) alone, and particles before the data."""
    net, context = causal_net(name, 3, (2, 2), 2), torch.randn(2, 1, 1).double()
    codes = torch.randint(3, (4, 5, 2, 2))
    alone = AutoregressiveGrid(net, (2, 2), context)
    assert alone.batch_shape == ()
    assert alone.sample().shape == (2, 2)
    same = AutoregressiveGrid(net, (2, 2), context.expand(5, 2, 1, 1))
    assert torch.allclose(alone.log_prob(codes), same.log_prob(codes))
    assert torch.allclose(alone.log_prob(codes[0, 0]), same.log_prob(codes)[0, 0])


def test_a_label_and_a_coarser_grid_condition():
    torch.manual_seed(0)
    context = Context(4, num_classes=3, num_values=5)
    coarse = torch.randint(5, (2, 2, 3))
    features = context((4, 6), torch.eye(3)[:2], coarse)
    assert features.shape == (2, 4, 4, 6)
    other = coarse.clone()
    other[0, 0, 0] = (other[0, 0, 0] + 1) % 5
    change = (context((4, 6), torch.eye(3)[:2], other) - features).abs().sum(1)
    assert bool((change[0, :2, :2] > 0).all())
    assert bool((change[1] == 0).all())
    particles = context((4, 6), torch.eye(3)[:2], torch.stack([coarse, other]))
    again = [context((4, 6), torch.eye(3)[:2], grid) for grid in (coarse, other)]
    torch.testing.assert_close(particles, torch.stack(again))


def test_grey_levels_and_channels_go_there_and_back():
    net = causal_net("pixelcnn", 4, (2, 9))
    grid = AutoregressiveGrid(net, (3, 2, 3), grey=True)
    torch.manual_seed(0)
    x = grid.sample((5,))
    assert x.shape == (5, 3, 2, 3)
    assert set((3 * x).round().unique().tolist()) <= {0.0, 1.0, 2.0, 3.0}
    codes = grid.to_codes(x)
    assert codes.shape == (5, 2, 9)
    assert torch.equal(codes[0, 1, 3:6], (3 * x[0, :, 1, 1]).round().long())
    assert torch.allclose(grid.from_codes(codes), x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda net: AutoregressiveGrid(net, (2, 2), temperature=0.0), "temperature must be posit"),
        (lambda net: AutoregressiveGrid(net, (2, 2), temperature=math.inf), "temperature must be"),
        (lambda net: AutoregressiveGrid(net, (2, 2)).sharpened(top_k=0), "top_k must be a whole"),
        (lambda net: AutoregressiveGrid(net, (2, 2)).sharpened(top_k=2.5), "got 2.5"),
        (lambda net: AutoregressiveGrid(net, (4,)), r"a grid is \(h, w\) or \(C, h, w\)"),
        (
            lambda net: AutoregressiveGrid(net, (2, 2)).log_prob(torch.full((1, 2, 2), 3)),
            "of 3 values takes the integers, k = 0 to 2; got values from 3 to 3",
        ),
        (
            lambda net: AutoregressiveGrid(net, (1, 2, 2), grey=True).log_prob(
                torch.full((1, 1, 2, 2), 0.3)
            ),
            r"takes the grey levels k / 2.*got values from 0.3 to 0.3.*Binarize",
        ),
        (
            lambda net: AutoregressiveGrid(net, (2, 2)).log_prob(torch.zeros(1, 3, 2)),
            r"the grid has shape \(2, 2\)",
        ),
    ],
)
def test_bad_input_is_refused(make, message):
    with pytest.raises(PplError, match=message):
        make(causal_net("pixelcnn", 3, (2, 2)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: GatedPixelCNN(2, 4, 2, kernel_size=4), "kernel_size must be odd"),
        (lambda: GatedPixelCNN(2, 0), "must be at least 1"),
        (lambda: CausalTransformer(2, (2, 2), 10, num_heads=4), "multiple of num_heads"),
        (lambda: CausalTransformer(2, (2, 2), dropout=1.0), "dropout must be"),
        (lambda: CausalTransformer(2, (2, 2), 4).sampler(1, (3, 2)), "made for grids of"),
    ],
)
def test_networks_that_cannot_be_are_refused(make, message):
    with pytest.raises(ProgramError, match=message):
        make()
