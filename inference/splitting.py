"""Half-quadratic splitting: an image and what a prior expects behind it, taken in turns.

With a variance s that falls from step to step,

    expected = program.expect(x, s)                         the prior's answer to noise s in x
    x = program.observation.combine(observed, expected, s)  between that and the data

The same steps by gradient: s times the gradient of the prior's log density, seen through noise s,
is ``expected − x`` (Tweedie's formula), so one plain gradient step on
−log p(x, observed) at learning rate 1 / (1/σ² + 1/s) is one step of the above
(:func:`anneal`), where the posterior is averaged over components (``soft``). That is for noise
alone; with holes the learning rate is one number for pixels that are seen and another for those
that are not, and with blur it is a matrix, the inverse of the second derivative.

Shapes: B planes, H W image.

References:
    Zoran, Weiss: From Learning Models of Natural Image Patches to Whole Image Restoration, 2011.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from inference.map_estimate import map_estimate
from ppl_models.errors import PplError

Report = Callable[[float], None]
"""Called with the share of the work that has just been done; the shares sum to 1."""


class Observation(Protocol):
    """How images are seen."""

    noise_scale: float

    def start(self, observed: Tensor) -> Tensor:
        """A first guess."""

    def combine(self, observed: Tensor, expected: Tensor, variance: float) -> Tensor:
        """The image between observation and expectation."""

    def newton_step(self, gradient: Tensor, variance: float) -> Tensor:
        """From a gradient to the step that :meth:`combine` would take."""

    def variances(self) -> list[float]:
        """The falling variances of the steps."""


class SplittingProgram(Protocol):
    """A program whose prior answers to noise."""

    observation: Any
    smoothing: float

    def checked(self, observed: Tensor) -> Tensor:
        """The observed images, if they can be restored; what is not seen may be changed."""

    def expect(self, images: Tensor, variance: float, **options: Any) -> Tensor:
        """What the prior expects behind images with noise of this variance."""


def split_half_quadratic(
    program: SplittingProgram,
    observed: Tensor,
    *,
    variances: Sequence[float] | None = None,
    stride: int | None = None,
    soft: bool = False,
    num_pairs: int | None = None,
    seed: int | None = None,
    callback: Report | None = None,
) -> Tensor:
    """Restore images by half-quadratic splitting.

    Args:
        program: such as :class:`ppl_models.epll.EPLL`.
        observed: (B, H, W) in [0, 1].
        variances: s of each step; the observation's own when left out.
        stride: pixels between patches, a speed lever; the program's when left out.
        soft: average over the components of the mixture instead of taking the likeliest.
        num_pairs: how many coordinates of a patch choose its component in full; a speed lever.
        seed: shifts the grid of patches anew at each step; no shifts when left out.
        callback: told of the progress.

    Returns:
        (B, H, W).

    Raises:
        PplError: the images hold NaN, or do not fit the observation or the prior; or a variance
            is not positive.
    """
    steps = _steps(program, variances)
    observed = program.checked(observed)
    generator = None if seed is None else torch.Generator().manual_seed(seed)
    image = program.observation.start(observed)
    for variance in steps:
        expected = program.expect(
            image,
            variance,
            stride=stride,
            generator=generator,
            soft=soft,
            num_pairs=num_pairs,
            callback=_share(callback, len(steps)),
        )
        image = program.observation.combine(observed, expected, variance)
    return image


def anneal(
    program: SplittingProgram,
    observed: Tensor,
    *,
    variances: Sequence[float] | None = None,
    callback: Report | None = None,
) -> Tensor:
    """Restore images by gradient steps on the program's log joint, one for each variance.

    The prior is smoothed by the variance of the step, ``program.smoothing``, which is put back
    afterwards.

    Args:
        program: with a latent site ``clean`` and an observed site ``noisy``.
        observed: (B, H, W) in [0, 1].
        variances: s of each step; the observation's own when left out.
        callback: told of the progress.

    Returns:
        (B, H, W).

    Raises:
        PplError: as :func:`split_half_quadratic`.
    """
    steps = _steps(program, variances)
    observed = program.checked(observed)
    before = program.smoothing

    def after_step(step: int, *_: Any) -> None:
        program.smoothing = steps[min(step + 1, len(steps) - 1)]
        if callback is not None:
            callback(1 / len(steps))

    try:
        program.smoothing = steps[0]
        found = map_estimate(
            program,
            {"noisy": observed},
            init={"clean": program.observation.start(observed)},
            optimizer=lambda parameters: _NewtonSteps(parameters, program.observation, steps),
            max_steps=len(steps),
            tolerance=0,
            callback=after_step,
        )
    finally:
        program.smoothing = before
    return found.values["clean"]


class _NewtonSteps(torch.optim.Optimizer):
    """One gradient step for each variance; for noise alone SGD with a falling learning rate."""

    def __init__(
        self, parameters: Iterable[Tensor], observation: Observation, variances: Sequence[float]
    ) -> None:
        super().__init__(parameters, {})
        self.observation = observation
        self.variances = iter(variances)

    def step(self, closure: Callable[[], Any]) -> Any:  # type: ignore[override]
        loss, variance = closure(), next(self.variances)
        with torch.no_grad():
            for group in self.param_groups:
                for image in group["params"]:
                    image -= self.observation.newton_step(image.grad, variance)
        return loss


def _steps(program: SplittingProgram, variances: Sequence[float] | None) -> list[float]:
    steps = list(program.observation.variances() if variances is None else variances)
    if not steps or not all(0 < variance < math.inf for variance in steps):
        raise PplError(f"variances must be positive numbers, one a step or more; got {steps}")
    return steps


def _share(callback: Report | None, parts: int) -> Report | None:
    return None if callback is None else lambda share: callback(share / parts)
