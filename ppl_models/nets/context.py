"""What an autoregressive network is conditioned on, as a map of features.

Shapes: B batch, Y classes, F features, h w grid, h' w' a coarser grid, V' its values.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Context(nn.Module):
    """Features of a label, of a coarser grid of integers, or of both.

    Args:
        features: F.
        num_classes: Y; 0 if there are no labels.
        num_values: V' of the coarser grid; 0 if there is none.
    """

    def __init__(self, features: int, num_classes: int = 0, num_values: int = 0) -> None:
        super().__init__()
        self.label = nn.Linear(num_classes, features, bias=False) if num_classes else None
        self.coarse = nn.Embedding(num_values, features) if num_values else None
        if num_values:
            self.smooth = nn.Sequential(
                nn.Conv2d(features, features, 3, padding=1),
                nn.SiLU(),
                nn.Conv2d(features, features, 3, padding=1),
            )

    def forward(
        self,
        size: tuple[int, int],
        indicators: Tensor | None = None,
        coarse: Tensor | None = None,
    ) -> Tensor:
        """(..., B, F, h, w); (B, F, 1, 1) where there is no coarser grid.

        Args:
            size: h and w.
            indicators: of the labels, (B, Y).
            coarse: integers (..., B, h', w'), with particles before the data, where there are some.
        """
        parts = []
        if self.label is not None and indicators is not None:
            parts.append(self.label(indicators)[:, :, None, None])
        if self.coarse is not None and coarse is not None:
            known = self.coarse(coarse.flatten(0, -3)).permute(0, 3, 1, 2)
            known = known + self.smooth(known)
            known = F.interpolate(known, size=size, mode="nearest")
            parts.append(known.unflatten(0, coarse.shape[:-2]))
        return torch.stack(torch.broadcast_tensors(*parts)).sum(0)
