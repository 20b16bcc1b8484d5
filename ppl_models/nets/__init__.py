"""Networks that programs are built of; they know nothing of Pyro."""

from ppl_models.nets.mlp import mlp

__all__ = ["mlp"]
