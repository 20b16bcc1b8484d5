"""The patch prior: densities against torch's, Wiener filters, files, refusals."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from patch_helpers import random_prior
from torch.distributions import Categorical, MixtureSameFamily, MultivariateNormal

from ppl_models.errors import PplError
from ppl_models.patch_prior import SHIPPED, PatchPrior
from ppl_models.patches import dc_free_basis


def as_torch(prior: PatchPrior, noise_variance: float) -> MixtureSameFamily:
    eye = torch.eye(prior.patch_size**2 - 1, dtype=torch.float64)
    covariances = prior.covariances() + noise_variance * eye
    loc = torch.zeros(prior.num_components, len(eye), dtype=torch.float64)
    return MixtureSameFamily(Categorical(prior.weights), MultivariateNormal(loc, covariances))


def patches_of(prior: PatchPrior, count: int = 50, dtype=torch.float64) -> torch.Tensor:
    """Draws from the prior, each with a mean of its own."""
    z = as_torch(prior, 0.0).sample((count,))
    return (z @ dc_free_basis(prior.patch_size).T + torch.rand(count, 1)).to(dtype)


@pytest.mark.parametrize("noise_variance", [0.0, 1e-2])
def test_log_prob_is_the_mixtures(noise_variance):
    prior = random_prior()
    patches = patches_of(prior)
    z = patches @ dc_free_basis(4)
    expected = as_torch(prior, noise_variance).log_prob(z)
    found = prior.log_prob(patches, noise_variance)
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-5)
    assert torch.allclose(
        prior.log_prob(patches.float(), noise_variance).double(), expected, rtol=1e-3
    )


def test_the_gradient_is_the_mixtures():
    prior = random_prior()
    patches = patches_of(prior, 6).requires_grad_()
    (found,) = torch.autograd.grad(prior.log_prob(patches, 1e-3).sum(), patches)
    z = patches @ dc_free_basis(4)
    (expected,) = torch.autograd.grad(as_torch(prior, 1e-3).log_prob(z).sum(), patches)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_the_mean_of_a_patch_has_no_say():
    prior = random_prior()
    patches = patches_of(prior, 5)
    assert torch.allclose(prior.log_prob(patches), prior.log_prob(patches + 0.3), rtol=1e-5)


def test_one_component_is_the_classic_wiener_filter():
    prior = random_prior(1)
    patches = patches_of(prior, 9)
    basis, eye = dc_free_basis(4), torch.eye(15, dtype=torch.float64)
    mean = patches.mean(-1, keepdim=True)
    sigma = prior.covariances()[0]
    gain = torch.linalg.solve(sigma + 0.01 * eye, sigma)
    expected = mean + (patches - mean) @ basis @ gain.T @ basis.T
    for soft in (False, True):
        found = prior.wiener(patches, 0.01, soft=soft)
        assert torch.allclose(found, expected, atol=1e-6)


def test_the_soft_filter_is_tweedies_formula():
    """E[clean | z] = z + s ∇ log p_s(z)."""
    prior = random_prior()
    patches = patches_of(prior, 20).requires_grad_()
    (score,) = torch.autograd.grad(prior.log_prob(patches, 0.02).sum(), patches)
    found = prior.wiener(patches.detach(), 0.02, soft=True)
    assert torch.allclose(found, patches.detach() + 0.02 * score, atol=1e-6)


def test_responsibilities_are_bayes_rule():
    prior = random_prior()
    patches = patches_of(prior, 12)
    found = prior.responsibilities(patches, 0.01)
    mixture = as_torch(prior, 0.01)
    joint = mixture.component_distribution.log_prob((patches @ dc_free_basis(4)).unsqueeze(1))
    expected = (joint + prior.weights.log()).softmax(-1)
    assert torch.allclose(found, expected, atol=1e-4)


def test_fewer_pairs_are_the_density_without_the_other_covariances():
    prior, d = random_prior(), 6
    z = prior.coordinates(patches_of(prior, 10))
    covariances = prior.covariances() + 0.01 * torch.eye(15, dtype=torch.float64)
    block = torch.zeros_like(covariances)
    block[:, :d, :d] = covariances[:, :d, :d]
    block.diagonal(dim1=-2, dim2=-1)[:, d:] = covariances.diagonal(dim1=-2, dim2=-1)[:, d:]
    expected = MultivariateNormal(torch.zeros(15, dtype=torch.float64), block)
    joint = expected.log_prob(z.unsqueeze(1)).T + prior.weights.log().unsqueeze(-1)
    assert torch.allclose(prior.log_joint(z, 0.01, d), joint)
    assert torch.allclose(prior.log_joint(z, 0.01, 15), prior.log_joint(z, 0.01))


@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.float16, 2e-3)])
def test_safetensors_round_trip(tmp_path, dtype, error):
    prior = random_prior()
    prior.save(tmp_path / "deep" / "prior.safetensors", dtype)
    found = PatchPrior.load(tmp_path / "deep" / "prior.safetensors")
    difference = (found.covariances() - prior.covariances()).norm(dim=(1, 2))
    assert bool((difference < error * prior.covariances().norm(dim=(1, 2))).all())
    eye = torch.eye(15, dtype=torch.float64).expand(5, 15, 15)
    assert torch.allclose(found.eigenvectors.mT @ found.eigenvectors, eye, atol=1e-12)


def write_matlab(path, covariances, weights, means=None):
    from scipy.io import savemat

    area, count = len(covariances[0]), len(covariances)
    struct = {
        "nmodels": count,
        "dim": area,
        "means": np.zeros((area, count)) if means is None else means,
        "covs": np.stack(covariances, -1),
        "mixweights": np.asarray(weights).reshape(-1, 1),
    }
    savemat(path, {"GS": struct})


@pytest.mark.parametrize("count", [1, 5])
def test_the_literatures_matlab_files(tmp_path, count):
    """Covariances of whole patches, singular along the mean, pixels listed by columns."""
    prior = random_prior(count)
    basis = dc_free_basis(4).numpy()
    by_columns = np.arange(16).reshape(4, 4).T.flatten()
    pixels = [basis @ c.numpy() @ basis.T for c in prior.covariances()]
    write_matlab(
        tmp_path / "GS.mat", [c[np.ix_(by_columns, by_columns)] for c in pixels], prior.weights
    )
    found = PatchPrior.load(tmp_path / "GS.mat")
    assert torch.allclose(found.covariances(), prior.covariances(), atol=1e-12)
    patches = patches_of(prior, 8)
    assert torch.allclose(found.log_prob(patches), prior.log_prob(patches), rtol=1e-6)


def test_matlab_refusals(tmp_path):
    from scipy.io import savemat

    path = tmp_path / "GS.mat"
    savemat(path, {"other": 1})
    with pytest.raises(PplError, match="expected a struct GS with fields covs"):
        PatchPrior.load(path)
    write_matlab(path, [np.eye(16)] * 2, [0.5, 0.5], means=np.ones((16, 2)))
    with pytest.raises(PplError, match="means are not zero"):
        PatchPrior.load(path)
    write_matlab(path, [np.eye(16), -np.eye(16)], [0.5, 0.5])
    with pytest.raises(PplError, match=r"components \[1\] are not positive definite"):
        PatchPrior.load(path)
    path.write_bytes(b"no MATLAB file")
    with pytest.raises(PplError, match="holds no mixture of patches"):
        PatchPrior.load(path)


def test_refusals(tmp_path):
    good = random_prior()
    values = good.eigenvalues.clone()
    values[2, -1] = -1e-9
    with pytest.raises(PplError, match=r"\[2\] are not positive definite.*to the diagonal"):
        PatchPrior(good.weights, values, good.eigenvectors)
    for i, message in enumerate(("must be positive and finite", "not positive", "hold NaN")):
        spectra = [x.clone() for x in (good.weights, good.eigenvalues, good.eigenvectors)]
        spectra[i][(0,) * spectra[i].dim()] = torch.nan
        with pytest.raises(PplError, match=message):
            PatchPrior(*spectra)
    with pytest.raises(PplError, match="NaN or infinity"):
        PatchPrior.from_covariances(torch.ones(1), torch.full((1, 15, 15), torch.nan))
    with pytest.raises(PplError, match="D must be P² − 1"):
        PatchPrior.from_covariances(torch.ones(1), torch.eye(14).unsqueeze(0))
    with pytest.raises(PplError, match="weights must be positive"):
        PatchPrior(torch.zeros(5), good.eigenvalues, good.eigenvectors)
    with pytest.raises(PplError, match="needs weights"):
        PatchPrior(torch.ones(4), good.eigenvalues, good.eigenvectors)
    with pytest.raises(PplError, match=r"4×4 patches, 16 pixels each; got 64"):
        good.log_prob(torch.zeros(2, 64))
    with pytest.raises(PplError, match="there is no prior"):
        PatchPrior.load(tmp_path / "none.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"x" * 20)
    with pytest.raises(PplError, match="cannot read the prior"):
        PatchPrior.load(tmp_path / "bad.safetensors")
    (tmp_path / "file").touch()
    with pytest.raises(PplError, match="cannot write the prior"):
        good.save(tmp_path / "file" / "prior.safetensors")


def test_pixel_covariances_lose_their_mean():
    prior = random_prior()
    basis = dc_free_basis(4)
    pixels = basis @ prior.covariances() @ basis.T + 10 / 16  # variance of the mean
    found = PatchPrior.from_covariances(prior.weights, pixels)
    assert torch.allclose(found.covariances(), prior.covariances(), atol=1e-12)


def test_the_shipped_prior_is_small_and_natural():
    assert SHIPPED.stat().st_size < 2 * 1024**2
    prior = PatchPrior.shipped()
    assert prior.patch_size == 8
    assert math.isclose(float(prior.weights.sum()), 1.0, rel_tol=1e-6)
    edge = torch.zeros(8, 8)
    edge[:, 4:] = 0.3
    shuffled = edge.flatten()[torch.randperm(64)]
    assert prior.log_prob(edge.flatten()) > prior.log_prob(shuffled) + 100
