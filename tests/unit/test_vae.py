"""The VAE is the lecture's."""

from __future__ import annotations

import math

import pytest
import torch
from programs import tiny_images, tiny_vae

from inference.elbo import ESTIMATORS
from ppl_models import ProgramError
from ppl_models.vae import VAE


def test_the_loss_is_the_lectures():
    """With unit variance and one draw: ½‖x − x̂‖² + KL, plus (d/2) log 2π, to equality."""
    vae, x = tiny_vae("normal"), tiny_images(7, binary=False)
    torch.manual_seed(3)
    loss = ESTIMATORS["analytic_kl"]().differentiable_loss(vae.model, vae.guide, x)

    torch.manual_seed(3)
    q = vae.posterior(x)
    loc, scale = q.base_dist.loc, q.base_dist.scale
    z = loc + scale * torch.randn_like(loc)  # the reparameterization trick
    x_hat = vae.decoder(z).unflatten(-1, (1, 4, 4))
    reconstruction = 0.5 * (x - x_hat).square().sum()
    kl = 0.5 * (loc.square() + scale.square() - 1 - 2 * scale.log()).sum()
    constant = 0.5 * x.numel() * math.log(2 * math.pi)
    torch.testing.assert_close(loss, reconstruction + kl + constant)

    ours = torch.autograd.grad(loss, list(vae.parameters()))
    theirs = torch.autograd.grad(reconstruction + kl, list(vae.parameters()))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_the_decoder_mirrors_the_encoder():
    vae = VAE((1, 4, 4), 3, (10, 6))
    widths = [m.out_features for net in (vae.encoder, vae.decoder) for m in net[::2]]
    assert widths == [10, 6, 6, 6, 10, 16]


def test_a_code_needs_a_dimension():
    with pytest.raises(ProgramError, match="latent_dim must be at least 1, got 0"):
        VAE(latent_dim=0)
