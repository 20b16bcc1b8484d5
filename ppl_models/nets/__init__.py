"""Networks that programs are built of; they know nothing of Pyro."""

from ppl_models.nets.causal_transformer import CausalTransformer
from ppl_models.nets.context import Context
from ppl_models.nets.conv import (
    ConvDecoder,
    ConvEncoder,
    GridDecoder,
    GridEncoder,
    check_channels,
    halvings,
    halvings_to,
)
from ppl_models.nets.masked_conv import GatedPixelCNN
from ppl_models.nets.mlp import ACTIVATIONS, mlp
from ppl_models.nets.quantizer import Codebook, Quantized, fingerprint_of
from ppl_models.nets.recurrent import StrokeDecoder, StrokeEncoder

__all__ = [
    "ACTIVATIONS",
    "CausalTransformer",
    "Codebook",
    "Context",
    "ConvDecoder",
    "ConvEncoder",
    "GatedPixelCNN",
    "GridDecoder",
    "GridEncoder",
    "Quantized",
    "StrokeDecoder",
    "StrokeEncoder",
    "check_channels",
    "fingerprint_of",
    "halvings",
    "halvings_to",
    "mlp",
]
