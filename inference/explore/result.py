"""What an exploration gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from matplotlib.figure import Figure


@dataclass
class Exploration:
    """A picture of a latent space."""

    figure: Figure
    frames: np.ndarray | None = None
    """(T, N, C, H, W): frames of N images each, if it moves."""
    numbers: dict[str, Any] = field(default_factory=dict)
