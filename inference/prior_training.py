"""Learning a patch prior from image files: stepwise EM with progress, and exact resume."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from inference.checkpoint import load_checkpoint, save_checkpoint
from inference.data.patches import PatchStream
from inference.progress import watched
from inference.stepwise_em import EMState, Learner, stepwise_em
from ppl_models.errors import PplError


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
) -> tuple[Any, EMState]:
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
        The learner's parameters and the state.

    Raises:
        PplError: the checkpoint is of another run, or cannot be written.
    """
    if num_patches < batch_size or batch_size < 1:
        raise PplError(f"num_patches={num_patches} must be at least batch_size={batch_size} ≥ 1")
    state = _take_up(checkpoint, settings or {})
    saved = time.monotonic()
    total = num_patches // batch_size
    shown = watched() if progress is None else progress
    done = state.step if state else 0
    with tqdm(total=total, initial=done, unit=" steps", disable=not shown) as bar:

        def report(now: EMState, _: Any) -> None:
            nonlocal saved
            recent = now.history[-20:]
            bar.set_postfix_str(f"{sum(recent) / len(recent):.2f} nats a patch", refresh=False)
            bar.update()
            if checkpoint is not None and time.monotonic() - saved > checkpoint_every:
                _save(checkpoint, now, settings or {})
                saved = time.monotonic()

        found, state = stepwise_em(
            learner, lambda t: stream.batch(t, batch_size), total, state=state, callback=report
        )
    if checkpoint is not None:
        _save(checkpoint, state, settings or {})
    return found, state


def _take_up(checkpoint: Path | None, settings: dict[str, Any]) -> EMState | None:
    if checkpoint is None or not checkpoint.is_file():
        return None
    loaded = load_checkpoint(checkpoint)
    if loaded.get("settings") != settings:
        raise PplError(
            f"{checkpoint} is of a run with {loaded.get('settings')}, but this one has {settings}; "
            "go on with the same settings, or remove the file"
        )
    return EMState(**loaded["em"])


def _save(checkpoint: Path, state: EMState, settings: dict[str, Any]) -> None:
    save_checkpoint(checkpoint, {"em": dict(vars(state)), "settings": settings})
