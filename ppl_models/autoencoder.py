"""The autoencoder, and the generative model that it is not trained to be.

The guide is a point: the image's code, with certainty,

    z = encoder(x)                      site ``z``, a ``Delta``, (D,)

and the model decodes it:

    z ~ Normal(0, I)                    site ``z``, masked: it weighs nothing
    x ~ likelihood(decoder(z))          site ``x``, (C, H, W)

so that with the Normal likelihood of unit variance training minimizes the lecture's loss
½‖x − x̂‖² (plus the constant (d/2) log 2π) and nothing else. The prior stands in the model so that
random z can be decoded; nothing draws the codes to it, and how far from it they lie is what
``inference.aggregate`` measures. Its "ELBO" is −distortion, log p(x | z) at the code: no bound on
log p(x).

Shapes: D latent, C H W image.

References:
    Hinton, Salakhutdinov: Reducing the Dimensionality of Data with Neural Networks, Science 313,
    2006.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager

from pyro import poutine

from ppl_models.vae import VAE


class Autoencoder(VAE):
    """An autoencoder with fully connected networks.

    Args:
        x_shape: shape of one datum.
        latent_dim: D, the size of the code.
        hidden_dims: widths of the encoder's hidden layers; the decoder mirrors them.
        likelihood: a name of ``LIKELIHOODS``; ``normal`` gives the lecture's squared error.
        activation: between layers: ``relu``, ``tanh``, ``silu``, ``elu``.
        grey_levels: of the data, for likelihoods of levels; 256 when left out.
    """

    def __init__(
        self,
        x_shape: Sequence[int] = (1, 28, 28),
        latent_dim: int = 20,
        hidden_dims: Sequence[int] = (400,),
        likelihood: str = "normal",
        activation: str = "relu",
        grey_levels: int | None = None,
    ) -> None:
        super().__init__(
            x_shape,
            latent_dim,
            hidden_dims,
            likelihood,
            posterior="point",
            activation=activation,
            grey_levels=grey_levels,
        )

    def rate_weight(self) -> AbstractContextManager[object]:
        """In model and guide alike: the prior weighs nothing."""
        return poutine.mask(mask=False)
