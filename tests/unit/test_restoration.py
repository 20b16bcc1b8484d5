"""The shipped prior on photographs: denoising, inpainting, deblurring, colour."""

from __future__ import annotations

import itertools

import pytest
import torch
from sklearn.datasets import load_sample_images
from torch import Tensor

from inference import anneal, denoise, split_half_quadratic
from inference.denoise import add_noise
from inference.image_quality import psnr
from ppl_models.epll import EPLL
from ppl_models.errors import PplError
from ppl_models.observations import Blurred, Masked, Noise
from ppl_models.patch_prior import PatchPrior

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:sklearn")


@pytest.fixture(scope="module")
def photo() -> Tensor:
    """A crop with roofs and leaves, (3, 72, 80) in [0, 1]."""
    china = torch.tensor(load_sample_images().images[0]).movedim(-1, 0) / 255
    return china[:, 150:222, 300:380]


@pytest.fixture(scope="module")
def prior() -> PatchPrior:
    return PatchPrior.shipped()


def test_denoising_by_both_methods(photo, prior):
    clean = photo[:1]
    noisy = add_noise(clean, 25 / 255)
    program = EPLL(prior, Noise(25 / 255), stride=3)
    found = split_half_quadratic(program, noisy)
    assert psnr(found, clean) > psnr(noisy, clean) + 5
    assert psnr(anneal(program, noisy), clean) == pytest.approx(psnr(found, clean), abs=0.25)


def test_inpainting(photo, prior):
    clean = photo[:1]
    mask = torch.rand(clean.shape[1:]) > 0.5
    program = EPLL(prior, Masked(mask, 0.005), stride=2)
    seen = torch.where(mask, add_noise(clean, 0.005), 7.0)  # what is not seen may be anything
    start = program.observation.start(seen)
    assert float(start.max()) < 1.1
    found = split_half_quadratic(program, seen, num_pairs=20)
    assert psnr(found, clean) > psnr(start, clean) + 1


def test_deblurring(photo, prior):
    clean = photo[:1]
    observation = Blurred(torch.ones(3, 3), 0.005)
    blurred = add_noise(observation.blur(clean), 0.005)
    found = split_half_quadratic(EPLL(prior, observation, stride=2), blurred, num_pairs=20)
    assert psnr(found, clean) > psnr(blurred, clean) + 2


def test_colour_by_luminance_beats_channels(photo, prior):
    noisy = add_noise(photo, 25 / 255)
    make = EPLL.denoiser(prior)
    scores = {
        colour: psnr(denoise(make, noisy, 25 / 255, colour=colour), photo)
        for colour in ("luminance", "channels")
    }
    assert scores["channels"] > psnr(noisy, photo) + 4
    assert scores["luminance"] > scores["channels"]


def test_the_methods_and_speed_levers_of_denoise(photo, prior):
    clean = photo[:1]
    noisy = add_noise(clean, 25 / 255)
    make = EPLL.denoiser(prior)
    every = psnr(denoise(make, noisy, 25 / 255, stride=1, num_pairs=None), clean)
    fast = psnr(denoise(make, noisy, 25 / 255), clean)
    gradient = psnr(denoise(make, noisy, 25 / 255, method="gradient"), clean)
    estimated = psnr(denoise(make, noisy), clean)
    assert fast > every - 0.15
    assert gradient > every - 0.3
    assert estimated > every - 0.5


def test_refusals(photo, prior):
    make = EPLL.denoiser(prior)
    bad = photo[:1].clone()
    bad[0, 3, 4] = torch.nan
    cases = {
        "1 pixels of the image are NaN": bad,
        r"an image must be floats \(C, H, W\)": photo[0],
        r"pixels must be about \[0, 1\]": 255 * photo,
        "5 pixels along one side, but a patch has 8": photo[:, :5],
    }
    for message, image in cases.items():
        with pytest.raises(PplError, match=message):
            denoise(make, image, 0.1)
    for sigma in (0, -1, float("nan"), 25):
        with pytest.raises(PplError, match=r"above 0 and at most 1, in the image's unit; got"):
            denoise(make, photo, sigma)
        with pytest.raises(PplError, match=r"above 0 and at most 1, in the image's unit; got"):
            add_noise(photo, sigma)
    with pytest.raises(PplError, match=r"; 25 grey levels of 255 are 0\.098"):
        denoise(make, photo, 25)
    for level in (0.0, 99 / 255):
        with pytest.raises(PplError, match=r"no noise is found .* give its scale: sigma"):
            denoise(make, torch.full((1, 20, 20), level))
    for num_pairs in (0, -3):
        with pytest.raises(PplError, match="num_pairs must be at least 1"):
            denoise(make, photo, 0.1, num_pairs=num_pairs)
    for stride, method in itertools.product((0, 9), ("gradient", "splitting")):
        with pytest.raises(PplError, match=r"stride must be from 1 to the patch size 8.*got \d$"):
            denoise(make, photo, 0.1, stride=stride, method=method)
    with pytest.raises(PplError, match=r"unknown method 'gradent'\. Did you mean 'gradient'"):
        denoise(make, photo, 0.1, method="gradent")
    with pytest.raises(PplError, match="unknown way with colour"):
        denoise(make, photo, 0.1, colour="grey")
