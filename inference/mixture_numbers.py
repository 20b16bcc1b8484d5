"""What is said of a Gaussian mixture once it is trained: how well it fits, and how well it holds.

Shapes: N data, K components, D the elements of a datum.
"""

from __future__ import annotations

import logging
import math
from typing import Any

import torch

from inference.data.dataset import DataSet, Split
from inference.em.fit import EMResult
from inference.em.program import is_mixture
from ppl_models.program import Program

log = logging.getLogger(__name__)

BATCH = 4096
FAR_BELOW = 0.1
"""Nats a dimension by which held-out data may be less likely before it is called overfitting."""


@torch.no_grad()
def mixture_numbers(program: Program, data: DataSet) -> dict[str, Any]:
    """What scikit-learn's users look at; nothing, of another program.

    Args:
        program: trained, on the device of the data.
        data: what it was trained on.

    Returns:
        Log-likelihood per datum of training, validation and test data (nats), BIC and AIC of the
        training data, and how many free parameters they count.
    """
    mixture: Any = program.owner
    if not is_mixture(mixture):
        return {}
    splits = {name: data.split(name) for name in ("train", "valid", "test")}
    found = {name: _log_likelihood(mixture, s) for name, s in splits.items() if len(s) > 0}
    if "valid" in found:
        warn_if_overfitted(found["train"], found["valid"], mixture.dim)
    free, size = mixture.num_free_parameters, len(data.train)
    fit = -2 * size * found["train"]
    return {
        "log_likelihood": found,
        "bic": fit + free * math.log(size),
        "aic": fit + 2 * free,
        "free_parameters": free,
    }


def em_numbers(result: object) -> dict[str, Any]:
    """How EM ended; nothing, of another method's result."""
    if not isinstance(result, EMResult):
        return {}
    return {
        "iterations": result.num_iterations,
        "converged": result.converged,
        "repairs": len(result.repairs),
    }


def _log_likelihood(mixture: Any, split: Split) -> float:
    """Mean log p(x) of a split."""
    total = sum(
        float(mixture.log_prob(batch["x"]).double().sum()) for batch in split.batches(BATCH)
    )
    return total / len(split)


def warn_if_overfitted(train: float, valid: float, dim: int) -> None:
    """Say so if validation data are far less likely than training data.

    Args:
        train: log-likelihood per datum; nats.
        valid: the same of held-out data.
        dim: D.
    """
    if train - valid <= max(1.0, FAR_BELOW * dim):
        return
    log.warning(
        "the mixture overfits: %.2f nats a datum in training, %.2f in validation; give fewer "
        "components, covariance diagonal or spherical, a prior, or a larger min_scale",
        train,
        valid,
    )
