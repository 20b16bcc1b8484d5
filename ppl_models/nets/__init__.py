"""Networks that programs are built of; they know nothing of Pyro."""

from ppl_models.nets.conv import (
    ConvDecoder,
    ConvEncoder,
    GridDecoder,
    GridEncoder,
    check_channels,
    halvings,
)
from ppl_models.nets.mlp import ACTIVATIONS, mlp

__all__ = [
    "ACTIVATIONS",
    "ConvDecoder",
    "ConvEncoder",
    "GridDecoder",
    "GridEncoder",
    "check_channels",
    "halvings",
    "mlp",
]
