"""Calibration of label posteriors, where they are known: mixtures with their exact posterior.

Perfect calibration is doubted with a chance of 0.01 by construction; the seeds are fixed.
"""

from __future__ import annotations

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from programs import DiscreteVAE, GaussianToy, tiny_images
from torch import nn

from inference.diagnostics.check import CannotTell
from inference.diagnostics.label_calibration import label_calibration
from inference.diagnostics.reliability import reliability
from ppl_models.bayesian_gmm import BayesianGaussianMixture
from ppl_models.cvae import CVAE
from ppl_models.errors import PplError


class TwoClumps(nn.Module):
    """z ~ Categorical, x | z ~ N(±1, scale²), z summed out; the data have scale 1."""

    def __init__(self, scale=1.0, order=(-1.0, 1.0)):
        super().__init__()
        self.locs = nn.Parameter(torch.tensor(order))
        self.scale = scale

    def model(self, x):
        weights = torch.ones(len(self.locs))
        with pyro.plate("data", len(x), dim=-1):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            pyro.sample("x", dist.Normal(self.locs[z], self.scale), obs=x)

    def guide(self, x): ...


def clumps(num=1200):
    y = torch.arange(num) % 2
    return {"x": (2.0 * y - 1) + torch.randn(num), "y": y}


def by_name(found):
    return {check.name: check for check in found.checks()}


@pytest.mark.parametrize("order", [(-1.0, 1.0), (1.0, -1.0)])
def test_exact_responsibilities_are_calibrated_however_components_are_numbered(order):
    batch = clumps()
    found = label_calibration(TwoClumps(order=order), batch)
    assert (found.site, found.match, len(found.labels)) == ("z", "one_to_one", 600)
    assert by_name(found)["label_calibration"].verdict == "ok"
    assert "matched one to one on the other half" in by_name(found)["label_calibration"].message
    # The exact posterior of class 1 is sigmoid(2x), in a known order of the rest.
    half = np.random.default_rng(0).permutation(1200)[:600]
    rest = np.setdiff1d(np.arange(1200), half)
    exact = torch.sigmoid(2 * batch["x"][rest]).numpy()
    assert np.allclose(found.probabilities[:, 1], exact, atol=1e-5)
    # Accuracy Φ(1); the standard error of 600 is 0.015.
    assert found.accuracy == pytest.approx(0.841, abs=5 * 0.015)
    assert by_name(found)["label_accuracy"].verdict == "ok"
    assert found.brier == pytest.approx(2 * np.mean((exact - found.labels) ** 2), abs=1e-5)
    p = np.where(found.labels == 1, exact, 1 - exact)
    assert found.nll == pytest.approx(-np.log(p).mean(), abs=1e-4)


def test_a_mixture_that_is_too_sure_is_named():
    found = label_calibration(TwoClumps(scale=0.4), clumps())
    check = by_name(found)["label_calibration"]
    assert check.verdict == "bad"
    assert "overconfident" in check.message
    assert found.reliability.p_value < 0.001
    assert set(found.figures()) == {"reliability"}


def test_more_components_than_classes_are_matched_by_majority():
    found = label_calibration(TwoClumps(order=(-1.0, 1.0, -1.0)), clumps())
    assert found.match == "majority"
    assert found.classes.tolist() == [0, 1, 0]
    lost = label_calibration(TwoClumps(order=(-1.0, 1.0, -1.0)), clumps(), match="one_to_one")
    assert sorted(lost.classes.tolist()) == [-1, 0, 1]
    assert lost.nll > found.nll + 0.3


class SemiSupervised(nn.Module):
    """y ~ Categorical, h ~ N(±1, 1), x ~ N(h, ½²); the guide has q(h | x) and q(y | h)."""

    def __init__(self, sharpness=1.0):
        super().__init__()
        self.sharpness = nn.Parameter(torch.tensor(sharpness))

    def model(self, x, y=None):
        with pyro.plate("data", len(x), dim=-1):
            y = pyro.sample("y", dist.Categorical(torch.ones(2)), obs=y)
            h = pyro.sample("h", dist.Normal(2.0 * y - 1, 1.0))
            pyro.sample("x", dist.Normal(h, 0.5), obs=x)

    def guide(self, x, y=None):
        with pyro.plate("data", len(x), dim=-1):
            h = pyro.sample("h", dist.Normal(0.8 * x, 0.2**0.5))
            if y is None:
                zero = torch.zeros_like(h)
                pyro.sample("y", dist.Categorical(logits=torch.stack([zero, 2 * h], -1)))


def test_labels_of_the_guide_are_averaged_over_other_latents_and_not_shown_to_it():
    found = label_calibration(SemiSupervised(), clumps(400), num_draws=200)
    assert (found.site, found.match, len(found.labels)) == ("y", "same", 400)
    x = clumps(400)["x"]
    assert found.probabilities.shape == (400, 2)
    batch = clumps(400)
    again = label_calibration(SemiSupervised(), batch, num_draws=200)
    grid = torch.linspace(-4, 4, 801)
    z = 0.8 * batch["x"][:, None] + math.sqrt(0.2) * grid
    weights = dist.Normal(0.0, 1.0).log_prob(grid).softmax(0)
    exact = (torch.sigmoid(2 * z) * weights).sum(1)
    # The sd of one draw is below ½, so five standard errors are below 0.18.
    assert np.allclose(again.probabilities[:, 1], exact.numpy(), atol=0.18)
    assert x.shape == (400,)


def test_a_mixture_with_global_latents():
    program = BayesianGaussianMixture((1,), 2, covariance="diagonal")
    program.start_at(
        torch.tensor([0.5, 0.5]),
        torch.tensor([[-1.0], [1.0]]),
        torch.ones(2, 1, 1),
        torch.ones(1),
    )
    batch = clumps(600)
    found = label_calibration(program, {"x": batch["x"][:, None], "y": batch["y"]}, num_draws=5)
    assert found.site == "z"
    assert found.accuracy > 0.7


def test_what_it_cannot_tell():
    images = {"x": tiny_images(60), "y": torch.arange(60) % 3}
    with pytest.raises(CannotTell, match="an input of the program"):
        label_calibration(CVAE((1, 4, 4), 3, 2, (8,), "bernoulli"), images)
    with pytest.raises(CannotTell, match="no discrete latent"):
        label_calibration(GaussianToy(), clumps(60))
    with pytest.raises(CannotTell, match="several discrete numbers"):
        label_calibration(DiscreteVAE(), images)
    with pytest.raises(CannotTell, match="only 15 labels"):
        label_calibration(TwoClumps(), clumps(30))
    assert label_calibration(DiscreteVAE(one_hot=True), images).probabilities.shape == (30, 3)


def test_bad_input():
    batch = clumps(60)
    with pytest.raises(PplError, match="no field 'label'"):
        label_calibration(TwoClumps(), batch, labels="label")
    with pytest.raises(PplError, match="whole numbers"):
        label_calibration(TwoClumps(), batch | {"y": batch["x"]})
    with pytest.raises(PplError, match="match"):
        label_calibration(TwoClumps(), batch, match="any")
    with pytest.raises(PplError, match="site"):
        label_calibration(TwoClumps(), batch, site="zz")


def test_no_side_effects():
    program, batch = TwoClumps().train(), clumps(100)
    before = torch.get_rng_state()
    label_calibration(program, batch)
    assert torch.equal(torch.get_rng_state(), before)
    assert program.training
    assert program.locs.grad is None
    assert len(pyro.get_param_store()) == 0


def test_the_calibration_error_of_a_few_predictions_by_hand():
    confidence = np.array([0.55, 0.55, 0.95, 0.95])
    correct = np.array([True, False, True, False])
    found = reliability(confidence, correct, 10, 0)
    assert found.ece == pytest.approx(0.5 * 0.05 + 0.5 * 0.45)
    assert found.counts.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert np.allclose(found.accuracy[[5, 9]], 0.5)


def test_perfect_calibration_is_seldom_doubted():
    """p-values below 0.1 in a tenth of 300 cases; five standard errors are 0.087."""
    rng = np.random.default_rng(0)
    p = []
    for seed in range(300):
        confidence = rng.uniform(0.5, 1.0, 60)
        p.append(reliability(confidence, rng.random(60) < confidence, 10, seed).p_value)
    assert np.mean(np.array(p) < 0.1) < 0.187
    assert np.mean(np.array(p) < 0.5) == pytest.approx(0.5, abs=0.15)
