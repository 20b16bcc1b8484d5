"""Kinds of exploration that change images or compare them: attributes, analogies, neighbours.

Shapes: B images, S strengths.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from inference import latents
from inference.explore.choice import (
    all_labels,
    by_class,
    foreign_images,
    pick,
    pictures,
    property_of,
    some_places,
    under_label,
    with_and_without,
)
from inference.explore.result import Explorable, Exploration
from inference.plotting import labelled_grid, labelled_grids
from inference.sampling import sample, to_complete
from inference.weights import log_weights
from ppl_models.errors import PplError
from ppl_models.program import Batch

PARTICLES = 100
"""Importance samples of the bound that is written above an image."""
MOST_CODES = 50_000
"""Training data that an attribute's vector is made of."""


def attribute(
    run: Explorable,
    *,
    by: str = "y",
    value: float | None = None,
    against: float | None = None,
    balance: str | None = None,
    split: str = "test",
    images: list[int] | None = None,
    num: int = 6,
    steps: int = 9,
    site: str | None = None,
) -> Exploration:
    """A property of the data added to images, by the vector between their mean codes."""
    info = run.data.info
    codes, fields = latents.encode_all(run.program, run.data.train, site=site, num=MOST_CODES)
    values = property_of(fields, info, by)
    categorical = by == "y" or by in info.categorical
    has, used = with_and_without(values, by, value, against, categorical)
    groups = None if balance is None else property_of(fields, info, balance)[used]
    vector = latents.attribute_vector(codes[used], has[used], balance=groups)
    part = run.data.split(split)
    places = _without(run, split, by, value, against, num) if images is None else images
    batch = pick(part, places)
    strengths = np.linspace(-0.5, 1.5, steps)
    edited = latents.add_attribute(run.program, batch, vector, strengths.tolist(), site=site)
    shown = torch.cat([batch["x"].unsqueeze(1), edited], 1)
    what = by if value is None else f"{by} = {value:g}"
    what += f" instead of {against:g}" if against is not None else ""
    figure = labelled_grid(
        pictures(shown),
        [str(place) for place in places],
        ["image", *(f"{s:+.2f}" for s in strengths)],
        f"{run.program.name}: {what}, added to the codes of {split} images",
        column_title="multiples of the attribute's vector",
    )
    counts = {"with": int(has[used].sum()), "without": int((~has[used]).sum())}
    numbers = counts | {"vector_norm": float(vector.norm())}
    return Exploration(figure, pictures(edited.transpose(0, 1)), numbers)


def _without(
    run: Explorable, split: str, by: str, value: float | None, against: float | None, num: int
) -> list[int]:
    """Places of data that are compared and have not the property."""
    part = run.data.split(split)
    fields: dict[str, list[Tensor]] = {}
    for batch in part.batches(2000):
        for name, column in batch.items():
            if name != "x":
                fields.setdefault(name, []).append(column.cpu())
    values = property_of({k: torch.cat(v) for k, v in fields.items()}, run.data.info, by)
    has, used = with_and_without(values, by, value, against, False)
    return (used & ~has).nonzero().flatten()[:num].tolist()


def analogy(
    run: Explorable,
    *,
    split: str = "test",
    images: list[int] | None = None,
    num: int = 6,
    site: str | None = None,
) -> Exploration:
    """What is to c as b is to a."""
    part = run.data.split(split)
    places = _triples(run, split, num) if images is None else images
    if len(places) < 3 or len(places) % 3:
        raise PplError(f"analogies need images in threes (a, b, c), got {len(places)}")
    a, b, c = (pick(part, places[i::3]) for i in range(3))
    found = latents.analogy(run.program, a, b, c, site=site)
    shown = torch.stack([a["x"], b["x"], c["x"], found], 1)
    rows = [", ".join(map(str, places[i : i + 3])) for i in range(0, len(places), 3)]
    title = f"{run.program.name}: a is to b\nas c is to …"
    figure = labelled_grid(pictures(shown), rows, ["a", "b", "c", "c + b − a"], title)
    return Exploration(figure, numbers={"analogies": len(rows)})


def _triples(run: Explorable, split: str, num: int) -> list[int]:
    """Two images of one class and, between them, one of the next; or data as they come."""
    part = run.data.split(split)
    if "y" not in part.fields:
        return list(range(3 * min(num, len(part) // 3)))
    turns = by_class(part, 2)
    first, second = turns[0], turns.get(1, turns[0])
    rows = min(num, len(second), len(first))
    return [p for i in range(rows) for p in (first[i], first[(i + 1) % len(first)], second[i])]


def resynthesis(
    run: Explorable,
    *,
    files: str | None = None,
    split: str = "test",
    num: int = 10,
    images: list[int] | None = None,
    label: int | None = None,
) -> Exploration:
    """Images from outside the training set, from their codes; the nearest training image."""
    if files is None and label is not None:
        raise PplError("--label is of images from outside, --files; the data's have their own")
    if files is None:
        part = run.data.split(split)
        batch: Batch = pick(part, some_places(part, num) if images is None else images)
    else:
        x = foreign_images(files, run, num)
        given = under_label(run, label) or {}
        batch = {"x": x, **{k: v.expand(len(x)) for k, v in given.items()}}
    again = latents.resynthesize(run.program, batch)
    nearest = latents.nearest_training(batch["x"], run.data.train)
    bounds = _bounds(run, batch)
    shown = torch.stack([batch["x"], again, nearest.images[:, 0]])
    figure = labelled_grid(
        pictures(shown),
        ["image", "resynthesis", "nearest\ntraining"],
        [f"{bound:.0f}" for bound in bounds.tolist()],
        f"{run.program.name}: {'images from outside' if files else f'{split} images'}, and above "
        f"each {_what_bound(run)}, nats",
    )
    error = (again - batch["x"]).flatten(1).square().mean(-1).sqrt()
    numbers = {"images": len(error), "root_mean_square_error": float(error.mean())}
    return Exploration(figure, numbers=numbers | {"bound": float(bounds.mean())})


def _what_bound(run: Explorable) -> str:
    if run.program.deterministic_guide:
        return "log p(x, z) at its code"
    return f"a bound on log p(x) ({PARTICLES} particles)"


def _bounds(run: Explorable, batch: Batch) -> Tensor:
    """Log p(x) from below, of each datum (B,); of a point for a guide, log p(x, z) there."""
    weights = log_weights(run.program, batch, PARTICLES, num_data=len(run.data.train))
    return weights.logsumexp(0) - math.log(PARTICLES)


def nearest(run: Explorable, *, num: int = 10, seed: int = 0) -> Exploration:
    """Samples, and below each the training images nearest to it."""
    given = {"y": all_labels(run, num)} if "y" in run.program.fields else {}
    given |= to_complete(run.program, run.data.test, num, given)
    drawn = sample(run.program, num, given=given, seed=seed)["x"]
    found = latents.nearest_training(drawn, run.data.train, num=3)
    shown = torch.cat([drawn.unsqueeze(0), found.images.transpose(0, 1)])
    rows = ["sample", "nearest", "second", "third"]
    columns = [f"{d:.2f}" for d in found.distances[:, 0].tolist()]
    title = f"{run.program.name}: samples and the training images nearest to them"
    figure = labelled_grid(
        pictures(shown), rows, columns, title, column_title="above: distance to the nearest (RMS)"
    )
    numbers = {"samples": num, "nearest_distance": float(found.distances[:, 0].mean())}
    return Exploration(figure, numbers=numbers)


def classes(run: Explorable, *, num: int = 10, seed: int = 0) -> Exploration:
    """Two grids of a conditional program: labels fixed a row, latents fixed a row."""
    labels = all_labels(run)
    fixed_label = latents.vary_latent(run.program, labels, num, seed=seed)
    fixed_latent = latents.vary_condition(run.program, labels, num, seed=seed)
    names = [str(int(k)) for k in labels]
    figure = labelled_grids(
        [
            (pictures(fixed_label), names, [], "label fixed in a row, another z in every image"),
            (pictures(fixed_latent), [], names, "z fixed in a row, another label in every column"),
        ]
    )
    return Exploration(figure, numbers={"classes": len(names), "latents": num})
