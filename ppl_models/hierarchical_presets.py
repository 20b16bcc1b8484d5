"""Hierarchical VAEs of the catalog: :class:`HierarchicalVAE` with other defaults.

All its arguments can be changed: ``ppl train hvae_mnist_small --model.groups [6,3]``.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ppl_models.hierarchical_vae import HierarchicalVAE

Constructor = Callable[..., HierarchicalVAE]


def _preset(name: str, what_for: str, **defaults: Any) -> Constructor:
    """A constructor with these defaults, and the signature that says so."""
    signature = inspect.signature(HierarchicalVAE, eval_str=True)
    parameters = [
        parameter.replace(default=defaults.get(key, parameter.default))
        for key, parameter in signature.parameters.items()
    ]

    def make(*values: Any, **arguments: Any) -> HierarchicalVAE:
        given = make.__signature__.bind(*values, **arguments)  # type: ignore[attr-defined]
        given.apply_defaults()
        return HierarchicalVAE(*given.args, **given.kwargs)

    documented = inspect.getdoc(HierarchicalVAE) or ""
    make.__doc__ = f"{what_for}\n{documented.partition(chr(10))[2]}"
    make.__name__ = make.__qualname__ = name
    make.__signature__ = inspect.Signature(parameters, return_annotation=HierarchicalVAE)  # type: ignore[attr-defined]
    return make


hvae_mnist_small = _preset(
    "hvae_mnist_small",
    "Binarized digits on two cores: four groups at 7×7, two at 14×14.",
    groups=(4, 2),
    latent_channels=(8, 4),
    hidden_channels=(48, 32),
    encoder_cells=1,
)
hvae_mnist = _preset(
    "hvae_mnist",
    "Binarized digits with a GPU: NVAE's two scales of groups, 7×7 and 14×14.",
    groups=(5, 10),
    latent_channels=20,
    hidden_channels=(128, 64),
    cells=2,
    encoder_cells=4,
)
hvae_cifar10 = _preset(
    "hvae_cifar10",
    "Colour images of 32×32: grids of 8×8 and 16×16.",
    x_shape=(3, 32, 32),
    groups=(10, 20),
    latent_channels=20,
    hidden_channels=(256, 128),
    cells=2,
    encoder_cells=4,
    likelihood="discretized_logistic_mixture",
)
nvae_faces = _preset(
    "nvae_faces",
    "Faces of 64×64 by NVAE's depthwise cells: grids of 8×8, 16×16 and 32×32.",
    x_shape=(3, 64, 64),
    groups=(5, 10, 20),
    latent_channels=20,
    hidden_channels=(256, 128, 64),
    cell="depthwise",
    cells=2,
    encoder_cells=2,
    likelihood="discretized_logistic_mixture",
    checkpoint_cells=True,
)
