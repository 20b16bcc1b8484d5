"""Layers whose weights are a direction and a length, learned apart (weight normalization).

It does for deep residual networks what batch normalization does, a step that does not depend on
how long the weights happen to be, without statistics of the batch: a datum's output is its own,
training and evaluation compute the same, and there are no running averages to be readjusted
before one samples.

Shapes: B data, C H W image.

References:
    Salimans, Kingma: Weight Normalization, 2016, arXiv:1602.07868.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def _effective(direction: Tensor, gain: Tensor) -> Tensor:
    """The rows of a weight (out, ...), each of the length that ``gain`` (out,) says."""
    rows = direction.flatten(1)
    lengths = rows.norm(dim=1).clamp(min=torch.finfo(rows.dtype).tiny)
    return (rows * (gain / lengths).unsqueeze(1)).view_as(direction)


def _start(direction: Tensor) -> None:
    """Random directions (out, ...) of length about 1.

    The length matters to the optimizer alone: a step of Adam's turns a direction by its learning
    rate over the size of the entries, so that long ones hardly turn.
    """
    nn.init.normal_(direction, std=direction[0].numel() ** -0.5)


class WeightNormConv2d(nn.Conv2d):
    """A convolution with weight gain · direction / ‖direction‖, one length an output channel.

    Height and width stay as they are, unless there is a stride.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        kernel_size: side of the kernel; odd where there is no stride.
        stride: as that of ``nn.Conv2d``, without padding where it is above 1.
        groups: of channels that are convolved apart.
        gain: the first length of every row. Of inputs that are independent, of mean square 1, the
            outputs then have standard deviation ``gain``.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        groups: int = 1,
        gain: float = 1.0,
    ) -> None:
        padding = kernel_size // 2 if stride == 1 else 0
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=groups)
        self.gain = nn.Parameter(torch.full((out_channels,), gain))
        _start(self.weight)
        nn.init.zeros_(self.bias)  # type: ignore[arg-type]

    def effective_weight(self) -> Tensor:
        """The weight that is applied, (out, in / groups, k, k)."""
        return _effective(self.weight, self.gain)

    def forward(self, x: Tensor) -> Tensor:
        """Of images (B, in_channels, H, W)."""
        return self._conv_forward(x, self.effective_weight(), self.bias)


class WeightNormLinear(nn.Linear):
    """An affine map with weight gain · direction / ‖direction‖, one length an output.

    Args:
        in_features: of the input.
        out_features: of the output.
        gain: the first length of every row.
    """

    def __init__(self, in_features: int, out_features: int, gain: float = 1.0) -> None:
        super().__init__(in_features, out_features)
        self.gain = nn.Parameter(torch.full((out_features,), gain))
        _start(self.weight)
        nn.init.zeros_(self.bias)

    def effective_weight(self) -> Tensor:
        """The weight that is applied, (out, in)."""
        return _effective(self.weight, self.gain)

    def forward(self, x: Tensor) -> Tensor:
        """Of (..., in_features)."""
        return F.linear(x, self.effective_weight(), self.bias)
