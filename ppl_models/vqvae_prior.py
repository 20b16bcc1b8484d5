"""A learned prior over the codes of a vector quantizer, and the two as one generative model.

Once a VQ-VAE is trained, its uniform prior over codes is replaced by an autoregressive one, which
is trained on the codes of the data. As a program of its own, for each datum in the plate ``data``,

    codes ~ p(codes | y)                                      site ``codes``, (h, w)

or, over the two grids of a VQ-VAE-2,

    codes_top ~ p(codes_top | y)                              site ``codes_top``, (h', w')
    codes_bottom ~ p(codes_bottom | codes_top, y)             site ``codes_bottom``, (h, w)

with nothing latent and labels y where it is made so. :func:`with_prior` puts it in the place of
the quantizer's own prior: p(codes) p(x | codes), a program over images whose guide is still the
quantizer's, so that its ELBO, rate and total bits per dimension come from the trace.

Shapes: B data, K codes of the codebook, h w grid.

References:
    van den Oord, Vinyals, Kavukcuoglu: Neural Discrete Representation Learning, 2017,
    arXiv:1711.00937, section 3.3.
    Razavi, van den Oord, Vinyals: Generating Diverse High-Fidelity Images with VQ-VAE-2, 2019,
    arXiv:1906.00446, section 3.2.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import pyro
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppl_models.autoregressive import GridPrior, check_labelled, count_classes
from ppl_models.distributions import AutoregressiveGrid
from ppl_models.errors import ProgramError, UnknownNameError, whole_number
from ppl_models.nets import CausalTransformer, GatedPixelCNN
from ppl_models.program import as_program

NETWORKS = ("pixelcnn", "transformer")
ONE_LEVEL, TWO_LEVELS = ("codes",), ("codes_top", "codes_bottom")
"""Sites of the codes, in generative order."""


class CodePrior(PyroModule):
    """p(codes) of one grid, as a program.

    Args:
        prior: over the grid.
    """

    def __init__(self, prior: GridPrior) -> None:
        super().__init__()
        self.prior = prior

    @pyro_method
    def model(
        self, codes: Tensor | None = None, y: Tensor | None = None, *, size: int = 1
    ) -> Tensor:
        """p(codes | y); without data, ``size`` draws."""
        check_labelled(self.prior.num_classes, codes, y)
        size, y = _size_and_labels(self.prior, codes, y, size)
        with pyro.plate("data", size, dim=-1):
            return pyro.sample("codes", self.prior(y), obs=codes)  # (B, h, w)

    def guide(self, codes: Tensor, y: Tensor | None = None) -> None:
        """Nothing is latent."""


class TwoLevels(nn.Module):
    """p(codes_top | y) and p(codes_bottom | codes_top, y).

    Args:
        of_top: prior of the top grid.
        of_bottom: prior of the bottom grid, conditioned on the top one.
    """

    def __init__(self, of_top: GridPrior, of_bottom: GridPrior) -> None:
        super().__init__()
        self.of_top = of_top
        self.of_bottom = of_bottom

    @property
    def num_classes(self) -> int:
        """Y, 0 if it is not class-conditional."""
        return self.of_top.num_classes

    def draw_labels(self, size: int) -> Tensor:
        """Labels from all classes alike: site ``y``, (size,)."""
        return self.of_top.draw_labels(size)

    def top(self, y: Tensor | None = None) -> AutoregressiveGrid:
        """p(codes_top | y), event (h', w')."""
        return self.of_top(y)

    def bottom(self, codes_top: Tensor, y: Tensor | None = None) -> AutoregressiveGrid:
        """p(codes_bottom | codes_top, y), event (h, w)."""
        return self.of_bottom(y, codes_top)


class TwoLevelCodePrior(PyroModule):
    """p(codes_top, codes_bottom), as a program.

    Args:
        prior: over both grids.
    """

    def __init__(self, prior: TwoLevels) -> None:
        super().__init__()
        self.prior = prior

    @pyro_method
    def model(
        self,
        codes_top: Tensor | None = None,
        codes_bottom: Tensor | None = None,
        y: Tensor | None = None,
        *,
        size: int = 1,
    ) -> Tensor:
        """p(codes_top, codes_bottom | y); without data, ``size`` draws."""
        check_labelled(self.prior.num_classes, codes_top, y)
        size, y = _size_and_labels(self.prior, codes_top, y, size)
        with pyro.plate("data", size, dim=-1):
            top = pyro.sample("codes_top", self.prior.top(y), obs=codes_top)  # (B, h', w')
            return pyro.sample("codes_bottom", self.prior.bottom(top, y), obs=codes_bottom)

    def guide(self, codes_top: Tensor, codes_bottom: Tensor, y: Tensor | None = None) -> None:
        """Nothing is latent."""


def _size_and_labels(
    prior: GridPrior | TwoLevels, data: Tensor | None, y: Tensor | None, size: int
) -> tuple[int, Tensor | None]:
    """How many data there are, and their labels, drawn if there are none and there should be."""
    given = data if data is not None else y
    size = size if given is None else len(given)
    return size, prior.draw_labels(size) if prior.num_classes and y is None else y


def vqvae_prior(
    grids: Mapping[str, Sequence[int]],
    num_codes: int,
    network: str = "pixelcnn",
    channels: int = 64,
    num_layers: int = 6,
    kernel_size: int = 3,
    num_heads: int = 4,
    dropout: float = 0.0,
    class_conditional: bool = False,
    num_classes: int | None = None,
) -> CodePrior | TwoLevelCodePrior:
    """A prior over the codes of a quantized program.

    Args:
        grids: (h, w) by site: ``codes``, or ``codes_top`` and ``codes_bottom``.
        num_codes: K.
        network: ``pixelcnn`` or ``transformer``, of every grid.
        channels: features of a position: of the PixelCNN's stacks, or of the Transformer.
        num_layers: of the network.
        kernel_size: of the PixelCNN.
        num_heads: of the Transformer.
        dropout: of the Transformer.
        class_conditional: condition on labels y.
        num_classes: Y, of data with labels.

    Raises:
        ProgramError: sites that are none of a quantizer, or a network that cannot be.
        UnknownNameError: another network.
    """
    whole_number("num_codes", num_codes, least=2)
    classes = count_classes(class_conditional, num_classes)

    def over(site: str, coarse_values: int = 0) -> GridPrior:
        grid = (grids[site][0], grids[site][1])
        features = channels if classes or coarse_values else 0
        if network == "pixelcnn":
            net: GatedPixelCNN | CausalTransformer = GatedPixelCNN(
                num_codes, channels, num_layers, kernel_size, features
            )
        elif network == "transformer":
            net = CausalTransformer(
                num_codes, grid, channels, num_layers, num_heads, dropout, features
            )
        else:
            raise UnknownNameError("network", network, NETWORKS)
        return GridPrior(
            net, grid, features=channels, num_classes=classes, coarse_values=coarse_values
        )

    if tuple(grids) == ONE_LEVEL:
        return CodePrior(over("codes"))
    if tuple(grids) == TWO_LEVELS:
        return TwoLevelCodePrior(TwoLevels(over("codes_top"), over("codes_bottom", num_codes)))
    raise ProgramError(
        f"codes stand at the sites {ONE_LEVEL} or {TWO_LEVELS}, in this order; got {tuple(grids)}"
    )


class WithPrior(PyroModule):
    """A quantized program with another prior over its codes: p(codes | y) p(x | codes).

    Args:
        quantized: a VQ-VAE or VQ-VAE-2, which is not copied.
        prior: takes the place of its ``code_prior``.
    """

    def __init__(self, quantized: Any, prior: GridPrior | TwoLevels) -> None:
        super().__init__()
        self.quantized = quantized
        self.quantized.code_prior = prior
        self.grids: dict[str, tuple[int, int]] = dict(quantized.grids)
        self.num_codes: int = quantized.num_codes

    @property
    def prior(self) -> GridPrior | TwoLevels:
        """Over the codes."""
        return self.quantized.code_prior

    @pyro_method
    def model(self, x: Tensor | None = None, y: Tensor | None = None, *, size: int = 1) -> Tensor:
        """p(codes | y) p(x | codes); without data, draws of the labels' images, or ``size``."""
        check_labelled(self.prior.num_classes, x, y)
        size, y = _size_and_labels(self.prior, x, y, size)
        return self.quantized.model(x, y=y, size=size)

    @pyro_method
    def guide(self, x: Tensor, y: Tensor | None = None) -> Any:
        """The quantizer's."""
        return self.quantized.guide(x)

    def encode_codes(self, x: Tensor) -> dict[str, Tensor]:
        """The codes of images, (B, h, w) by site."""
        return self.quantized.encode_codes(x)

    def fingerprint(self) -> str:
        """Of the codebook."""
        return self.quantized.fingerprint()


def with_prior(program: object, prior: object) -> WithPrior:
    """A quantized program with a trained prior over its codes, as one generative program.

    Args:
        program: a VQ-VAE or VQ-VAE-2, or the result of its ``fit``; it is copied.
        prior: what :func:`vqvae_prior` made, or the result of its ``fit``; it is copied.

    Raises:
        ProgramError: the program has no codes, or the prior is over others.
    """
    quantized, owner = as_program(program).owner, as_program(prior).owner
    if not hasattr(quantized, "code_prior") or not hasattr(quantized, "grids"):
        raise ProgramError(
            f"{type(quantized).__name__} has no codes: a prior goes with a quantized program (a "
            "VQ-VAE), which has code_prior, grids and num_codes"
        )
    module = getattr(owner, "prior", None)
    ours, theirs = _codes_of(module), _codes_wanted(quantized)
    if ours != theirs or not isinstance(module, GridPrior | TwoLevels):
        raise ProgramError(
            f"the prior is over {_shown(ours)}, but {type(quantized).__name__} has "
            f"{_shown(theirs)}; make it by vqvae_prior(program.grids, program.num_codes)"
        )
    return WithPrior(copy.deepcopy(quantized), copy.deepcopy(module))


Codes = list[tuple[tuple[int, ...], int]]
"""Grid and number of codes of each level."""


def _codes_wanted(quantized: Any) -> Codes:
    return [(tuple(grid), quantized.num_codes) for grid in quantized.grids.values()]


def _codes_of(prior: object) -> Codes:
    if isinstance(prior, TwoLevels):
        return _codes_of(prior.of_top) + _codes_of(prior.of_bottom)
    if isinstance(prior, GridPrior):
        return [(prior.event_shape, prior.network.num_values)]
    return []


def _shown(codes: Codes) -> str:
    grids = (f"{'×'.join(map(str, grid))} places of {number} codes" for grid, number in codes)
    return " and ".join(grids) or "no codes"
