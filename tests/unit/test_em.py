"""EM: scikit-learn's numbers, closed forms, streams, repairs, going on, refusals."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from mixture_helpers import (
    STRUCTURES,
    blobs,
    peer_log_likelihood,
    random_mixture,
    started,
)
from sklearn.datasets import load_breast_cancer, load_digits, load_iris, load_wine

from inference import fit_em, from_tensors
from inference.data import StreamSplit
from inference.em import EMState, Rows, fit, start_mixture
from inference.em import e_step as steps
from inference.em.maximize import maximize
from inference.em.program import read
from inference.em.statistics import Mixture, Statistics
from ppl_models import PplError
from ppl_models.gmm import GaussianMixture

SETS = {
    "iris": (load_iris, 3),
    "digits": (load_digits, 10),
    "wine": (load_wine, 3),
    "breast cancer": (load_breast_cancer, 2),
}


def same_moments(one: GaussianMixture, other: GaussianMixture, **tolerances):
    for ours, theirs in zip(one.moments(), other.moments(), strict=True):
        torch.testing.assert_close(ours, theirs, **tolerances)


@pytest.mark.parametrize("covariance", STRUCTURES)
@pytest.mark.parametrize("name", SETS)
def test_the_log_likelihood_is_scikit_learn_s(name, covariance):
    """From the same start, after as many iterations, in float64."""
    load, num = SETS[name]
    x = load().data
    mixture = started(torch.tensor(x), num, covariance)
    begin = copy.deepcopy(mixture)
    found = fit_em(mixture, x, max_iterations=15, tolerance=0.0, start="current")
    assert found.repairs == []
    theirs = peer_log_likelihood(begin, x, found.best_iteration)
    assert found.log_likelihood == pytest.approx(theirs, abs=1e-4)
    evaluated = float(mixture.log_prob(torch.tensor(x)).mean().detach())
    assert found.log_likelihood == pytest.approx(evaluated, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_hundred_thousand_patches_as_scikit_learn(shared_data, dtype):
    """8×8 patches of photographs, dequantized; the same log-likelihood to 1e-4 a datum."""
    from inference.data.files import read_image

    files = sorted((shared_data / "natural_images" / "train400").glob("*.png"))
    if not files:
        pytest.skip(f"no photographs in {shared_data}/natural_images/train400")
    g = torch.Generator().manual_seed(0)
    patches = []
    for file in files[:200]:
        image = read_image(file, grey=True)[0]
        image = (image * 255 + torch.rand(image.shape, generator=g)) / 256
        every = image.unfold(0, 8, 1).unfold(1, 8, 1).reshape(-1, 64)
        patches.append(every[torch.randperm(len(every), generator=g)[:500]])
    x = torch.cat(patches)
    assert len(x) == 100_000
    mixture = started(x.double(), 5, "full")
    theirs = peer_log_likelihood(mixture, x.double().numpy(), 3)
    found = fit_em(mixture, x.to(dtype), max_iterations=3, tolerance=0.0, start="current")
    assert found.best_iteration == 3
    assert found.log_likelihood == pytest.approx(theirs, abs=1e-4)


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_both_e_steps_are_the_sums_written_out(covariance):
    x = blobs(200, 3)
    mixture = started(x, 3, covariance)
    found = read(mixture)
    resp = mixture.responsibilities(x).detach()
    kinds = [steps.DifferenceStep] + [steps.FeatureStep] * (covariance == "full")
    for kind in kinds:
        step = kind(found, x.dtype)
        for chunk in x.split(70):
            step.add(chunk)
        sums = step.finish()
        away = x[:, None] - sums.origin
        torch.testing.assert_close(sums.counts, resp.sum(0))
        torch.testing.assert_close(sums.first, torch.einsum("nk,nki->ki", resp, away))
        outer = torch.einsum("nk,nki,nkj->kij", resp, away, away)
        if covariance == "tied":
            outer = outer.sum(0)
        elif covariance != "full":
            outer = outer.diagonal(dim1=-2, dim2=-1)
        torch.testing.assert_close(sums.second, outer)
        expected = float(mixture.log_prob(x).sum().detach())
        assert sums.log_likelihood == pytest.approx(expected, rel=1e-12)
        assert sums.num_data == 200


def test_float32_takes_differences_where_features_would_lose_too_much():
    near = Mixture(
        torch.ones(2).double() / 2,
        torch.tensor([[0.0, 0.0], [3.0, 0.0]]).double(),
        torch.eye(2).double().expand(2, 2, 2),
        "full",
        False,
    )
    far = Mixture(near.weights, 1e5 * near.locs, near.covariances, "full", False)
    assert isinstance(steps.choose_step(near, torch.float32), steps.FeatureStep)
    assert isinstance(steps.choose_step(far, torch.float32), steps.DifferenceStep)
    assert isinstance(steps.choose_step(far, torch.float64), steps.FeatureStep)
    x = torch.cat([far.locs[k] + torch.randn(50, 2).double() for k in (0, 1)])
    single, double = (steps.one_pass(far, [x.to(t)], t) for t in (torch.float32, torch.float64))
    assert single.log_likelihood == pytest.approx(double.log_likelihood, rel=1e-3)


@pytest.mark.parametrize("covariance", STRUCTURES)
def test_the_log_likelihood_never_falls(covariance):
    x = blobs(200, 3)
    found = fit_em(started(x, 3, covariance, min_scale=1e-6), x, start="current", tolerance=1e-6)
    steps_up = np.diff(found.history)
    assert found.converged
    assert (steps_up > -1e-9).all()
    assert found.log_likelihood == pytest.approx(
        float(found.program.owner.log_prob(x).mean().detach()), abs=1e-9
    )


@pytest.mark.parametrize("covariance", STRUCTURES)
@pytest.mark.parametrize("zero_mean", [False, True])
def test_map_ends_where_the_gradient_of_log_joint_is_zero(covariance, zero_mean):
    """And no M-step lowers the objective: the modes are those of the prior's own density."""
    if zero_mean and covariance == "tied":
        return
    x = blobs(60, 2)
    x = x - x.mean(0)
    prior = {"concentration": 1.5, "scale": 0.4, "df": 5.0, "mean": 0.2, "mean_strength": 2.0}
    mixture = started(x, 3, covariance, prior=prior, zero_mean=zero_mean, min_scale=1e-5)
    found = fit_em(mixture, x, tolerance=1e-13, max_iterations=5000, start="current")
    assert found.converged
    assert (np.diff(found.objective) > -1e-10).all()
    joint = mixture.log_prob(x).sum() + mixture.log_prior()
    for slope in torch.autograd.grad(joint, list(mixture.parameters())):
        torch.testing.assert_close(slope, torch.zeros_like(slope), rtol=0, atol=2e-3)


def test_the_mode_of_one_gaussian_written_out():
    x = blobs(50, 2)
    prior = {"scale": 0.4, "df": 5.0, "mean": 0.2, "mean_strength": 2.0}
    mixture = GaussianMixture((2,), 1, prior=prior, min_scale=1e-5).double()
    fit_em(mixture, x, max_iterations=1)
    mean = x.mean(0)
    away, pull = x - mean, mean - 0.2
    spread = away.T @ away + 2 * 50 / 52 * torch.outer(pull, pull) + 0.4 * torch.eye(2)
    torch.testing.assert_close(mixture.moments().locs[0], (50 * mean + 0.4) / 52)
    torch.testing.assert_close(mixture.moments().covariances[0], spread / (5 + 50 + 2 + 2))


@pytest.mark.parametrize("covariance", ["full", "diagonal"])
def test_a_stream_gives_what_memory_gives(covariance):
    x = blobs(500)
    begin = started(x, 3, covariance)
    split = StreamSplit([{"x": row} for row in x], dtype=torch.float64)
    sources = [x, x.numpy(), split, from_tensors(x, fractions=(0.0, 0.0)), lambda: x.split(7)]
    fits = []
    for source in sources:
        mixture = copy.deepcopy(begin)
        fit_em(mixture, source, max_iterations=5, tolerance=0.0, start="current")
        fits.append(mixture)
    for other in fits[1:]:
        same_moments(fits[0], other, rtol=1e-9, atol=1e-9)


def test_a_fit_that_is_taken_up_again_ends_as_one_that_was_not():
    x = blobs(300).float()
    options = {"tolerance": 0.0, "max_iterations": 8}
    whole = GaussianMixture((2,), 4)
    expected = fit_em(whole, x, **options)
    kept = []

    def keep(state):
        kept.append((copy.deepcopy(again.state_dict()), EMState.from_dict(state.to_dict())))

    again = GaussianMixture((2,), 4)
    fit_em(again, x, tolerance=0.0, max_iterations=3, callback=keep)
    parameters, state = kept[-1]
    assert state.iteration == 3
    fresh = GaussianMixture((2,), 4)
    fresh.load_state_dict(parameters)
    found = fit_em(fresh, x, state=state, **options)
    assert found.history == expected.history
    for name, value in whole.state_dict().items():
        assert torch.equal(value, fresh.state_dict()[name]), name


def test_an_empty_component_is_given_half_of_the_heaviest():
    x = blobs(300)
    mixture = started(x, 3, "full")
    weights, locs, covariances = mixture.moments()
    locs[1] = 1e4  # no datum is near
    mixture.set_moments(weights, locs, covariances)
    found = fit_em(mixture, x, start="current")
    assert [r.reason for r in found.repairs] == ["empty"]
    assert found.repairs[0].component == 1
    assert "was empty; component" in str(found.repairs[0])
    assert float(mixture.moments().weights.min()) > 0.05
    assert found.converged


def on_an_outlier() -> tuple[GaussianMixture, torch.Tensor]:
    """A mixture with a component on a single datum, far from all others."""
    x = blobs(300)
    mixture = started(x, 3, "full")
    x[7] = 50.0
    weights, locs, covariances = mixture.moments()
    locs[2], covariances[2] = x[7], 1e-6 * torch.eye(2)
    mixture.set_moments(weights, locs, covariances)
    return mixture, x


def test_a_component_on_a_single_point_is_taken_off_it():
    mixture, x = on_an_outlier()
    found = fit_em(mixture, x, start="current")
    assert (found.repairs[0].component, found.repairs[0].reason) == (2, "collapsed")
    # The outlier may draw it back: after three repairs it is left where the data want it.
    assert sum(r.component == 2 for r in found.repairs) <= 3
    assert found.converged


def test_the_best_parameters_are_given_back_and_not_those_after_a_repair():
    mixture, x = on_an_outlier()
    rest = x[torch.arange(300) != 7]
    two = fit_em(started(rest, 2, "full"), rest).program.owner.moments()
    one = mixture.moments()  # whose last component is on the outlier: the best there is
    weights = torch.cat([two.weights * 299 / 300, torch.tensor([1 / 300]).double()])
    parts = (torch.cat([two[i], one[i][2:]]) for i in (1, 2))
    mixture.set_moments(weights, *parts)
    kept = []
    found = fit_em(mixture, x, start="current", max_iterations=1, callback=kept.append)
    assert [r.component for r in found.repairs] == [2]
    assert found.history[1] < found.history[0]
    assert found.best_iteration == 0
    assert found.log_likelihood == max(found.history)
    assert float(mixture.log_prob(x).mean().detach()) == pytest.approx(found.log_likelihood)
    # Taken up again after the repair, a run knows what was before it.
    with torch.no_grad():
        mixture.raw_locs.mul_(0.0)
    again = fit_em(mixture, x, max_iterations=1, state=EMState.from_dict(kept[0].to_dict()))
    assert again.log_likelihood == found.log_likelihood
    assert float(mixture.log_prob(x).mean().detach()) == pytest.approx(found.log_likelihood)


def test_a_falling_objective_is_not_taken_for_converged():
    state = EMState(2, history=[1.0, 2.0, 1.5], objective=[1.0, 2.0, 1.5])
    assert not fit._has_converged(state, 1e-3)
    state.objective[-1] = 2.0 - 1e-4
    assert fit._has_converged(state, 1e-3)


@pytest.mark.parametrize("covariance", ["full", "diagonal", "spherical"])
def test_zero_mean_components_are_found_and_mended(covariance):
    g = torch.Generator().manual_seed(0)
    narrow, broad = (s * torch.randn(400, 2, generator=g, dtype=torch.float64) for s in (0.1, 3))
    x = torch.cat([narrow, broad])
    mixture = GaussianMixture((2,), 2, covariance, zero_mean=True).double()
    found = fit_em(mixture, x, tolerance=1e-7)
    spreads = read(mixture).variances.sqrt().mean(-1).sort().values
    torch.testing.assert_close(spreads, torch.tensor([0.1, 3.0]).double(), rtol=0.15, atol=0)
    assert not bool(mixture.moments().locs.any())
    _, locs, covariances = mixture.moments()
    mixture.set_moments(torch.tensor([1.0, 0.0]), locs, covariances)
    mended = fit_em(mixture, x, start="current", tolerance=1e-7)
    assert mended.repairs[0].reason == "empty"
    assert mended.log_likelihood == pytest.approx(found.log_likelihood, abs=1e-3)


def test_neighbourhoods_start_as_well():
    x = blobs(300)
    mixture = GaussianMixture((2,), 3).double()
    start_mixture(mixture, Rows(x, 2, torch.device("cpu")), "neighbourhoods")
    found = fit_em(mixture, x, start="current")
    one = fit_em(GaussianMixture((2,), 1).double(), x)
    assert float(mixture.moments().weights.min()) > 0.05
    assert found.log_likelihood > one.log_likelihood + 0.3


def test_a_component_without_data_keeps_its_place_in_the_m_step():
    old = read(random_mixture("full"))
    zero = torch.zeros(3).double()
    sums = Statistics(
        old.locs,
        zero + torch.tensor([5.0, 0.0, 5.0]),
        torch.zeros(3, 2).double(),
        5 * torch.eye(2).double().expand(3, 2, 2),
        0.0,
        10,
    )
    found = maximize(sums, old, torch.zeros(2).double())
    torch.testing.assert_close(found.locs[1], old.locs[1])
    torch.testing.assert_close(found.covariances[1], old.covariances[1])


@pytest.mark.parametrize("kind", ["full", "tied", "diagonal"])
def test_a_covariance_that_rounding_took_below_zero_is_lifted_to_the_floor(kind):
    """Statistics as float32 may leave them: a variance of −1e-6 along one direction."""
    axes = torch.tensor([[0.6, 0.8], [-0.8, 0.6]]).double()
    below = axes @ torch.diag(torch.tensor([1.0, -1e-6]).double()) @ axes.mT
    second = {"full": below[None], "tied": below, "diagonal": torch.tensor([[1.0, -1e-6]])}[kind]
    zeros = torch.zeros(1, 2).double()
    covariances = {"full": torch.eye(2)[None], "tied": torch.eye(2), "diagonal": torch.ones(1, 2)}
    old = Mixture(torch.ones(1).double(), zeros, covariances[kind].double(), kind, False)
    sums = Statistics(zeros, torch.ones(1).double(), zeros, second.double(), 0.0, 1)
    floor = torch.tensor([1e-8, 4e-8]).double()
    found = maximize(sums, old, floor).covariances
    dense = torch.diag_embed(found) if kind == "diagonal" else found
    in_floors = torch.linalg.eigvalsh(dense / (floor[:, None] * floor).sqrt())
    assert float(in_floors.min()) > 0.999
    assert float(torch.linalg.eigvalsh(dense).max()) == pytest.approx(1.0, abs=1e-5)


def test_full_covariances_of_images_in_float32_stay_positive():
    """Digits have constant pixels, and components of fewer data than dimensions."""
    x = torch.tensor(load_digits().images[:1400, None] / 16).float()
    found = fit_em(GaussianMixture((1, 8, 8), 20), x, max_iterations=10)
    assert np.isfinite(found.log_likelihood)


NAN = blobs(20)
NAN[3, 1] = float("nan")
REFUSED = [
    (lambda: fit_em(GaussianMixture((2,)), NAN), r"holds nan at index \(3, 1\)"),
    (lambda: fit_em(GaussianMixture((3,)), blobs(20)), r"3 numbers each, got 2.*x_shape=\(2,\)"),
    (lambda: fit_em(GaussianMixture((2,), 30), blobs(20)), "30 component.s. from 20 data"),
    (lambda: fit_em(GaussianMixture((2,), 1), blobs(20)[:1]), "from 1 data: at least 2"),
    (lambda: fit_em(GaussianMixture((2,), 3), torch.ones(20, 2)), "20 data are the same point"),
    (
        lambda: fit_em(GaussianMixture((2,), 3), blobs(20)[:2].repeat(10, 1)),
        "3 components from 2 distinct data points .of 20",
    ),
    (lambda: fit_em(GaussianMixture((2,)), []), "function that gives an iterable"),
    (lambda: fit_em(GaussianMixture((2,)), lambda: []), "no data to fit"),
    (lambda: fit_em(GaussianMixture((2,)), lambda: [{"y": NAN}]), "have no field 'x'"),
    (lambda: fit_em(GaussianMixture((2,)), blobs(20), start="random"), "unknown start"),
    (lambda: fit_em(GaussianMixture((2,)), blobs(20), max_iterations=0), "at least 1"),
    (lambda: fit_em(torch.nn.Identity(), blobs(20)), "has no `model`"),
]


@pytest.mark.parametrize(("call", "message"), REFUSED, ids=[m for _, m in REFUSED])
def test_what_cannot_be_fitted_is_refused(call, message):
    with pytest.raises(PplError, match=message):
        call()


def test_a_nan_in_a_stream_is_told_by_the_log_likelihood():
    def batches():
        yield blobs(30_000)
        yield NAN

    with pytest.raises(PplError, match=r"nan|NaN"):
        fit_em(GaussianMixture((2,), 2), batches)
    assert fit.fit_em is fit_em


@pytest.mark.cuda
@pytest.mark.parametrize("covariance", STRUCTURES)
def test_cuda_gives_what_the_cpu_gives(covariance):
    x = blobs(500)
    on_cpu, on_cuda = started(x, 3, covariance), started(x, 3, covariance)
    fit_em(on_cpu, x, start="current", max_iterations=5, tolerance=0.0, device="cpu")
    fit_em(on_cuda, x, start="current", max_iterations=5, tolerance=0.0, device="cuda")
    same_moments(on_cpu, on_cuda.cpu(), rtol=1e-8, atol=1e-8)
