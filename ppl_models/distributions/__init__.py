"""Densities of our own, and shapes for those of others."""

from ppl_models.distributions.autoregressive import AutoregressiveGrid
from ppl_models.distributions.completed import Completed
from ppl_models.distributions.continuous_bernoulli import ContinuousBernoulli
from ppl_models.distributions.discretized_logistic import DiscretizedLogisticMixture
from ppl_models.distributions.shaped import Shaped

__all__ = [
    "AutoregressiveGrid",
    "Completed",
    "ContinuousBernoulli",
    "DiscretizedLogisticMixture",
    "Shaped",
]
