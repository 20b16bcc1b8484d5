"""Densities of our own, and shapes for those of others."""

from ppl_models.distributions.shaped import Shaped

__all__ = ["Shaped"]
