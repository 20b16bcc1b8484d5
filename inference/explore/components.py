"""Kinds of exploration of the code as a whole: what its components tell, and where codes lie.

Shapes: D components, M factors.
"""

from __future__ import annotations

import numpy as np

from inference import latents
from inference.disentanglement import disentanglement
from inference.explore.choice import device_of, pick, pictures
from inference.explore.result import Explorable, Exploration
from inference.explore.walks import MOST_ROWS, deviations
from inference.latents.codes import conditions
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
    run: Explorable, *, split: str = "test", site: str | None = None, seed: int = 0
) -> Exploration:
    """Where codes of data lie (one draw a datum), and where the prior would have them."""
    part = run.data.split(split)
    codes, fields = latents.encode_all(run.program, part, site=site, draw="sample")
    given = {k: v.to(device_of(run)) for k, v in conditions(run.program, fields).items()}
    prior = latents.prior_codes(run.program, len(codes), site=site, given=given, seed=seed)
    z, drawn = (value.flatten(1).double().cpu().numpy() for value in (codes, prior))
    labels = fields["y"].numpy() if "y" in fields else None
    figure = posterior_against_prior({run.program.name: z}, drawn, labels)
    apart = np.abs(z.mean(0) - drawn.mean(0)) / drawn.std(0)
    numbers = {
        "data": len(z),
        "mean_away": float(apart.max()),
        "widest": float((z.std(0) / drawn.std(0)).max()),
        "narrowest": float((z.std(0) / drawn.std(0)).min()),
    }
    return Exploration(figure, numbers=numbers)
