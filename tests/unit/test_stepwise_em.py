"""Stepwise EM: its statistics, recovery of a known mixture, going on, repairs, refusals."""

from __future__ import annotations

import pytest
import torch
from mixture_helpers import STRUCTURES, blobs, random_mixture, started
from patch_helpers import random_prior
from torch import Tensor
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from inference.em.e_step import one_pass
from inference.em.maximize import maximize
from inference.em.program import floor_of, read
from inference.em.statistics import Mixture, statistics_of
from inference.em.stepwise import StepwiseState, fit_stepwise
from inference.prior_training import start_of
from ppl_models.errors import PplError
from ppl_models.patch_learning import PatchLearner
from ppl_models.patches import dc_free_basis

BASIS = dc_free_basis(3, torch.float32)
FLOOR = torch.tensor([1e-9], dtype=torch.float64)


def truth() -> MixtureSameFamily:
    prior = random_prior(3, 3)
    covariances = prior.covariances() * torch.tensor([1.0, 4.0, 16.0])[:, None, None]
    normal = MultivariateNormal(torch.zeros(8, dtype=torch.float64), covariances)
    return MixtureSameFamily(Categorical(torch.tensor([0.5, 0.3, 0.2])), normal)


def batch(index: int, size: int = 2000) -> Tensor:
    """Coordinates of patches."""
    torch.manual_seed(index)
    return truth().sample((size,)).float()


def start() -> StepwiseState:
    return start_of(PatchLearner(3, 3), batch(0))


def parameters(mixture: Mixture) -> tuple[Tensor, ...]:
    return mixture.weights, mixture.locs, mixture.covariances


@pytest.mark.parametrize("kind", STRUCTURES)
def test_the_m_step_of_a_mixture_s_own_statistics_is_that_mixture(kind):
    program = random_mixture(kind)
    mixture, floor = read(program), floor_of(program)
    again = maximize(statistics_of(mixture, floor), mixture, floor)
    for ours, theirs in zip(parameters(again), parameters(mixture), strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize("kind", STRUCTURES)
def test_statistics_about_another_origin_ask_for_the_same_mixture(kind):
    x = blobs(100)
    program = started(x, 3, kind)
    mixture, floor = read(program), floor_of(program)
    found = one_pass(mixture, [x], x.dtype)
    moved = found.about(found.origin + torch.randn(3, 2).double(), kind).mean()
    one, other = (maximize(s, mixture, floor) for s in (found, moved))
    for ours, theirs in zip(parameters(one), parameters(other), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_a_known_mixture_is_as_good_as_found():
    """The density of fresh patches comes within 0.1 nats of the truth's."""
    seen = []
    state = start()
    fitted = fit_stepwise(state, batch, 60, floor=FLOOR, callback=lambda s: seen.append(s.step))
    fresh = batch(1000, 5000)
    found = one_pass(fitted, [fresh], fresh.dtype).mean().log_likelihood
    best = float(truth().log_prob(fresh.double()).mean())
    assert found == pytest.approx(best, abs=0.1)
    assert seen == list(range(1, 61))
    assert state.history[-1] > state.history[0]


def test_going_on_is_not_stopping():
    whole = fit_stepwise(start(), batch, 6, floor=FLOOR)
    state = start()
    fit_stepwise(state, batch, 3, floor=FLOOR)
    again = StepwiseState.from_dict(state.to_dict())
    assert torch.equal(whole.covariances, fit_stepwise(again, batch, 6, floor=FLOOR).covariances)
    assert again.step == len(again.history) == 6


def test_components_without_data_are_made_anew():
    state = start()
    locs, covariances = state.mixture.locs, state.mixture.covariances
    state.mixture = Mixture(torch.tensor([1.0, 0.0, 0.0]).double(), locs, covariances, "full", True)
    fitted = fit_stepwise(state, batch, 5, floor=FLOOR)
    assert {r.reason for r in state.repairs} == {"empty"}
    assert float(fitted.weights.min()) > 0.05
    assert bool(torch.linalg.cholesky_ex(fitted.covariances).info.eq(0).all())


def test_patches_are_learned_without_their_mean():
    learner = PatchLearner(3, 3)
    patches = batch(0, 50) @ BASIS.T
    torch.testing.assert_close(learner.coordinates(patches + 0.3), batch(0, 50))
    found = start().mixture
    assert learner.mixture(found.weights, found.covariances).prior().num_components == 3


def test_refusals():
    with pytest.raises(PplError, match="num_components must be a whole number of at least 1"):
        PatchLearner(0)
    with pytest.raises(PplError, match=r"30 component.s. from 20 data"):
        start_of(PatchLearner(30, 3), batch(0, 20))
    flat = Mixture(
        torch.full((2,), 0.5).double(),
        torch.zeros(2, 8).double(),
        torch.zeros(2, 8, 8).double(),
        "full",
        True,
    )
    with pytest.raises(PplError, match=r"\[0, 1\] are not positive definite"):
        fit_stepwise(StepwiseState(flat), batch, 1, floor=0 * FLOOR)
