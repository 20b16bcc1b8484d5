"""The beta-VAE: a VAE whose rate costs more, or less, than its distortion.

The story and the guide are those of ``vae.py``; training maximizes

    E_q log p(x | z) − beta KL(q(z|x) ‖ p(z))

by ``poutine.scale`` around ``z`` in model **and** guide. With beta > 1 latent dimensions that tell
little are given up, and those that stay tend to be factors of variation; with beta < 1 images are
sharper and draws from the prior worse. Sweeping beta traces the rate-distortion curve. The reported
ELBO is that of the model, never scaled. (``conv_vae`` takes ``beta`` as well.)

Burgess et al. hold the rate at a capacity that grows instead: ``inference.handlers.Capacity``.

References:
    Higgins et al.: beta-VAE, ICLR 2017.
    Alemi et al.: Fixing a Broken ELBO, 2018, arXiv:1711.00464.
    Burgess et al.: Understanding disentangling in beta-VAE, 2018, arXiv:1804.03599.
"""

from __future__ import annotations

from collections.abc import Sequence

from ppl_models.vae import VAE


class BetaVAE(VAE):
    """A VAE with a weight on its rate.

    Args:
        x_shape: shape of one datum.
        latent_dim: D, the size of the code.
        beta: weight of the rate in training.
        hidden_dims: widths of the encoder's hidden layers; the decoder mirrors them.
        likelihood: a name of ``LIKELIHOODS``.
        activation: between layers.
        grey_levels: of the data, for likelihoods of levels; 256 when left out.
        channels: of convolutions of the image before the hidden layers, after every halving; none
            when left out.
    """

    def __init__(
        self,
        x_shape: Sequence[int] = (1, 28, 28),
        latent_dim: int = 10,
        beta: float = 4.0,
        hidden_dims: Sequence[int] = (400,),
        likelihood: str = "normal_shared_scale",
        activation: str = "relu",
        grey_levels: int | None = None,
        channels: Sequence[int] = (),
    ) -> None:
        super().__init__(
            x_shape,
            latent_dim,
            hidden_dims,
            likelihood,
            beta=beta,
            activation=activation,
            grey_levels=grey_levels,
            channels=channels,
        )
