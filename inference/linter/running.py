"""Rules about whether the program runs at all."""

from __future__ import annotations

import re
from collections.abc import Iterator

from inference.linter.finding import Lint, Rule
from inference.linter.sighting import Sighting
from inference.priming import pixel_hint
from ppl_models.errors import PplError, describe

FAILS = Rule(
    "fails",
    "error",
    "a model or guide that raises an error on the batch",
    "nothing can be trained; and of what comes after the error nothing could be looked at.",
    "Run it by hand on a batch of these shapes, and mind the line that is named.",
)
NOT_LOOKED_AT = Rule(
    "not-looked-at",
    "warning",
    "a program that part of the linter could not look at",
    "what that part is about may be wrong without being told.",
    "Mostly a distribution without support or arg_constraints; give it both.",
)
RULES = (FAILS, NOT_LOOKED_AT)

REMEDIES = (
    (
        r"Shape mismatch inside plate|at dim -\d+, \d+ vs \d+",
        "The last batch dimension of the distribution is not the plate's: declare what is of one "
        "datum an event, .to_event(n) with n = its dimensions (3 for C, H, W), or mend the plate's "
        "size or dim.",
    ),
    (
        r"Multiple (sample|param) sites named",
        "Give every site a name of its own, such as f'z_{i}' in a loop.",
    ),
    (
        r"names the field",
        "Give the data such a field, or name the argument as one of the data's; an option is "
        "keyword-only, or has a default.",
    ),
    (r"duplicate plate", "Open a plate of one name once at a time, or give the two other names."),
    (r"collide at|at plates\(", "Give nested plates dims of their own: dim=-1, dim=-2."),
    (r"Expected dim < 0", "Plates count dims from the right: dim=-1 for the innermost."),
    (
        r"mat1 and mat2 shapes|size mismatch|Expected .*input.* channels|normalized_shape",
        "A network gets another shape than it was made for: flatten x (x.flatten(1)), or make the "
        "network for the data's shape.",
    ),
    (
        r"same dtype|expected scalar type|dtype|must match the data type",
        "Make constants like the data: torch.zeros_like(...), x.new_zeros(...).",
    ),
    (r"same device|Expected all tensors", "Make constants where the data are: x.new_zeros(...)."),
    (
        r"satisfy the constraint|invalid values|but found invalid",
        "A parameter is out of its range: F.softplus(...) + 1e-4 for scales, logits= for probs=.",
    ),
)
"""What to do about errors of Pyro and torch that are known by their words."""


def fails(seen: Sighting) -> Iterator[Lint]:
    """What guide and model raise."""
    if seen.guide.error is not None:
        yield _told("guide", seen.guide.error, "")
    if seen.joint.error is None:
        return
    if seen.prior.error is not None:
        yield _told("model", seen.prior.error, "")
    elif not _both(seen):
        yield _told("model", seen.joint.error, ", though it runs with draws of its own")


def _both(seen: Sighting) -> bool:
    """Whether a site is sampled in the guide and observed in the model: told by another rule."""
    guide = seen.guide.sites
    return any(name in guide for name in seen.observed)


def _told(role: str, error: Exception, besides: str) -> Lint:
    given = "" if not besides else " with the guide's draws"
    text = str(error) if isinstance(error, PplError) else describe(error)
    remedy = next((r for words, r in REMEDIES if re.search(words, str(error))), None)
    message = f"the {role} fails{given}{besides}: {text}"
    return FAILS.broken(message, remedy or pixel_hint(text).strip() or None, role=role)


CHECKS = (fails,)
