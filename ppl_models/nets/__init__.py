"""Networks that programs are built of; they know nothing of Pyro."""

from ppl_models.nets.conv import (
    ConvDecoder,
    ConvEncoder,
    GridDecoder,
    GridEncoder,
    check_channels,
    halvings,
    halvings_to,
)
from ppl_models.nets.mlp import ACTIVATIONS, mlp
from ppl_models.nets.quantizer import Codebook, Quantized, fingerprint_of

__all__ = [
    "ACTIVATIONS",
    "Codebook",
    "ConvDecoder",
    "ConvEncoder",
    "GridDecoder",
    "GridEncoder",
    "Quantized",
    "check_channels",
    "fingerprint_of",
    "halvings",
    "halvings_to",
    "mlp",
]
