"""Learning a patch prior from image files: stepwise EM with progress, and exact resume.

Shapes: N patches, P side of a patch, D dimensions, K components.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from tqdm.auto import tqdm

from inference.checkpoint import load_checkpoint, save_checkpoint
from inference.data.patches import PatchStream
from inference.em.start import check_enough, moments_of, neighbourhoods
from inference.em.stepwise import StepwiseState, fit_stepwise
from inference.progress import watched
from ppl_models.errors import PplError


class Learner(Protocol):
    """A zero-mean mixture over patches, as it is to be learned."""

    num_components: int
    floor: float
    seed: int

    def coordinates(self, patches: Tensor, /) -> Tensor:
        """Patches (N, P²) as they are learned, (N, D)."""

    def mixture(self, weights: Tensor, covariances: Tensor, /) -> Any:
        """What was learned: (K,) and (K, D, D)."""


def train_on_patches(
    learner: Learner,
    stream: PatchStream,
    *,
    num_patches: int,
    batch_size: int = 20_000,
    checkpoint: Path | None = None,
    checkpoint_every: float = 60.0,
    settings: dict[str, Any] | None = None,
    progress: bool | None = None,
) -> tuple[Any, StepwiseState]:
    """Learn from random patches of image files.

    Args:
        learner: such as :class:`ppl_models.patch_learning.PatchLearner`.
        stream: of patches.
        num_patches: to learn from in all.
        batch_size: patches a step.
        checkpoint: a file to go on from, if it is there, and to write to.
        checkpoint_every: seconds.
        settings: plain values that a resumed run must share with its first part.
        progress: show a bar; when left out, if somebody is looking.

    Returns:
        The learner's mixture and the state.

    Raises:
        PplError: the checkpoint is of another run, or cannot be written.
    """
    if num_patches < batch_size or batch_size < 1:
        raise PplError(f"num_patches={num_patches} must be at least batch_size={batch_size} ≥ 1")
    state = _take_up(checkpoint, settings or {})
    if state is None:
        state = start_of(learner, learner.coordinates(stream.batch(0, batch_size)))
    saved = time.monotonic()
    total = num_patches // batch_size
    shown = watched() if progress is None else progress
    with tqdm(total=total, initial=state.step, unit=" steps", disable=not shown) as bar:

        def report(now: StepwiseState) -> None:
            nonlocal saved
            recent = now.history[-20:]
            bar.set_postfix_str(f"{sum(recent) / len(recent):.2f} nats a patch", refresh=False)
            bar.update()
            if checkpoint is not None and time.monotonic() - saved > checkpoint_every:
                _save(checkpoint, now, settings or {})
                saved = time.monotonic()

        found = fit_stepwise(
            state,
            lambda t: learner.coordinates(stream.batch(t, batch_size)),
            total,
            floor=torch.tensor([learner.floor], dtype=torch.float64),
            callback=report,
        )
    if checkpoint is not None:
        _save(checkpoint, state, settings or {})
    return learner.mixture(found.weights, found.covariances), state


def start_of(learner: Learner, data: Tensor) -> StepwiseState:
    """A start from the neighbours of random patches, all components of the same weight.

    Args:
        learner: of the mixture.
        data: coordinates of patches, (N, D).

    Raises:
        PplError: fewer patches than components.
    """
    num = learner.num_components
    check_enough(len(data), len(data), num)
    members = neighbourhoods(data, num, learner.seed)
    found, _ = moments_of(data.double(), members, "full", zero_mean=True)
    return StepwiseState(found)


def _take_up(checkpoint: Path | None, settings: dict[str, Any]) -> StepwiseState | None:
    if checkpoint is None or not checkpoint.is_file():
        return None
    loaded = load_checkpoint(checkpoint)
    if loaded.get("settings") != settings:
        raise PplError(
            f"{checkpoint} is of a run with {loaded.get('settings')}, but this one has {settings}; "
            "go on with the same settings, or remove the file"
        )
    return StepwiseState.from_dict(loaded["em"])


def _save(checkpoint: Path, state: StepwiseState, settings: dict[str, Any]) -> None:
    save_checkpoint(checkpoint, {"em": state.to_dict(), "settings": settings})
