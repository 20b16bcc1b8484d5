"""What a patch prior is learned as: a zero-mean mixture over the coordinates of patches.

The learning itself is the engine's (stepwise EM, :mod:`inference.prior_training`); this says in
which coordinates, and makes a prior of what was found.

Shapes: N patches, P side of a patch, D = P² − 1 dimensions, K components.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ppl_models.errors import whole_number
from ppl_models.patch_prior import PatchPrior
from ppl_models.patches import dc_free_basis


@dataclass
class ZeroMeanMixture:
    """Weights (K,) and covariances (K, D, D) in float64."""

    weights: Tensor
    covariances: Tensor

    def prior(self) -> PatchPrior:
        """The mixture as a prior of patches."""
        return PatchPrior.from_covariances(self.weights, self.covariances)


class PatchLearner:
    """A mixture over patches without their mean, as it is to be learned.

    Args:
        num_components: K.
        patch_size: P.
        floor: added to every variance, in grey levels of [0, 1] squared.
        seed: of the start.
    """

    def __init__(
        self, num_components: int, patch_size: int = 8, floor: float = 1e-7, seed: int = 0
    ) -> None:
        self.num_components = whole_number("num_components", num_components)
        self.floor = floor
        self.seed = seed
        self.basis = dc_free_basis(patch_size, torch.float32)

    def coordinates(self, patches: Tensor) -> Tensor:
        """Patches (N, P²) in the basis without the constant patch, (N, D)."""
        return patches @ self.basis

    def mixture(self, weights: Tensor, covariances: Tensor) -> ZeroMeanMixture:
        """What was learned, in those coordinates."""
        return ZeroMeanMixture(weights, covariances)
