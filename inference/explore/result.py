"""What an exploration takes and gives."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from matplotlib.figure import Figure

from inference.data import DataSet
from ppl_models.program import Program


class Explorable(Protocol):
    """A trained program with its data: an open run, or the result of a fit."""

    program: Program
    data: DataSet


@dataclass
class Exploration:
    """A picture of a latent space."""

    figure: Figure
    frames: np.ndarray | None = None
    """(T, N, C, H, W): frames of N images each, if it moves."""
    numbers: dict[str, Any] = field(default_factory=dict)
    svg: bytes | None = None
    """Of drawings, the same as lines."""
