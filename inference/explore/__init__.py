"""``ppl explore``: pictures of a run's latent space, by kind."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

from inference.drawing import Calm
from inference.explore.codebook import codebook
from inference.explore.components import disentangling, posterior
from inference.explore.edits import analogy, attribute, classes, nearest, resynthesis
from inference.explore.levels import resample
from inference.explore.result import Explorable, Exploration
from inference.explore.temperature import temperature
from inference.explore.walks import interpolation, manifold, traversal
from ppl_models.errors import PplError, UnknownNameError

KINDS: dict[str, Callable[..., Exploration]] = {
    "manifold": manifold,
    "interpolation": interpolation,
    "traversal": traversal,
    "attribute": attribute,
    "analogy": analogy,
    "resynthesis": resynthesis,
    "nearest": nearest,
    "classes": classes,
    "disentanglement": disentangling,
    "posterior": posterior,
    "codebook": codebook,
    "resample": resample,
    "temperature": temperature,
}
"""What ``--kind`` names."""
ALIASES = {"interpolate": "interpolation"}
STROKE_TEMPERATURE = 0.1
"""At which drawings are made of codes, so that pictures show these and not the noise of the pen."""


def explore(run: Explorable, kind: str, **options: Any) -> Exploration:
    """Explore the latent space of a trained program.

    Args:
        run: an open run (:func:`inference.runs.load_run`), or the result of a fit.
        kind: one of ``KINDS``.
        **options: of that kind; see its signature.

    Raises:
        UnknownNameError: no such kind.
        PplError: an option that the kind has not, or what it cannot do with this program and
            these data.
    """
    kind = ALIASES.get(kind, kind)
    if kind not in KINDS:
        raise UnknownNameError("kind of exploration", kind, KINDS)
    taken = [name for name in inspect.signature(KINDS[kind]).parameters if name != "run"]
    foreign = [name for name in options if name not in taken]
    if foreign:
        raise PplError(
            f"kind {kind!r} takes no {', '.join(f'--{name}' for name in foreign)}; its options "
            f"are {', '.join(f'--{name}' for name in taken)}"
        )
    calm = run.data.info.offset_scale is not None and kind != "temperature"
    with Calm(STROKE_TEMPERATURE) if calm else nullcontext():
        return KINDS[kind](run, **options)


__all__ = ["KINDS", "Explorable", "Exploration", "explore"]
