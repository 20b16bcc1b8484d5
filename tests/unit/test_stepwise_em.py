"""Stepwise EM on patches: the statistics in closed form, recovery of a known mixture."""

from __future__ import annotations

import pytest
import torch
from patch_helpers import random_prior
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from inference.stepwise_em import EMState, stepwise_em
from ppl_models.errors import PplError
from ppl_models.patch_learning import PatchLearner, ZeroMeanMixture
from ppl_models.patches import dc_free_basis
from ppl_models.quadratic_forms import unpack_symmetric

BASIS = dc_free_basis(3, torch.float32)


def truth() -> MixtureSameFamily:
    prior = random_prior(3, 3)
    covariances = prior.covariances() * torch.tensor([1.0, 4.0, 16.0])[:, None, None]
    normal = MultivariateNormal(torch.zeros(8, dtype=torch.float64), covariances)
    return MixtureSameFamily(Categorical(torch.tensor([0.5, 0.3, 0.2])), normal)


def batch(index: int, size: int = 2000) -> Tensor:
    torch.manual_seed(index)
    return truth().sample((size,)).float() @ BASIS.T


def test_expectation_is_bayes_rule():
    mixture = truth()
    covariances = mixture.component_distribution.covariance_matrix
    fitted = ZeroMeanMixture(mixture.mixture_distribution.probs.double(), covariances)
    patches = batch(0, 300)
    log_density, found = PatchLearner(3, 3).expect(fitted, patches)
    z = (patches @ BASIS).double()
    assert log_density == pytest.approx(float(mixture.log_prob(z).mean()), rel=1e-4)
    joint = mixture.component_distribution.log_prob(z.unsqueeze(1))
    chance = (joint + mixture.mixture_distribution.logits).softmax(-1)
    assert torch.allclose(found["counts"], chance.mean(0), atol=1e-4)
    moments = torch.einsum("nk,ni,nj->kij", chance, z, z) / len(z)
    assert torch.allclose(unpack_symmetric(found["moments"], 8), moments, rtol=1e-2, atol=1e-5)


def test_a_known_mixture_is_as_good_as_found():
    """The density of fresh patches comes within 0.1 nats of the truth's."""
    seen = []
    learner = PatchLearner(3, 3, floor=1e-9)
    fitted, state = stepwise_em(learner, batch, 60, callback=lambda s, _: seen.append(s.step))
    fresh = batch(1000, 5000)
    found, _ = learner.expect(fitted, fresh)
    best = float(truth().log_prob((fresh @ BASIS).double()).mean())
    assert found == pytest.approx(best, abs=0.1)
    assert seen == list(range(1, 61))
    assert state.history[-1] > state.history[0]
    assert fitted.prior().num_components == 3


def test_going_on_is_not_stopping():
    whole, _ = stepwise_em(PatchLearner(3, 3), batch, 6)
    _, state = stepwise_em(PatchLearner(3, 3), batch, 3)
    again = EMState(**{**vars(state)})
    parts, _ = stepwise_em(PatchLearner(3, 3), batch, 6, state=again)
    assert torch.equal(whole.covariances, parts.covariances)


def test_components_without_data_are_made_anew():
    learner = PatchLearner(3, 3)
    statistics = learner.start(batch(0))
    statistics["counts"][1] = 1e-9
    statistics["moments"][1] *= 0
    assert learner.repair(statistics, 2000) == 1
    fitted = learner.maximize(statistics)
    assert float(fitted.weights.min()) > 0.05
    assert bool(torch.linalg.cholesky_ex(fitted.covariances).info.eq(0).all())


def test_refusals():
    with pytest.raises(PplError, match="num_components must be at least 1"):
        PatchLearner(0)
    with pytest.raises(PplError, match="30 components need at least as many patches; got 20"):
        PatchLearner(30, 3).start(batch(0, 20))
    learner = PatchLearner(2, 3)
    singular = ZeroMeanMixture(torch.full((2,), 0.5).double(), torch.zeros(2, 8, 8).double())
    with pytest.raises(PplError, match=r"\[0, 1\] are not positive definite"):
        learner.expect(singular, batch(0, 20))
