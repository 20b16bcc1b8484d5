"""KL balancing: the weights of three groups by hand, eager and compiled, and in ``fit``."""

from __future__ import annotations

from contextlib import nullcontext

import pyro
import pyro.distributions as dist
import pytest
import torch
from compiled_helpers import both, step_of
from programs import tiny_images, tiny_vae
from torch import nn
from unit.test_compiled_review import graphs_run_as_traced

from inference import evaluate, fit
from inference.elbo import AnalyticKL, Pathwise
from inference.handlers import KLWarmup, KLWeight
from inference.kl_balance import FLOOR, KLBalance
from ppl_models import PplError

X = torch.tensor([1.7, 0.3, -0.2, 0.9], dtype=torch.float64)
SIZES = {"z_1": 1, "z_2": 2, "z_3": 4}
MEANS = {"z_1": 2.0, "z_2": 1.0, "z_3": 0.5}
RATES = {"z_1": 2.0, "z_2": 1.0, "z_3": 0.5}
"""KL(N(m, I) ‖ N(0, I)) = size · m² / 2."""


class ThreeGroups(nn.Module):
    """z_l ~ N(0, I) of 1, 2 and 4 numbers, x ~ N(Σ z, 1); q(z_l) = N(m_l, I) for every datum."""

    def __init__(self):
        super().__init__()
        self.means = nn.ParameterDict(
            {n: nn.Parameter(torch.tensor(m, dtype=torch.float64)) for n, m in MEANS.items()}
        )

    def model(self, x):
        with pyro.plate("data", len(x), dim=-1):
            total = 0.0
            for name, size in SIZES.items():
                prior = dist.Normal(torch.zeros(size, dtype=torch.float64), 1.0).to_event(1)
                total = total + pyro.sample(name, prior).sum(-1)
            pyro.sample("x", dist.Normal(total, 1.0), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x), dim=-1):
            for name, size in SIZES.items():
                loc = self.means[name].expand(len(x), size)
                pyro.sample(name, dist.Normal(loc, 1.0).to_event(1))


def by_hand():
    """γ: rate over size, 2.01 / 1, 1.01 / 2 and 0.51 / 4, over their mean 0.8808."""
    assert FLOOR == 0.01
    each = [2.01 / 1, 1.01 / 2, 0.51 / 4]
    return dict(zip(SIZES, [3 * value / sum(each) for value in each], strict=True))


def objective(handlers, estimator):
    program, at = ThreeGroups(), 0
    model, guide = program.model, program.guide
    for handler in handlers:
        handler.at(at)
        model, guide = handler.around_model(model), handler.around_guide(guide)
    torch.manual_seed(0)
    loss = estimator.differentiable_loss(model, guide, X) / len(X)
    parameters = list(program.means.values())
    return float(loss.detach()), [float(g) for g in torch.autograd.grad(loss, parameters)]


@pytest.mark.parametrize("estimator", [Pathwise(), AnalyticKL()], ids=lambda e: e.name)
@pytest.mark.parametrize("warm", [1.0, 0.3])
def test_the_weights_are_those_worked_out_by_hand(estimator, warm):
    """γ of the closed-form rates; it weighs value and gradient, and has none itself."""
    weight, gamma = KLWeight(warm), by_hand()
    assert [round(g, 4) for g in gamma.values()] == [2.2819, 0.5733, 0.1447]
    found, slopes = objective([weight, KLBalance(10)], estimator)
    plain, before = objective([weight], estimator)
    extra = [warm * (gamma[name] - 1) for name in SIZES]
    expected = plain + sum(e * rate for e, rate in zip(extra, RATES.values(), strict=True))
    assert found == pytest.approx(expected, rel=1e-12)
    for name, slope, old, more in zip(SIZES, slopes, before, extra, strict=True):
        assert slope == pytest.approx(old + more * SIZES[name] * MEANS[name], rel=1e-12)


def test_it_is_over_when_the_warm_up_is():
    balance, warmup = KLBalance(4), KLWarmup(4)
    for step in range(7):
        balance.at(step)
        warmup.at(step)
        assert balance.balance == float(warmup.weight < 1), step
    handler = KLBalance(1)  # a warm-up that is over at once
    assert objective([handler], AnalyticKL()) == objective([KLWeight(1.0)], AnalyticKL())


def test_groups_without_a_rate_are_weighed_alike():
    handler = KLBalance(10)
    handler.sizes = {"a": 5, "b": 5}
    rates = {"a": torch.tensor(0.0), "b": torch.tensor(-1e-3)}  # by draws, it may be negative
    torch.testing.assert_close(handler.weights(rates), torch.ones(2))


def test_a_compiled_step_takes_it_as_an_input():
    """One graph, traced while it is on, has all weights 1 when it is off."""
    step = step_of(ThreeGroups(), AnalyticKL(), X, handlers=[KLBalance(5)])
    losses = []
    for at in (0, 4):
        step.at(at)
        ours, theirs = both(step, X)
        for a, b in zip(ours, theirs, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-12)
        losses.append(float(ours[0]))
    expected = sum((by_hand()[name] - 1) * RATES[name] for name in SIZES)
    assert losses[0] - losses[1] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("compile", [False, True])
def test_fit_puts_it_into_the_warm_up_and_reports_the_elbo(compile):
    options = {"epochs": 3, "batch_size": 10, "kl_warmup": 2.0, "precision": "64", "keep": "last"}
    data = torch.randn(100, generator=torch.Generator().manual_seed(0))
    found = []
    for balance in (False, True):
        with graphs_run_as_traced() if compile else nullcontext():
            fitted = fit(
                *(ThreeGroups(), data),
                kl_balance=balance,
                compile=compile,
                progress=False,
                **options,
            )
        row = fitted.history[-1]
        direct = evaluate(fitted.program, fitted.data.valid.batches(100))
        assert row["valid_elbo"] == pytest.approx(direct.elbo)
        assert row["valid_elbo"] == pytest.approx(-(row["valid_rate"] + row["valid_distortion"]))
        found.append([row["train_loss"] for row in fitted.history])
    assert found[0][0] != found[1][0]


def test_what_it_needs():
    with pytest.raises(PplError, match=r"kl_balance weighs .* kl_warmup is 0: give the epochs"):
        fit(tiny_vae(), tiny_images(), kl_balance=True)
    with pytest.raises(PplError, match=r"two or more latent sites .* only z; leave kl_balance out"):
        fit(tiny_vae(), tiny_images(), kl_balance=True, kl_warmup=1.0, progress=False)
    with pytest.raises(PplError, match="1 step or more, got 0"):
        KLBalance(0)
