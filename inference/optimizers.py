"""Optimizers beside torch's own: Muon for all the parameters of a program."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Adam
from torch.optim import Muon as MatrixMuon


def _matrix(parameter: Tensor) -> bool:
    """Whether a parameter is a map of many numbers to many.

    The kernel of a convolution (out, in, h, w) is one, of the in·h·w numbers of a window; that of
    a single input channel, as a depthwise convolution has, is a set of filters.
    """
    return parameter.dim() == 2 or (parameter.dim() > 2 and parameter.shape[1] > 1)


class _KernelMuon(MatrixMuon):
    """Torch's Muon, which takes matrices, for kernels of convolutions too: as (out, in·h·w)."""

    def __init__(self, weights: Iterable[Tensor], *args: Any, **options: Any) -> None:
        self.weights = list(weights)
        # Views: what is written to them is written to the weights.
        views = [nn.Parameter(p.detach().view(len(p), -1)) for p in self.weights]
        super().__init__(views, *args, **options)

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step by the gradients of the weights."""
        for weight, view in zip(self.weights, self.param_groups[0]["params"], strict=True):
            view.grad = None if weight.grad is None else weight.grad.flatten(1)
        return super().step(closure)


class Muon(torch.optim.Optimizer):
    """Muon for weight matrices and kernels of convolutions, Adam for everything else.

    Torch's Muon refuses what is no matrix; a kernel is taken as one of (out, in·h·w), as its author
    proposes. Its steps are scaled to the size of Adam's (Liu et al., section 2.2), so one learning
    rate serves both.

    Args:
        params: parameters of any shape.
        lr: learning rate of both.
        weight_decay: decoupled, of matrices and kernels.
        momentum: of Muon.
        betas: of Adam.
        eps: of Adam.

    References:
        Jordan et al.: Muon: An optimizer for hidden layers in neural networks, 2024,
        https://kellerjordan.github.io/posts/muon.
        Liu et al.: Muon is Scalable for LLM Training, 2025, arXiv:2502.16982.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        every = list(params)
        matrices = [p for p in every if _matrix(p)]
        others = [p for p in every if not _matrix(p)]
        self.parts: list[torch.optim.Optimizer] = []
        if matrices:
            as_adam = "match_rms_adamw"
            self.parts.append(
                _KernelMuon(matrices, lr, weight_decay, momentum, adjust_lr_fn=as_adam)
            )
        if others or not matrices:
            self.parts.append(Adam(others, lr=lr, betas=betas, eps=eps))
        super().__init__(self._groups(), {"lr": lr})

    def _groups(self) -> list[dict[str, Any]]:
        """Those of both parts, themselves: what a schedule sets is what the parts take."""
        return [group for part in self.parts for group in part.param_groups]

    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """A step of both."""
        loss = None if closure is None else closure()
        for part in self.parts:
            part.step()
        return loss

    def state_dict(self) -> dict[str, Any]:
        """The states of both, under ``parts``."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the states of both."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = self._groups()
