"""Densities of our own, and shapes for those of others."""

from ppl_models.distributions.completed import Completed
from ppl_models.distributions.shaped import Shaped

__all__ = ["Completed", "Shaped"]
