"""Convolutional programs: images of any size, grids of codes."""

from __future__ import annotations

import pytest
import torch

from inference import evaluate
from inference.vectorize import can_vectorize
from ppl_models import ProgramError, as_program
from ppl_models.beta_vae import BetaVAE
from ppl_models.conv_vae import ConvGridVAE, ConvVAE
from ppl_models.nets import halvings
from ppl_models.vae import VAE

SIZES = [(8, 8), (13, 10), (28, 20), (7, 9)]
every_size = pytest.mark.parametrize("size", SIZES, ids=str)


def test_halvings_round_down():
    assert halvings((13, 28), 2) == [(13, 28), (6, 14), (3, 7)]


@every_size
@pytest.mark.parametrize("colours", [1, 3])
@pytest.mark.parametrize("kind", [ConvVAE, ConvGridVAE])
def test_images_come_back_in_their_size(kind, colours, size):
    vae = kind((colours, *size), 3, (4, 6))
    x = torch.rand(5, colours, *size)
    z = vae.posterior(x).rsample()
    assert vae.decode(z).event_shape == (colours, *size)
    assert vae.model(size=2).shape == (2, colours, *size)
    assert z.shape == vae.prior().expand((5,)).sample().shape


def test_a_grid_is_a_code_a_place():
    vae = ConvGridVAE((1, 28, 20), 3, (4, 6))
    q = vae.posterior(torch.rand(5, 1, 28, 20))
    assert (q.batch_shape, q.event_shape) == ((5,), (3, 7, 5))
    assert vae.prior().event_shape == (3, 7, 5)


def test_a_code_of_the_grid_sees_its_patch_alone():
    """Changing one corner of a large image leaves the opposite corner's codes as they were."""
    vae, x = ConvGridVAE((1, 64, 64), 2, (4, 6)), torch.rand(1, 1, 64, 64)
    changed = x.clone()
    changed[..., :4, :4] = 1 - changed[..., :4, :4]
    before, after = (vae.posterior(image).mean for image in (x, changed))
    assert not torch.allclose(before[..., 0, 0], after[..., 0, 0])
    torch.testing.assert_close(before[..., 4:, 4:], after[..., 4:, 4:])


@every_size
def test_the_grid_takes_other_sizes_than_it_was_made_for(size):
    vae = ConvGridVAE((1, 16, 16), 3, (4, 6))
    x = torch.rand(5, 1, *size)
    assert evaluate(vae, {"x": x}).num_data == 5
    grid = vae.posterior(x).mean
    assert vae.decode(grid, size).event_shape == (1, *size)
    assert vae.decode(grid).event_shape == (1, *(4 * side for side in grid.shape[-2:]))


def test_resizing_shares_the_learned_scale():
    vae = ConvGridVAE((1, 8, 8), 2, (4,))
    twin = vae.likelihood.resized((1, 16, 16))
    assert twin.raw_scale is vae.likelihood.raw_scale
    assert vae.likelihood.event_shape == (1, 8, 8)
    assert vae.likelihood.resized((1, 8, 8)) is vae.likelihood


@pytest.mark.parametrize("kind", [ConvVAE, ConvGridVAE])
def test_particles_are_taken_in_one_pass(kind):
    program = as_program(kind((1, 8, 8), 2, (4,)))
    assert can_vectorize(program, {"x": torch.rand(3, 1, 8, 8)}, 3, plates=1)


@pytest.mark.parametrize("kind", [ConvVAE, ConvGridVAE])
def test_errors(kind):
    with pytest.raises(ProgramError, match="8×8 cannot be halved 4 times; give at most 3 chan"):
        kind((1, 8, 8), channels=(4, 4, 4, 4))
    with pytest.raises(ProgramError, match="channels must name one width or more"):
        kind((1, 8, 8), channels=())


@pytest.mark.parametrize("kind", [VAE, BetaVAE, ConvVAE])
def test_convolutions_may_stand_before_hidden_layers(kind):
    vae = kind((1, 13, 10), 3, channels=(4, 6), hidden_dims=(7,))
    shapes = [tuple(p.shape) for p in vae.parameters() if p.dim() > 1]
    head = [(7, 6 * 3 * 2), (6, 7)]  # of the grid 3 × 2, and of loc and scale
    assert shapes[:4] == [(4, 1, 4, 4), (6, 4, 4, 4), *head]
    assert shapes[4:6] == [(7, 3), (6 * 3 * 2, 7)]  # mirrored
    x = torch.rand(5, 1, 13, 10)
    assert vae.decode(vae.posterior(x).mean).event_shape == (1, 13, 10)
    with pytest.raises(ProgramError, match="each at least 1, got \\[4, 0\\]"):
        kind((1, 13, 10), 3, channels=(4, 0))


def test_data_that_are_no_images_are_refused():
    with pytest.raises(ProgramError, match=r"need images \(C, H, W\), got data of shape \(7,\)"):
        ConvVAE((7,))
