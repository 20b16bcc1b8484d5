"""Sketch-RNN: drawings as sequences of pen strokes, from a code.

Generative story, for each drawing in the plate ``data``, movement after movement:

    z ~ Normal(0, I)                                       site ``z``, (D,): the drawing's code
    x_i ~ StrokeMixture(decoder(x_1, ..., x_{i−1}, z))     site ``x``, all of them: (T, 5)

A row x_i is (dx, dy, down, up, end), stroke-5: an offset of the pen, and whether it then stays
down, is lifted, or the drawing had ended before (``distributions/stroke_mixture.py``). A drawing of
N < T movements is followed by ends, of which the first counts and the rest take part in nothing
(``distributions/drawings.py``). The decoder is an LSTM; z makes its first state and stands beside
every row. The guide reads the whole drawing, in both directions:

    z ~ Normal(loc(h), scale(h)),  h = [LSTM(x_1, ..., x_N), LSTM(x_N, ..., x_1)]

Variants: ``ClassSketchRNN`` knows a label y, in both networks; ``SketchDecoder`` has no z, so that
its likelihood is exact and its guide empty: it draws on from a given beginning.

Offsets are in units of the training set's deviation, which the program keeps (``offset_scale``).
The ELBO is in nats per drawing. The paper's loss has the distortion over the most rows, N_max = T,
and the rate over D, weighed by w: it is that of the ELBO with ``beta`` = w T / D, divided by T.

Shapes: B data, D latent, T rows, N movements, M components, Y classes.

References:
    Ha, Eck: A Neural Representation of Sketch Drawings, 2018, arXiv:1704.03477.
    Graves: Generating Sequences With Recurrent Neural Networks, 2013, arXiv:1308.0850.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppl_models.distributions import Drawings, StrokeMixture, num_movements
from ppl_models.errors import ProgramError, whole_number
from ppl_models.labels import one_hot
from ppl_models.latent_priors import StandardNormal
from ppl_models.nets import StrokeDecoder, StrokeEncoder
from ppl_models.posteriors import make_posterior


class SketchDecoder(PyroModule):
    """Drawings without a latent: the decoder alone.

    Args:
        x_shape: (T, 5) of one datum.
        decoder_dim: units of the LSTM.
        num_components: M of each movement's mixture.
        layer_norm: normalize the LSTM's layers; several times slower.
        input_dropout: share of the decoder's inputs that are zeroed in training.
        offset_scale: what the offsets were divided by, filled in from the data.
    """

    offset_scale: Tensor

    def __init__(
        self,
        x_shape: Sequence[int] = (251, 5),
        decoder_dim: int = 512,
        num_components: int = 20,
        layer_norm: bool = False,
        input_dropout: float = 0.0,
        offset_scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.num_rows = check_drawings(x_shape)
        self.decoder = stroke_decoder(num_components, decoder_dim, 0, layer_norm, input_dropout)
        self.register_buffer("offset_scale", torch.tensor(float(offset_scale)))

    def drawings(self, num_rows: int, beginning: Tensor | None = None) -> Drawings:
        """p(x), or p(x | beginning): event shape (T, 5)."""
        return Drawings(self.decoder, num_rows, like=self.offset_scale, beginning=beginning)

    @pyro_method
    def model(
        self, x: Tensor | None = None, beginning: Tensor | None = None, *, size: int = 1
    ) -> Tensor:
        """p(x); without data, ``size`` drawings, or one for each beginning (B, P, 5)."""
        given = x if x is not None else beginning
        size = size if given is None else len(given)
        drawings = self.drawings(self.num_rows if x is None else x.shape[-2], beginning)
        with pyro.plate("data", size, dim=-1):
            return pyro.sample("x", drawings, obs=x)  # (B, T, 5)

    def guide(self, x: Tensor, beginning: Tensor | None = None) -> None:
        """Nothing is latent."""


class SketchRNN(PyroModule):
    """A recurrent VAE of drawings.

    Args:
        x_shape: (T, 5) of one datum.
        latent_dim: D.
        encoder_dim: units of each of the encoder's two LSTMs.
        decoder_dim: units of the decoder's.
        num_components: M of each movement's mixture.
        posterior: family of q(z | x): ``diagonal``, ``full_covariance``, ``flow``.
        beta: weight of the rate in training.
        layer_norm: normalize the LSTMs' layers; several times slower.
        input_dropout: share of the decoder's inputs that are zeroed in training.
        offset_scale: what the offsets were divided by, filled in from the data.
    """

    offset_scale: Tensor

    def __init__(
        self,
        x_shape: Sequence[int] = (251, 5),
        latent_dim: int = 128,
        encoder_dim: int = 256,
        decoder_dim: int = 512,
        num_components: int = 20,
        posterior: str = "diagonal",
        beta: float = 1.0,
        layer_norm: bool = False,
        input_dropout: float = 0.0,
        offset_scale: float = 1.0,
    ) -> None:
        super().__init__()
        if not beta > 0:
            raise ProgramError(
                f"beta must be positive, got {beta}; without a code it is `sketch_rnn_decoder`"
            )
        self.num_rows = check_drawings(x_shape)
        self.beta = float(beta)
        self.family = make_posterior(posterior, latent_dim)
        self.standard_normal = StandardNormal(latent_dim)
        self.make_networks(
            latent_dim, encoder_dim, decoder_dim, num_components, layer_norm, input_dropout
        )
        self.register_buffer("offset_scale", torch.tensor(float(offset_scale)))

    def make_networks(
        self,
        latent_dim: int,
        encoder_dim: int,
        decoder_dim: int,
        num_components: int,
        layer_norm: bool,
        input_dropout: float,
        num_classes: int = 0,
    ) -> None:
        """Encoder and decoder, both with a label beside their inputs if there are classes."""
        self.encoder = StrokeEncoder(5 + num_classes, encoder_dim, layer_norm)
        self.code = nn.Linear(2 * encoder_dim, self.family.num_outputs)
        context_dim = latent_dim + num_classes
        self.decoder = stroke_decoder(
            num_components, decoder_dim, context_dim, layer_norm, input_dropout
        )

    def prior(self) -> dist.TorchDistribution:
        """p(z), event shape (D,)."""
        return self.standard_normal()

    def posterior(self, x: Tensor, label: Tensor | None = None) -> dist.TorchDistribution:
        """q(z | x, y) for x (B, T, 5) and indicators (B, Y): batch (B,), event (D,)."""
        rows = x if label is None else _beside_rows(x, label)
        return self.family(self.code(self.encoder(rows, num_movements(x))))

    def decode(
        self, z: Tensor, label: Tensor | None = None, num_rows: int | None = None
    ) -> Drawings:
        """p(x | z, y) for z (B, D), indicators (B, Y): batch (B,), event (T, 5)."""
        context = z if label is None else torch.cat([z, label.expand(*z.shape[:-1], -1)], -1)
        return Drawings(self.decoder, num_rows or self.num_rows, context, like=self.offset_scale)

    def rate_weight(self) -> AbstractContextManager[object]:
        """What z stands in, in model and guide alike: the weight of the rate, in training alone."""
        return nullcontext() if self.beta == 1 else poutine.scale(scale=self.beta)

    @pyro_method
    def model(self, x: Tensor | None = None, *, size: int = 1) -> Tensor:
        """p(x, z); without data, ``size`` drawings."""
        with pyro.plate("data", size if x is None else len(x), dim=-1):
            return self._draw(x, None)

    @pyro_method
    def guide(self, x: Tensor) -> Tensor:
        """q(z | x)."""
        with pyro.plate("data", len(x), dim=-1), self.rate_weight():
            return pyro.sample("z", self.posterior(x))  # (B, D)

    def _draw(self, x: Tensor | None, label: Tensor | None) -> Tensor:
        """Both sites, in the plate."""
        with self.rate_weight():
            z = pyro.sample("z", self.prior())  # (B, D)
        drawings = self.decode(z, label, None if x is None else x.shape[-2])
        return pyro.sample("x", drawings, obs=x)  # (B, T, 5)


class ClassSketchRNN(SketchRNN):
    """A recurrent VAE of drawings of a class that is asked for.

    Args:
        x_shape: (T, 5) of one datum.
        num_classes: Y.
        latent_dim: D.
        encoder_dim: units of each of the encoder's two LSTMs.
        decoder_dim: units of the decoder's.
        num_components: M of each movement's mixture.
        posterior: family of q(z | x, y): ``diagonal``, ``full_covariance``, ``flow``.
        beta: weight of the rate in training.
        layer_norm: normalize the LSTMs' layers; several times slower.
        input_dropout: share of the decoder's inputs that are zeroed in training.
        offset_scale: what the offsets were divided by, filled in from the data.
    """

    class_weights: Tensor

    def __init__(
        self,
        x_shape: Sequence[int] = (251, 5),
        num_classes: int = 10,
        latent_dim: int = 128,
        encoder_dim: int = 256,
        decoder_dim: int = 512,
        num_components: int = 20,
        posterior: str = "diagonal",
        beta: float = 1.0,
        layer_norm: bool = False,
        input_dropout: float = 0.0,
        offset_scale: float = 1.0,
    ) -> None:
        classes = whole_number("num_classes", num_classes)
        super().__init__(
            x_shape,
            latent_dim,
            encoder_dim,
            decoder_dim,
            num_components,
            posterior,
            beta,
            layer_norm,
            input_dropout,
            offset_scale,
        )
        self.num_classes = classes  # known now: the networks are made anew, with room for labels
        self.make_networks(
            latent_dim, encoder_dim, decoder_dim, num_components, layer_norm, input_dropout, classes
        )
        self.register_buffer("class_weights", torch.ones(classes), persistent=False)

    def _indicators(self, y: Tensor) -> Tensor:
        return one_hot(y, self.num_classes, like=self.class_weights)

    @pyro_method
    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, size: int = 1) -> Tensor:
        """p(x, z | y); without data, drawings of the labels, or ``size`` of any class.

        Raises:
            ProgramError: drawings without labels.
        """
        if y is None and x is not None:
            raise ProgramError("drawings without labels: a conditional program takes x and y")
        given = x if x is not None else y
        with pyro.plate("data", size if given is None else len(given), dim=-1):
            if y is None:
                y = pyro.sample("y", dist.Categorical(self.class_weights))  # (B,)
            return self._draw(x, self._indicators(y))

    @pyro_method
    def guide(self, x: Tensor, y: Tensor) -> Tensor:
        """q(z | x, y)."""
        with pyro.plate("data", len(x), dim=-1), self.rate_weight():
            return pyro.sample("z", self.posterior(x, self._indicators(y)))  # (B, D)


def stroke_decoder(
    num_components: int, hidden_dim: int, context_dim: int, layer_norm: bool, input_dropout: float
) -> StrokeDecoder:
    """A decoder whose outputs make a :class:`StrokeMixture`.

    Raises:
        PplError: no components.
        ProgramError: a dropout that is no share.
    """
    if not 0 <= input_dropout < 1:
        raise ProgramError(f"input_dropout must be from 0 to below 1, got {input_dropout}")
    outputs = StrokeMixture.num_outputs(whole_number("num_components", num_components))
    return StrokeDecoder(outputs, hidden_dim, context_dim, layer_norm, input_dropout)


def check_drawings(x_shape: Sequence[int]) -> int:
    """T of data that are drawings.

    Raises:
        ProgramError: they are none.
    """
    if len(x_shape) != 2 or x_shape[1] != 5 or x_shape[0] < 2:
        raise ProgramError(
            f"sketch models take drawings in stroke-5, (T, 5); got data of shape {tuple(x_shape)}. "
            "Give --data doodles, or an .npz, .ndjson or .svg file of strokes, or a folder of them"
        )
    return x_shape[0]


def _beside_rows(x: Tensor, label: Tensor) -> Tensor:
    """Rows (B, T, 5) with indicators (B, Y) beside each."""
    return torch.cat([x, label.unsqueeze(1).expand(-1, x.shape[1], -1)], -1)
