"""Hierarchical VAEs: closed forms, shapes, options, refusals.

Shapes: B data, S points.
"""

from __future__ import annotations

import math

import pyro.distributions as dist
import pytest
import torch
from compiled_helpers import both, step_of, traced
from programs import images_for, tiny_images
from pyro import poutine
from torch import nn
from unit.test_shared_pass import tiny_hierarchy, tiny_ladder

from inference.elbo import AnalyticKL
from inference.elbo.handlers import FixedValues
from inference.elbo.traces import run_traces
from inference.evaluation import evaluate
from inference.sampling import sample
from inference.testing import check_program
from ppl_models import CATALOG, PplError, ProgramError, build
from ppl_models.grouped import MAX_LOG_SCALE, Group, GroupedVAE
from ppl_models.hierarchical_presets import hvae_mnist_small
from ppl_models.hierarchical_vae import HierarchicalVAE
from ppl_models.ladder_vae import LadderVAE

PRESETS = [n for n in CATALOG if n.startswith(("hvae", "nvae"))]


class Affine(nn.Module):
    """loc = inputs · weight + bias, and a constant log-scale, (..., 2)."""

    def __init__(self, weight, bias, scale):
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64).unsqueeze(-1))
        self.bias = nn.Parameter(torch.tensor(bias, dtype=torch.float64))
        raw = MAX_LOG_SCALE * math.atanh(math.log(scale) / MAX_LOG_SCALE)
        self.raw = nn.Parameter(torch.tensor(raw, dtype=torch.float64))

    def forward(self, *inputs):
        batch = torch.broadcast_shapes(*(v.shape[:-1] for v in inputs))
        joined = torch.cat([v.expand(*batch, v.shape[-1]) for v in inputs], dim=-1)
        loc = joined @ self.weight + self.bias
        return torch.cat([loc, self.raw.expand_as(loc)], dim=-1)


class Below(nn.Module):
    """h_l = z_l."""

    def forward(self, state, z):
        return z


class Zero(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("state", torch.zeros(1))

    def forward(self):
        return self.state


class Noisy(nn.Module):
    """x ~ Normal(2 z_2 − 0.3, 0.6), one number."""

    def forward(self, state):
        return dist.Normal(2.0 * state - 0.3, 0.6).to_event(1)


class BothScales(nn.Module):
    def forward(self, x):
        return [x, x]


def linear_ladder(changes) -> GroupedVAE:
    """z_1 ~ N(0.2, 1.1²), z_2 ~ N(0.7 z_1 + 0.1, 0.8²), x ~ N(2 z_2 − 0.3, 0.6²)."""
    first = Group(Affine([0.0], 0.2, 1.1), Affine(*changes[0]), Below())
    second = Group(Affine([0.7], 0.1, 0.8), Affine(*changes[1]), Below())
    return GroupedVAE(Zero(), [[first], [second]], BothScales(), nn.Identity(), Noisy()).double()


X = torch.tensor([[-1.3], [0.2], [1.1], [4.0]], dtype=torch.float64)
PRIOR_MEAN = 2 * (0.7 * 0.2 + 0.1) - 0.3
VARIANCE_2 = 0.7**2 * 1.1**2 + 0.8**2
EVIDENCE_SCALE = torch.tensor(4 * VARIANCE_2 + 0.36, dtype=torch.float64).sqrt()
EVIDENCE = dist.Normal(PRIOR_MEAN, EVIDENCE_SCALE).log_prob(X).sum(-1)


def exact_changes():
    """How the exact posterior's conditionals differ from the prior's: q(z_1 | x), q(z_2 | z_1, x).

    A Gaussian z ~ N(m, v) seen as x ~ N(a z + b, w) has variance 1 / (1/v + a²/w) and moves from m
    by gain · (x − a m − b), gain = a v / (a² v + w).
    """

    def seen(v, a, w):
        return a * v / (a**2 * v + w), math.sqrt(w / (a**2 * v + w))

    gain_1, ratio_1 = seen(1.1**2, 1.4, 4 * 0.8**2 + 0.36)  # x | z_1 ~ N(1.4 z_1 − 0.1, ...)
    gain_2, ratio_2 = seen(0.8**2, 2.0, 0.36)
    first = ([0.0, gain_1], -gain_1 * (1.4 * 0.2 - 0.1), ratio_1)
    second = ([-gain_2 * 1.4, gain_2], -gain_2 * (2 * 0.1 - 0.3), ratio_2)
    return first, second


def log_weights(program, values) -> torch.Tensor:
    """log p(x, z) − log q(z | x) at given values, (B,)."""
    with FixedValues(values), torch.no_grad():
        traces = run_traces(program.model, program.guide, (X,), {})
    return sum(
        sign * trace.nodes[name]["fn"].log_prob(trace.nodes[name]["value"])
        for sign, trace, names in (
            (1, traces.model, ("z_1", "z_2", "x")),
            (-1, traces.guide, ("z_1", "z_2")),
        )
        for name in names
    )


def test_with_the_exact_posterior_every_draw_has_the_evidence_for_weight():
    program = linear_ladder(exact_changes())
    values = {"z_1": torch.randn(4, 1).double(), "z_2": torch.randn(4, 1).double()}
    torch.testing.assert_close(log_weights(program, values), EVIDENCE, rtol=1e-10, atol=1e-10)


POOR = (([0.0, 0.25], 0.1, 0.5), ([-0.3, 0.2], -0.05, 0.7))
"""A guide that is not the posterior."""


def closed_form_elbo() -> torch.Tensor:
    """E_q[log p(x, z) − log q(z)] of the poor guide, by moments of Gaussians, (B,)."""
    x = X.squeeze(-1)
    m_1, s_1 = 0.2 + 0.25 * x + 0.1, 1.1 * 0.5  # q(z_1 | x)
    a, s_2 = 0.7 - 0.3, 0.8 * 0.7  # q(z_2 | z_1, x) = N(a z_1 + c, s_2²)
    c = 0.1 + 0.2 * x - 0.05
    m_2, v_2 = a * m_1 + c, a**2 * s_1**2 + s_2**2  # q(z_2 | x)

    def cross(mean_square, scale):  # E log N(·; ·, scale²), of a gap of this mean square
        return -0.5 * math.log(2 * math.pi) - math.log(scale) - 0.5 * mean_square / scale**2

    gap_2 = (m_2 - 0.7 * m_1 - 0.1) ** 2 + (a - 0.7) ** 2 * s_1**2 + s_2**2
    log_p = cross((m_1 - 0.2) ** 2 + s_1**2, 1.1) + cross(gap_2, 0.8)
    log_p = log_p + cross((x - 2 * m_2 + 0.3) ** 2 + 4 * v_2, 0.6)
    return log_p - cross(s_1**2, s_1) - cross(s_2**2, s_2)


def test_the_grouped_elbo_is_the_closed_form():
    """The log weight is quadratic in the noise, so that a mean over ± √2 e_i is exact."""
    program, total = linear_ladder(POOR), torch.zeros(4, dtype=torch.float64)
    for number in (0, 1):
        for sign in (-1, 1):
            noise = torch.zeros(2, dtype=torch.float64)
            noise[number] = sign * math.sqrt(2)
            z_1 = 0.2 + 0.25 * X + 0.1 + 1.1 * 0.5 * noise[0]
            z_2 = 0.4 * z_1 + 0.05 + 0.2 * X + 0.8 * 0.7 * noise[1]
            total += log_weights(program, {"z_1": z_1, "z_2": z_2}) / 4
    torch.testing.assert_close(total, closed_form_elbo(), rtol=0, atol=1e-10)


def test_the_engine_agrees_within_its_standard_errors():
    """By luck it is off with p = 6e-5 for either number."""
    found = evaluate(linear_ladder(POOR), {"x": X}, num_particles=1000, seed=0)
    exact, bound = float(EVIDENCE.mean()), float(closed_form_elbo().mean())
    assert bound < exact - 0.1
    assert abs(found.elbo - bound) < 4 * found.elbo_se
    assert abs(found.iwae - exact) < 4 * found.iwae_se
    assert found.iwae_se < 0.1
    assert set(found.kl) == {"z_1", "z_2"}


@pytest.mark.parametrize("likelihood", ["bernoulli", "discretized_logistic_mixture", "normal"])
def test_the_contract_is_kept(likelihood):
    x = images_for(likelihood, 5)
    check_program(tiny_hierarchy(likelihood=likelihood, spectral_weight=0.1), {"x": x})
    check_program(tiny_ladder(likelihood=likelihood, spectral_weight=0.1), {"x": x})


@pytest.mark.parametrize("cell", ["plain", "depthwise"])
def test_grids_channels_and_scales(cell):
    program = HierarchicalVAE(
        (3, 8, 12), (2, 1), (2, 3), (4, 6), cell=cell, likelihood="discretized_logistic_mixture"
    )
    assert program.grids == [(2, 3), (4, 6)]
    assert program.scales == [["z_1", "z_2"], ["z_3"]]
    trace = poutine.trace(program.guide).get_trace(torch.rand(5, 3, 8, 12))
    shapes = {n: tuple(trace.nodes[n]["value"].shape) for n in ("z_1", "z_2", "z_3")}
    assert shapes == {"z_1": (5, 2, 2, 3), "z_2": (5, 2, 2, 3), "z_3": (5, 3, 4, 6)}
    assert program.model(size=2).shape == (2, 3, 8, 12)


def test_28_by_28_has_grids_of_7_and_14():
    assert hvae_mnist_small().grids == [(7, 7), (14, 14)]


def test_the_posterior_starts_near_the_prior_and_pixels_near_even_odds():
    torch.manual_seed(0)
    found = evaluate(hvae_mnist_small(), {"x": (torch.rand(4, 1, 28, 28) > 0.8).float()})
    assert found.rate < 200  # of 3,136 numbers
    assert found.distortion == pytest.approx(784 * math.log(2), rel=0.1)


@pytest.mark.parametrize("make", [tiny_hierarchy, tiny_ladder])
def test_checkpointed_cells_have_the_same_gradients(make):
    gradients = []
    for checkpointed in (False, True):
        program = make(checkpoint_cells=checkpointed).double()
        torch.manual_seed(1)
        traces = run_traces(program.model, program.guide, (tiny_images(5).double(),), {})
        (traces.model.log_prob_sum() - traces.guide.log_prob_sum()).backward()
        gradients.append({n: p.grad for n, p in program.named_parameters()})
    plain, checkpointed = gradients
    assert plain.keys() == checkpointed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(checkpointed[name], gradient, rtol=1e-10, atol=1e-12)


def test_checkpointed_cells_run_again_in_the_backward_pass():
    program, calls = tiny_hierarchy(checkpoint_cells=True), []
    program.groups[0].step.register_forward_pre_hook(lambda *_: calls.append(1))
    traces = run_traces(program.model, program.guide, (tiny_images(5),), {})
    assert len(calls) == 1
    (traces.model.log_prob_sum() - traces.guide.log_prob_sum()).backward()
    assert len(calls) == 2


def test_the_spectral_penalty_is_no_part_of_the_elbo():
    x = tiny_images(5)
    plain, penalized = (evaluate(tiny_hierarchy(spectral_weight=w), {"x": x}) for w in (0.0, 2.0))
    assert plain.elbo == pytest.approx(penalized.elbo, rel=1e-6)
    assert plain.auxiliary == {}
    assert penalized.auxiliary["spectral"] > 2


@pytest.mark.parametrize("name", PRESETS)
def test_presets_take_every_argument_of_the_class(name):
    program = build(name, groups=(1,), latent_channels=1, hidden_channels=4, cells=1)
    assert program.scales == [["z_1"]]
    with pytest.raises(ProgramError, match="width"):
        build(name, width=3)


def test_sampling_holds_still_under_a_seed():
    program = tiny_hierarchy()
    assert torch.equal(sample(program, 3, seed=1)["x"], sample(program, 3, seed=1)["x"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"x_shape": (1, 30, 28)}, "divide height and width by 4.*30×28.*height 28 or 32 and"),
        ({"x_shape": (1, 2, 2)}, "height 4 and width 4"),
        ({"x_shape": (784,)}, "ladder_vae|`vae`"),
        ({"x_shape": (0, 28, 28)}, "x_shape must be a whole number of at least 1, got 0"),
        ({"groups": ()}, "groups must name one scale or more, got none"),
        ({"groups": (2, 0)}, "groups of the scales must be a whole number of at least 1, got 0"),
        ({"groups": 3}, r"groups of the scales must be a list of .* such as \[4,2\]; got 3"),
        ({"hidden_channels": (4, 4, 4)}, "one for each of the 2 scales"),
        ({"latent_channels": 8.5}, "latent_channels must be a whole number .* got 8.5"),
        ({"latent_channels": 0}, "latent_channels must be a whole number of at least 1, got 0"),
        ({"cells": 0}, "cells must be a whole number"),
        ({"stem_halvings": -1}, "stem_halvings must be a whole number of at least 0"),
        ({"cell": "deepwise"}, "unknown cell 'deepwise'. Did you mean 'depthwise'"),
        ({"likelihood": "bernouli"}, "Did you mean 'bernoulli'"),
        ({"spectral_weight": -1.0}, "spectral_weight must be finite and not negative, got -1"),
        ({"spectral_weight": math.inf}, "spectral_weight must be finite"),
        (
            {"x_shape": (2, 8, 8), "likelihood": "discretized_logistic_mixture"},
            "1 or 3 channels, got 2",
        ),
    ],
)
def test_what_cannot_be_built_is_refused(options, message):
    with pytest.raises(PplError, match=message):
        HierarchicalVAE(**options)


@pytest.mark.parametrize("widths", [((), ()), ((2,), (3, 4))])
def test_a_ladder_needs_a_width_for_every_layer(widths):
    with pytest.raises(ProgramError, match="one number for every layer"):
        LadderVAE((1, 4, 4), *widths)


def test_the_layers_of_a_ladder_are_a_list():
    with pytest.raises(PplError, match="latent_dims must be a list of whole numbers"):
        LadderVAE((1, 4, 4), 3, (4,))


@pytest.mark.parametrize(
    "options",
    [
        {},
        pytest.param({"spectral_weight": 0.01}, marks=pytest.mark.slow),
        pytest.param({"checkpoint_cells": True}, marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_a_step_traces_to_the_same_and_leaves_nothing_behind(options):
    program = tiny_ladder(**options)
    step = step_of(program, AnalyticKL(), tiny_images(6))
    for ours, theirs in zip(*both(step, tiny_images(6)), strict=True):
        torch.testing.assert_close(ours, theirs)
    graph = traced(step, tiny_images(6))
    held = [getattr(graph, node.target) for node in graph.graph.nodes if node.op == "get_attr"]
    assert not any(value.requires_grad for value in held)  # a parameter as it was when traced
    assert program.shared._latest is None
