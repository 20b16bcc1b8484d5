"""Networks that programs are built of; they know nothing of Pyro."""

from ppl_models.nets.causal_transformer import CausalTransformer
from ppl_models.nets.context import Context
from ppl_models.nets.conv import ConvDecoder, ConvEncoder, GridDecoder, GridEncoder, halvings
from ppl_models.nets.masked_conv import GatedPixelCNN
from ppl_models.nets.mlp import ACTIVATIONS, mlp

__all__ = [
    "ACTIVATIONS",
    "CausalTransformer",
    "Context",
    "ConvDecoder",
    "ConvEncoder",
    "GatedPixelCNN",
    "GridDecoder",
    "GridEncoder",
    "halvings",
    "mlp",
]
