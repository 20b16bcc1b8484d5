"""The KL weight: on latents in model and guide, in training alone."""

from __future__ import annotations

import pytest
import torch
from programs import GaussianToy, tiny_images, tiny_vae

from inference import evaluate
from inference.elbo import AnalyticKL, Pathwise
from inference.handlers import KLWarmup, KLWeight
from ppl_models import PplError

X = torch.tensor([1.7, 0.3])


@pytest.mark.parametrize("estimator", [Pathwise(), AnalyticKL()], ids=lambda e: e.name)
def test_it_weighs_the_rate_and_not_the_distortion(estimator):
    toy = GaussianToy()

    def loss(weight):
        handler = KLWeight(weight)
        torch.manual_seed(0)
        return estimator.loss(handler(toy.model), handler(toy.guide), X)

    rate = loss(1.0) - loss(0.0)
    assert loss(0.3) == pytest.approx(loss(0.0) + 0.3 * rate, rel=1e-5)
    torch.manual_seed(0)
    assert loss(1.0) == pytest.approx(
        (torch.manual_seed(0), estimator.loss(toy.model, toy.guide, X))[1], rel=1e-6
    )


def test_it_can_choose_sites():
    toy = GaussianToy()
    other = KLWeight(0.0, sites=["another"])
    torch.manual_seed(0)
    plain = AnalyticKL().loss(toy.model, toy.guide, X)
    torch.manual_seed(0)
    assert AnalyticKL().loss(other(toy.model), other(toy.guide), X) == pytest.approx(plain)


def test_the_reported_elbo_is_never_scaled():
    vae, batch = tiny_vae(), {"x": tiny_images(5)}
    plain = evaluate(vae, batch)
    with KLWeight(0.1):
        assert evaluate(vae, batch).elbo == pytest.approx(plain.elbo)


def test_warm_up_is_linear_to_one():
    warmup = KLWarmup(4)
    assert [warmup.at(step) for step in range(6)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]
    assert [KLWarmup(0).at(step) for step in range(2)] == [1.0, 1.0]
    with pytest.raises(PplError, match="must not be negative, got -1"):
        KLWarmup(-1)
