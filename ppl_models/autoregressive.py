"""Autoregressive models of images and of grids of integers: the gated PixelCNN, a Transformer.

Generative story, for each datum in the plate ``data``, position i after position in raster order:

    x_i ~ Categorical(network(x_1, ..., x_{i−1}, y))    site ``x``, all of them: (C, h, w), (h, w)

Nothing is latent and the guide is empty: −log p(x) is exact, and so is everything that is reported.
A class label y is an input, where the program is made so; without data it is drawn:

    y ~ Categorical(1/Y)                                 site ``y``, only there

Data of shape (C, h, w) are images, whose V values are the grey levels k / (V − 1) (0 and 1 of a
binary one); of shape (h, w), integers 0, ..., V − 1, such as the codes of a vector quantizer.

Shapes: B data, Y classes, V values, C h w grid.

References:
    van den Oord, Kalchbrenner, Vinyals, Espeholt, Graves, Kavukcuoglu: Conditional Image Generation
    with PixelCNN Decoders, 2016, arXiv:1606.05328.
    Chen et al.: Generative Pretraining from Pixels, ICML 2020.
"""

from __future__ import annotations

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppl_models.distributions import AutoregressiveGrid
from ppl_models.errors import ProgramError, whole_number
from ppl_models.labels import one_hot
from ppl_models.nets import CausalTransformer, Context, GatedPixelCNN


class GridPrior(nn.Module):
    """p(grid | label, coarser grid), by a causal network.

    Args:
        network: a causal network over the grid, made for a context of ``features`` if there is one.
        event_shape: (h, w), or (C, h, w).
        grey: values are grey levels, not integers.
        features: of the context.
        num_classes: Y, of labels that it is conditioned on; 0 for none.
        coarse_values: of a coarser grid that it is conditioned on; 0 for none.
    """

    class_weights: Tensor

    def __init__(
        self,
        network: GatedPixelCNN | CausalTransformer,
        event_shape: Sequence[int],
        *,
        grey: bool = False,
        features: int = 32,
        num_classes: int = 0,
        coarse_values: int = 0,
    ) -> None:
        super().__init__()
        self.network = network
        self.event_shape = tuple(event_shape)
        self.grey = grey
        self.num_classes = num_classes
        conditioned = bool(num_classes or coarse_values)
        self.context = Context(features, num_classes, coarse_values) if conditioned else None
        self.register_buffer("class_weights", torch.ones(max(num_classes, 1)), persistent=False)

    def draw_labels(self, size: int) -> Tensor:
        """Labels from all classes alike: site ``y``, (size,), outside the data plate."""
        return pyro.sample("y", dist.Categorical(self.class_weights).expand((size,)).to_event(1))

    def forward(self, y: Tensor | None = None, coarse: Tensor | None = None) -> AutoregressiveGrid:
        """The distribution, event (h, w) or (C, h, w); batch (B,) where it is conditioned.

        Args:
            y: labels (B,), which a prior without classes passes over.
            coarse: integers (B, h', w').

        Raises:
            ProgramError: no labels, where there are classes; or labels that are none of them.
        """
        if self.context is None:
            return AutoregressiveGrid(self.network, self.event_shape, grey=self.grey)
        if self.num_classes and y is None:
            raise ProgramError("a class-conditional prior needs labels y (B,)")
        labels = None
        if self.num_classes and y is not None:
            labels = one_hot(y, self.num_classes, self.class_weights)
        context = self.context(self.event_shape[-2:], labels, coarse)
        return AutoregressiveGrid(self.network, self.event_shape, context, grey=self.grey)


class Autoregressive(PyroModule):
    """Base of the programs: x by a causal network, nothing latent.

    Args:
        prior: of x.
    """

    def __init__(self, prior: GridPrior) -> None:
        super().__init__()
        self.prior = prior

    @pyro_method
    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, size: int = 1) -> Tensor:
        """p(x), or p(x | y); without data, draws of the labels' images, or ``size`` draws.

        Raises:
            ProgramError: see :func:`check_labelled`.
        """
        check_labelled(self.prior.num_classes, x, y)
        given = x if x is not None else y
        size = size if given is None else len(given)
        if self.prior.num_classes and y is None:
            y = self.prior.draw_labels(size)  # (B,)
        with pyro.plate("data", size, dim=-1):
            return pyro.sample("x", self.prior(y), obs=x)  # (B, C, h, w) or (B, h, w)

    def guide(self, x: Tensor, y: Tensor | None = None) -> None:
        """Nothing is latent."""


class PixelCNN(Autoregressive):
    """A gated PixelCNN.

    Args:
        x_shape: (C, h, w) of images, (h, w) of integers.
        channels: features of each of the network's two stacks.
        num_layers: of each stack.
        kernel_size: odd; of all layers but the first, which sees what lies within 7.
        class_conditional: condition on labels y.
        num_classes: Y, of data with labels.
        num_values: V; the data's grey levels when left out, or 2.
        grey_levels: of the data, if they say.
    """

    def __init__(
        self,
        x_shape: Sequence[int] = (1, 28, 28),
        channels: int = 32,
        num_layers: int = 7,
        kernel_size: int = 3,
        class_conditional: bool = False,
        num_classes: int | None = None,
        num_values: int | None = None,
        grey_levels: int | None = None,
    ) -> None:
        values = count_values(x_shape, num_values, grey_levels)
        classes = count_classes(class_conditional, num_classes)
        features = channels if classes else 0
        network = GatedPixelCNN(values, channels, num_layers, kernel_size, features)
        grey = len(x_shape) == 3
        super().__init__(
            GridPrior(network, x_shape, grey=grey, features=channels, num_classes=classes)
        )


class CodeTransformer(Autoregressive):
    """A causal Transformer over the raster.

    Args:
        x_shape: (C, h, w) of images, (h, w) of integers.
        dim: features of a position.
        num_layers: of the network.
        num_heads: of attention.
        dropout: of what every part of a layer adds, while training.
        class_conditional: condition on labels y.
        num_classes: Y, of data with labels.
        num_values: V; the data's grey levels when left out, or 2.
        grey_levels: of the data, if they say.
    """

    def __init__(
        self,
        x_shape: Sequence[int] = (1, 28, 28),
        dim: int = 128,
        num_layers: int = 4,
        num_heads: int = 4,
        dropout: float = 0.0,
        class_conditional: bool = False,
        num_classes: int | None = None,
        num_values: int | None = None,
        grey_levels: int | None = None,
    ) -> None:
        values = count_values(x_shape, num_values, grey_levels)
        classes = count_classes(class_conditional, num_classes)
        features = dim if classes else 0
        grid = raster(x_shape)
        network = CausalTransformer(values, grid, dim, num_layers, num_heads, dropout, features)
        grey = len(x_shape) == 3
        super().__init__(GridPrior(network, x_shape, grey=grey, features=dim, num_classes=classes))


def check_labelled(num_classes: int, data: Tensor | None, y: Tensor | None) -> None:
    """Refuse labels that are missing, or that there is nothing to do with.

    Args:
        num_classes: Y of the program, 0 if it knows none.
        data: that are scored, or None: some are to be drawn.
        y: the labels.

    Raises:
        ProgramError: data without labels where the program is class-conditional; labels to draw
            for, where it is not.
    """
    if num_classes and y is None and data is not None:
        raise ProgramError("data without labels: a class-conditional program takes x and y")
    if not num_classes and data is None and y is not None:
        raise ProgramError(
            "this program knows no classes, so it cannot draw for labels y; train one with "
            "class_conditional=True (--model.class_conditional true)"
        )


def raster(x_shape: Sequence[int]) -> tuple[int, int]:
    """Height and width of the grid that a network sees: a pixel's channels are side by side."""
    *channels, height, width = x_shape
    return height, width * (channels[0] if channels else 1)


def count_values(x_shape: Sequence[int], num_values: int | None, grey_levels: int | None) -> int:
    """V, as given, or as the data say.

    Raises:
        ProgramError: data that are no grid; or integers, without their number of values.
    """
    if len(x_shape) not in (2, 3):
        raise ProgramError(
            f"an autoregressive model takes images (C, h, w) or grids of integers (h, w), got data "
            f"of shape {tuple(x_shape)}"
        )
    if num_values is None and len(x_shape) == 2:
        raise ProgramError(
            "a grid of integers (h, w) has num_values of them: give num_values=64 "
            "(--model.num_values 64); images are (C, h, w)"
        )
    return whole_number("num_values", num_values or grey_levels or 2, least=2)


def count_classes(class_conditional: bool, num_classes: int | None) -> int:
    """Y of a class-conditional program, 0 of another.

    Raises:
        ProgramError: it is to be class-conditional, and there are no labels.
    """
    if not class_conditional:
        return 0
    if num_classes is None:
        raise ProgramError("class_conditional needs labels (num_classes), and the data have none")
    return whole_number("num_classes", num_classes)
