"""Densities of our own, and shapes for those of others."""

from ppl_models.distributions.autoregressive import AutoregressiveGrid
from ppl_models.distributions.completed import Completed
from ppl_models.distributions.continuous_bernoulli import ContinuousBernoulli
from ppl_models.distributions.discretized_logistic import DiscretizedLogisticMixture
from ppl_models.distributions.drawings import Drawings, FinishedDrawings, num_movements
from ppl_models.distributions.shaped import Shaped
from ppl_models.distributions.stroke_mixture import StrokeMixture

__all__ = [
    "AutoregressiveGrid",
    "Completed",
    "ContinuousBernoulli",
    "DiscretizedLogisticMixture",
    "Drawings",
    "FinishedDrawings",
    "Shaped",
    "StrokeMixture",
    "num_movements",
]
