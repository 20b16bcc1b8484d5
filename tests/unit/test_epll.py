"""EPLL: the potential and its gradient, splitting against annealed gradient steps, restoration."""

from __future__ import annotations

import copy

import pytest
import torch
from patch_helpers import random_prior, smooth_images
from pyro import poutine

from inference import anneal, map_estimate, split_half_quadratic
from inference.image_quality import psnr
from ppl_models import epll as epll_module
from ppl_models.epll import EPLL
from ppl_models.errors import PplError
from ppl_models.observations import Blurred, Masked, Noise

SIGMA = 0.1


def noisy_images(count: int = 2) -> tuple[torch.Tensor, torch.Tensor]:
    clean = smooth_images(count)
    return clean, clean + SIGMA * torch.randn(clean.shape)


def test_the_log_joint_is_the_formula():
    _, noisy = noisy_images()
    program = EPLL(random_prior(), Noise(SIGMA), stride=2)
    x = noisy * 0.9
    found = map_estimate(program, noisy, init={"clean": x}, max_steps=0)
    patches = x.unfold(1, 4, 1).unfold(2, 4, 1)[:, [*range(0, 15, 2), 15]][:, :, ::2].flatten(-2)
    assert patches.shape == (2, 9, 10, 16)
    potential = program.prior.log_prob(patches).sum() / 4
    likelihood = torch.distributions.Normal(x, SIGMA).log_prob(noisy).sum()
    assert found.log_joint == pytest.approx(float(potential + likelihood), rel=1e-5)


def test_sites_and_plate():
    _, noisy = noisy_images()
    program = EPLL(random_prior(), Noise(SIGMA))
    conditioned = poutine.condition(program.model, data={"clean": noisy})
    trace = poutine.trace(conditioned).get_trace(noisy)
    trace.compute_log_prob()
    logs = {n: trace.nodes[n]["log_prob"] for n in ("clean", "epll", "noisy")}
    assert all(value.shape == (2,) for value in logs.values())
    assert not bool(logs["clean"].any())
    with pytest.raises(PplError, match=r"planes must be floats \(B, H, W\)"):
        program.model(noisy[0])


def test_the_gradient_of_the_potential_is_that_of_finite_differences():
    program = EPLL(random_prior(), Noise(SIGMA), even_borders=False)
    program.smoothing = 0.01
    x = smooth_images(1, 7, 6).double().requires_grad_()
    assert torch.autograd.gradcheck(program.expected_patch_log_likelihood, (x,), nondet_tol=1e-9)


def test_even_borders_change_the_gradient_near_the_borders_alone():
    even, plain = (EPLL(random_prior(), Noise(SIGMA), even_borders=b) for b in (True, False))
    x = smooth_images().requires_grad_()
    values = [p.expected_patch_log_likelihood(x) for p in (even, plain)]
    assert torch.equal(*values)
    a, b = (torch.autograd.grad(v.sum(), x)[0] for v in values)
    assert torch.allclose(a[:, 3:-3, 3:-3], b[:, 3:-3, 3:-3], rtol=1e-4)
    assert torch.allclose(a[0, 0, 0], 16 * b[0, 0, 0], rtol=1e-4)


@pytest.mark.parametrize("stride", [1, 3])
def test_splitting_and_annealed_gradient_steps_are_each_others_test(stride):
    _, noisy = noisy_images()
    program = EPLL(random_prior(), Noise(SIGMA), stride=stride)
    by_gradient = anneal(program, noisy)
    by_splitting = split_half_quadratic(program, noisy, soft=True)
    assert torch.allclose(by_gradient, by_splitting, atol=2e-6)
    assert program.smoothing == 0.0


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kind", ["noise", "holes", "blur"])
def test_gradient_steps_are_splitting_steps_through_holes_and_blur_too(kind, stride):
    _, noisy = noisy_images()
    observation = {
        "noise": Noise(0.05),
        "holes": Masked(torch.rand(19, 22) > 0.5, 0.05),
        "blur": Blurred(torch.ones(3, 5), 0.05),
    }[kind]
    program = EPLL(random_prior(), observation, stride=stride)
    by_splitting = split_half_quadratic(program, noisy, soft=True)
    assert torch.allclose(anneal(program, noisy), by_splitting, atol=2e-4)


def test_annealed_steps_are_plain_sgd():
    """The same by hand: torch's SGD, one step at each smoothing, its learning rate 1/(1/σ²+1/s)."""
    _, noisy = noisy_images()
    program, image = EPLL(random_prior(), Noise(SIGMA)), noisy
    for variance in program.observation.variances():
        program.smoothing = variance
        found = map_estimate(
            program,
            noisy,
            init={"clean": image},
            optimizer="SGD",
            learning_rate=1 / (1 / SIGMA**2 + 1 / variance),
            max_steps=1,
        )
        image = found.values["clean"]
    program.smoothing = 0.0
    assert torch.allclose(anneal(program, noisy), image, atol=1e-6)


def test_nan_is_refused_where_it_is_seen_and_nowhere_else():
    clean, _ = noisy_images()
    mask = torch.rand(19, 22) > 0.3
    holed = torch.where(mask, clean, torch.nan)
    zeroed = torch.where(mask, clean, 0.0)
    masked = EPLL(random_prior(), Masked(mask, 0.05))
    for restore in (split_half_quadratic, anneal):
        assert torch.equal(restore(masked, holed), restore(masked, zeroed))
        with pytest.raises(PplError, match="pixels of the observed images are NaN or infinite"):
            restore(EPLL(random_prior(), Noise(0.05)), holed)
    with pytest.raises(PplError, match="pixels of the observed images are NaN"):
        map_estimate(EPLL(random_prior(), Noise(0.05)), holed, init={"clean": zeroed})
    with pytest.raises(PplError, match="true or false at each pixel"):
        Masked(torch.full((4, 4), torch.nan), 0.1)


@pytest.mark.parametrize("variances", [[], [0.1, 0.0], [0.1, float("nan")], iter(())])
def test_variances_are_positive_and_some(variances):
    program = EPLL(random_prior(), Noise(SIGMA))
    for restore in (split_half_quadratic, anneal):
        with pytest.raises(PplError, match="variances must be positive"):
            restore(program, noisy_images()[1], variances=variances)


def test_denoising_helps_and_the_hard_choice_is_near_the_soft():
    clean, noisy = noisy_images()
    program = EPLL(random_prior(), Noise(SIGMA))
    hard, soft = (split_half_quadratic(program, noisy, soft=s) for s in (False, True))
    assert psnr(hard, clean) > psnr(noisy, clean) + 3
    assert abs(psnr(hard, clean) - psnr(soft, clean)) < 1


def test_bands_change_nothing(monkeypatch):
    _, noisy = noisy_images()
    program = EPLL(random_prior(), Noise(SIGMA))
    whole = split_half_quadratic(program, noisy)
    by_gradient = anneal(program, noisy)
    shares = []
    monkeypatch.setattr(epll_module, "BAND", 100)
    banded = split_half_quadratic(program, noisy, callback=shares.append)
    assert torch.allclose(whole, banded, atol=1e-6)
    assert torch.allclose(anneal(program, noisy), by_gradient, atol=1e-6)
    assert len(shares) > 10
    assert sum(shares) == pytest.approx(1.0)


def test_random_grids_are_drawn_from_their_seed():
    _, noisy = noisy_images()
    program = EPLL(random_prior(), Noise(SIGMA), stride=3)
    one, same, other = (split_half_quadratic(program, noisy, seed=s) for s in (1, 1, 2))
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


@pytest.mark.parametrize(
    "observation", [Noise(0.1), Masked(torch.rand(9, 8) > 0.4, 0.1), Blurred(torch.rand(3, 3), 0.1)]
)
def test_combining_is_the_minimum_that_it_claims(observation):
    """The gradient of −log p(observed | x) + ‖x − expected‖² / 2s is zero there."""
    observed, expected = torch.rand(2, 2, 9, 8, dtype=torch.float64).unbind(0)
    x = observation.combine(observed, expected, 0.02).requires_grad_()
    loss = -observation(x).log_prob(observed).sum() + (x - expected).square().sum() / 0.04
    (grad,) = torch.autograd.grad(loss, x)
    assert float(grad.abs().max()) < 1e-2 * float((observed - expected).abs().max()) / 0.01


def test_refusals():
    prior = random_prior()
    masked = EPLL(prior, Masked(torch.ones(19, 22), 0.1))
    for act in (masked.model, masked.observation.start):
        with pytest.raises(PplError, match="the mask is 19×22 pixels, but the image 22×19"):
            poutine.condition(act, data={"clean": torch.rand(1, 22, 19)})(torch.rand(1, 22, 19))
    for scale in (0.0, -1.0, float("nan"), float("inf"), 25):
        with pytest.raises(PplError, match="σ must be above 0"):
            Noise(scale)
    with pytest.raises(PplError, match="a mask must be"):
        Masked(torch.zeros(4, 4), 0.1)
    for kernel in (
        torch.ones(2, 3),
        torch.ones(3),
        torch.zeros(3, 3),
        torch.full((3, 3), torch.nan),
    ):
        with pytest.raises(PplError, match="a blur kernel must be"):
            Blurred(kernel, 0.1)
    with pytest.raises(PplError, match="too large for an image of 5×5"):
        Blurred(torch.ones(11, 11), 0.1).blur(torch.rand(1, 5, 5))
    with pytest.raises(PplError, match="stride must be from 1 to 4"):
        EPLL(prior, Noise(0.1), stride=5)
    program = EPLL(prior, Noise(0.1))
    for restore in (split_half_quadratic, anneal):
        with pytest.raises(PplError, match=r"3 pixels along one side, but a patch has 4.*patches$"):
            restore(program, torch.rand(1, 9, 3))
        for planes in (torch.rand(9, 9), torch.rand(1, 3, 9, 9), torch.ones(1, 9, 9).int()):
            with pytest.raises(PplError, match="planes must be floats"):
                restore(program, planes)


@pytest.mark.cuda
def test_on_cuda():
    _, noisy = noisy_images()
    program = EPLL(random_prior(), Noise(SIGMA))
    on_cpu = [split_half_quadratic(program, noisy), anneal(program, noisy)]
    placed = copy.deepcopy(program).cuda()
    on_cuda = [split_half_quadratic(placed, noisy.cuda()), anneal(placed, noisy.cuda())]
    for a, b in zip(on_cpu, on_cuda, strict=True):
        assert torch.allclose(a, b.cpu(), atol=1e-3)
