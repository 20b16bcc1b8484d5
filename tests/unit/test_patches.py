"""Patches: grids that reach the borders, extraction and its adjoint, the basis without mean."""

from __future__ import annotations

import pytest
import torch

from ppl_models.errors import PplError
from ppl_models.patches import coverage, dc_free_basis, extract_patches, grid_starts, lay_patches
from ppl_models.quadratic_forms import pack_symmetric, pair_products, unpack_symmetric


@pytest.mark.parametrize(
    ("length", "size", "stride"), [(8, 8, 1), (9, 8, 8), (50, 8, 3), (17, 4, 4)]
)
def test_the_grid_reaches_both_borders_and_leaves_no_gap(length, size, stride):
    starts = grid_starts(length, size, stride)
    assert starts[0] == 0
    assert starts[-1] == length - size
    assert bool((starts.diff() <= stride).all())


def test_random_grids_reach_both_borders_and_differ():
    draw = torch.Generator().manual_seed(0)
    grids = [grid_starts(60, 8, 5, draw) for _ in range(20)]
    assert all(g[0] == 0 and g[-1] == 52 and bool((g.diff() <= 5).all()) for g in grids)
    assert len({tuple(g.tolist()) for g in grids}) > 1


@pytest.mark.parametrize("length", range(8, 20))
def test_random_grids_of_small_images(length):
    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        for stride in range(1, 9):
            starts = grid_starts(length, 8, stride, generator)
            assert starts[0] == 0
            assert starts[-1] == length - 8
            assert (starts.diff() <= stride).all()


def test_grid_refusals():
    with pytest.raises(PplError, match="7 pixels along one side, but a patch has 8"):
        grid_starts(7, 8)
    with pytest.raises(PplError, match="stride must be from 1 to the patch size 8"):
        grid_starts(20, 8, 9)


def test_extraction_cuts_what_indexing_cuts():
    images = torch.rand(2, 11, 13)
    rows, columns = torch.tensor([0, 3, 7]), torch.tensor([2, 9])
    patches = extract_patches(images, rows, columns, 4)
    assert patches.shape == (2, 3, 2, 16)
    assert torch.equal(patches[1, 2, 0], images[1, 7:11, 2:6].flatten())


def test_laying_is_the_adjoint_and_counts_the_coverage():
    rows, columns = grid_starts(11, 4, 3), grid_starts(13, 4, 2)
    images = torch.rand(2, 11, 13, dtype=torch.float64)
    patches = torch.rand(2, len(rows), len(columns), 16, dtype=torch.float64)
    left = (extract_patches(images, rows, columns, 4) * patches).sum()
    right = (images * lay_patches(patches, rows, columns, (11, 13))).sum()
    assert left == pytest.approx(float(right), rel=1e-12)
    laid = lay_patches(torch.ones_like(patches), rows, columns, (11, 13))[0]
    assert torch.equal(laid.float(), coverage(rows, columns, 4, (11, 13)))


def test_gradients_of_extraction_and_laying():
    rows, columns = grid_starts(7, 3, 2), grid_starts(6, 3, 2)
    images = torch.rand(2, 7, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: extract_patches(x, rows, columns, 3), (images,))
    assert torch.autograd.gradgradcheck(lambda x: extract_patches(x, rows, columns, 3), (images,))


@pytest.mark.parametrize("size", [2, 3, 8])
def test_the_basis_is_orthonormal_and_without_mean(size):
    basis = dc_free_basis(size)
    assert basis.shape == (size**2, size**2 - 1)
    assert torch.allclose(basis.T @ basis, torch.eye(size**2 - 1, dtype=torch.float64), atol=1e-12)
    assert float(basis.sum(0).abs().max()) < 1e-12


def test_quadratic_forms_by_pair_products():
    z = torch.randn(7, 5, dtype=torch.float64, requires_grad=True)
    matrices = torch.randn(3, 5, 5, dtype=torch.float64)
    matrices = matrices + matrices.mT
    forms = pack_symmetric(matrices, 2.0) @ pair_products(z)
    assert torch.allclose(forms, torch.einsum("ni,kij,nj->kn", z, matrices, z))
    assert torch.equal(unpack_symmetric(pack_symmetric(matrices), 5), matrices)
    assert torch.autograd.gradcheck(pair_products, (z,))
