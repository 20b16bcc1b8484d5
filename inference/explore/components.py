"""Kinds of exploration of the code as a whole: what its components tell, and where codes lie.

Shapes: D components, M factors.
"""

from __future__ import annotations

import numpy as np

from inference import latents
from inference.aggregate import aggregated_posterior
from inference.disentanglement import disentanglement
from inference.explore.choice import pick, pictures
from inference.explore.result import Explorable, Exploration
from inference.explore.walks import MOST_ROWS, deviations
from inference.plotting import posterior_against_prior, traversals_with_information


def disentangling(
    run: Explorable,
    *,
    split: str = "train",
    images: list[int] | None = None,
    steps: int = 9,
    site: str | None = None,
    seed: int = 0,
) -> Exploration:
    """One traversal a component, the factors that it tells, and the scores of the whole code."""
    info, part = run.data.info, run.data.split(split)
    found = disentanglement(
        run.program,
        part,
        factors=info.columns.get("factors", ()),
        categorical=info.categorical,
        site=site,
        seed=seed,
    )
    # By the factor that a component tells most of, those that tell nothing last.
    told, best = found.information.max(1), found.information.argmax(1)
    order = np.lexsort((-told, np.where(told > 0.05, best, len(found.factors))))[:MOST_ROWS]
    batch = pick(part, images or [0])
    _, chosen = latents.site_for(run.program, batch, site)
    walks = latents.traverse(
        run.program, order.tolist(), batch=batch, site=chosen.name, num_steps=steps
    )
    scores = ", ".join(
        f"{name} {value:.2f}"
        for name, value in (
            ("MIG", found.mig),
            ("D", found.disentanglement),
            ("C", found.completeness),
            ("I", found.informativeness),
            ("SAP", found.sap),
        )
    )
    figure = traversals_with_information(
        pictures(walks),
        found.information[order],
        [f"{chosen.name}[{i}]" for i in order],
        deviations(steps),
        found.factors,
        f"{run.program.name} on {info.name}: {scores}",
    )
    return Exploration(figure, pictures(walks.transpose(0, 1)), found.to_dict())


def posterior(
    run: Explorable,
    *,
    split: str = "test",
    num: int = 2000,
    site: str | None = None,
    seed: int = 0,
) -> Exploration:
    """Codes of data (one draw each) against the prior, and how far apart both are."""
    batch = next(iter(run.data.split(split).batches(num)))
    _, chosen = latents.site_for(run.program, batch, site)
    found = aggregated_posterior(run.program, batch, site=chosen.name, seed=seed)
    labels = batch["y"].cpu().numpy() if "y" in batch else None
    codes = {run.program.name: found.draws.cpu().numpy()}
    figure = posterior_against_prior(codes, found.prior_draws.cpu().numpy(), labels)
    names = ("gaussian_kl", "mmd", "mmd_of_chance", "marginal_kl", "mutual_information")
    numbers = {"data": len(found.draws)} | {name: getattr(found, name) for name in names}
    return Exploration(figure, numbers=numbers)
