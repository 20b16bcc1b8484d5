"""The largest singular values of a network's weights, as a penalty that keeps it smooth.

Σ σ_max(W) over the weights of convolutions and affine maps, each as a matrix (out, in · k · k) as
it is applied, after any normalization. A power iteration follows each W from step to step, so that
a few iterations at every step suffice. Matrices of one shape are iterated together.

References:
    Vahdat, Kautz: NVAE, 2020, arXiv:2007.03898, section 3.2.
    Yoshida, Miyato: Spectral Norm Regularization, 2017, arXiv:1705.10941.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


class SpectralNorms(nn.Module):
    """Estimates of the largest singular values of all weights of a network.

    Args:
        network: any; those of its layers that are affine maps or convolutions count.
        iterations: of the power iteration at each call in training mode.
    """

    def __init__(self, network: nn.Module, iterations: int = 2) -> None:
        super().__init__()
        self.iterations = iterations
        self._network = [network]  # not registered a second time
        for shape, matrices in self._by_shape().items():
            start = F.normalize(torch.randn(len(matrices), shape[0]), dim=-1)
            self.register_buffer(_buffer(shape), start)

    def _by_shape(self) -> dict[tuple[int, int], list[Tensor]]:
        found: dict[tuple[int, int], list[Tensor]] = {}
        for matrix in matrices_of(self._network[0]):
            found.setdefault((matrix.shape[0], matrix.shape[1]), []).append(matrix)
        return found

    def forward(self) -> Tensor:
        """Σ σ_max, a scalar with the gradient of the singular values; at most the true sum."""
        total: list[Tensor] = []
        for shape, matrices in self._by_shape().items():
            stacked = torch.stack(matrices)  # (G, m, n)
            with torch.autocast(stacked.device.type, enabled=False):  # 16 bits are too few
                total.append(self._norms(_buffer(shape), stacked).sum())
        return torch.stack(total).sum()

    def _norms(self, name: str, stacked: Tensor) -> Tensor:
        """σ_max of matrices (G, m, n), (G,), from the vectors in the buffer of this name."""
        left = self.get_buffer(name).clone()  # (G, m)
        with torch.no_grad():
            for _ in range(self.iterations if self.training else 1):
                right = F.normalize((left.unsqueeze(-2) @ stacked).squeeze(-2), dim=-1)
                left = F.normalize((stacked @ right.unsqueeze(-1)).squeeze(-1), dim=-1)
            if self.training:
                self.get_buffer(name).copy_(left)
        return (left * (stacked @ right.unsqueeze(-1)).squeeze(-1)).sum(-1)


def matrices_of(network: nn.Module) -> Iterator[Tensor]:
    """The weights of its affine maps and convolutions as matrices, as they are applied."""
    for layer in network.modules():
        if isinstance(layer, _LAYERS):
            effective = getattr(layer, "effective_weight", None)
            weight = layer.weight if effective is None else effective()
            yield weight.flatten(1)


def _buffer(shape: tuple[int, int]) -> str:
    return f"left_{shape[0]}x{shape[1]}"
