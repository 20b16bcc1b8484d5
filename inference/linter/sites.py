"""Rules about which sites there are, in model and guide."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

from inference.linter.finding import Lint, Rule
from inference.linter.sighting import Sighting
from inference.priming import check_guide_losses
from ppl_models.errors import ProgramError

FORGOTTEN = Rule(
    "guide-forgets",
    "error",
    "a latent of the model that the guide does not sample, and that is not summed out",
    "its draw would come from the prior, whatever the data say, and its weight cannot be taken.",
    "Sample it in the guide; a discrete one with few states can be marked "
    "infer={'enumerate': 'parallel'} in the model instead.",
)
UNOBSERVED = Rule(
    "field-not-observed",
    "error",
    "a latent that bears the name of a field of the data",
    "the data of this field would teach the program nothing.",
    "Hand the field over: pyro.sample(..., obs=...).",
)
GUIDE_ONLY = Rule(
    "guide-only",
    "error",
    "a guide site that the model lacks",
    "its log density would enter the ELBO without a counterpart.",
    "Name it as the latent it stands for; an auxiliary variable says so: "
    "infer={'is_auxiliary': True}.",
)
GUIDE_OBSERVES = Rule(
    "guide-observes",
    "error",
    "obs= in the guide",
    "a guide only samples: an observed density in it would be subtracted from the ELBO.",
    "Observe in the model, and let the guide read the data as its argument.",
)
OBSERVED_IN_MODEL = Rule(
    "sampled-and-observed",
    "error",
    "a site that the guide samples and the model observes",
    "a value cannot be both given and inferred.",
    "Take the site out of the guide; of partly observed data, give observed and hidden parts "
    "names of their own.",
)
MISNAMED = Rule(
    "site-named-otherwise",
    "error",
    "a site that observes a field of another name",
    "samples and reconstructions are found by the name of the field.",
    "Name the site as the field.",
)
NOTHING_OBSERVED = Rule(
    "observes-nothing",
    "error",
    "a model without obs=",
    "without an observation the posterior is the prior.",
    "Give a sample site obs=x, where x is a field of the data.",
)
LOSS_ELSEWHERE = Rule(
    "auxiliary-loss",
    "error",
    "an auxiliary loss that is said to be elsewhere than it is",
    "an ELBO subtracts the guide's log densities: the loss would be maximized.",
    "auxiliary_loss(..., in_guide=True) in the guide, and without it in the model.",
)
ORDER = Rule(
    "changing-sites",
    "warning",
    "sites or shapes that differ from run to run",
    "draws of different runs cannot be put into one array: diagnostics, K-sample bounds and "
    "compiled steps refuse such programs.",
    "Sample the same sites in every run, and mask what does not count (poutine.mask).",
)
RULES = (
    *(FORGOTTEN, UNOBSERVED, GUIDE_ONLY, GUIDE_OBSERVES, OBSERVED_IN_MODEL, MISNAMED),
    *(NOTHING_OBSERVED, LOSS_ELSEWHERE, ORDER),
)


def latents(seen: Sighting) -> Iterator[Lint]:
    """Latents of the model that the guide leaves out."""
    if seen.guide.error is not None:
        return
    guide = seen.guide.sites
    for name, site in seen.latents.items():
        if name in guide:
            continue
        if name in seen.batch:
            yield UNOBSERVED.broken(
                f"the model samples {name!r} and does not observe it, though the data have a field "
                "of that name",
                f"pyro.sample({name!r}, ..., obs={name})",
                **seen.place("model", name),
            )
        elif not site["infer"].get("enumerate"):
            yield FORGOTTEN.broken(
                f"the guide does not sample this latent (it has {sorted(guide) or 'no sites'})"
                + _near(name, guide),
                **seen.place("model", name),
            )


def guide_sites(seen: Sighting) -> Iterator[Lint]:
    """Sites of the guide that do not fit the model's."""
    model, complete = seen.model.sites, seen.model.error is None
    for name, site in seen.guide.sites.items():
        at = seen.place("guide", name)
        if site["is_observed"]:
            yield GUIDE_OBSERVES.broken(
                f"guide site {name!r} is observed; guides only sample", **at
            )
        elif name in model and model[name]["is_observed"]:
            yield OBSERVED_IN_MODEL.broken(
                f"site {name!r} is sampled in the guide but observed in the model", **at
            )
        elif name not in model and not site["infer"].get("is_auxiliary") and complete:
            yield GUIDE_ONLY.broken(
                f"guide site {name!r} is not in the model (which has {sorted(model)})"
                + _near(name, model),
                **at,
            )


def _near(name: str, others: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(others), n=1, cutoff=0.6)
    return f". Is {near[0]!r} meant?" if near else ""


def observations(seen: Sighting) -> Iterator[Lint]:
    """What the model observes, and under which name."""
    for name, site in seen.observed.items():
        field = next((f for f, v in seen.batch.items() if v is site["value"]), name)
        halves = {f"{field}_observed", f"{field}_unobserved"} <= seen.model.sites.keys()
        if field != name and not (halves and name == f"{field}_observed"):  # obs_mask makes both
            yield MISNAMED.broken(
                f"site {name!r} observes the field {field!r}; name it {field!r}, for samples and "
                "reconstructions are found by name",
                f"pyro.sample({field!r}, ..., obs={field})",
                **seen.place("model", name),
            )
    if not seen.observed and seen.model.error is None:
        yield NOTHING_OBSERVED.broken(
            "the model observes nothing: give a sample site obs=x", role="model"
        )


def losses(seen: Sighting) -> Iterator[Lint]:
    """Auxiliary losses that say they are elsewhere."""
    try:
        check_guide_losses(seen.traces)
    except ProgramError as error:
        yield LOSS_ELSEWHERE.broken(str(error))


def changes(seen: Sighting) -> Iterator[Lint]:
    """Sites that are not the same in the model's two runs."""
    if not seen.runs or seen.prior.error is not None or seen.guide_again.error is not None:
        return
    for role, ours, theirs in (
        ("model", seen.joint, seen.prior),
        ("guide", seen.guide, seen.guide_again),
    ):
        first, second = ours.sites, theirs.sites
        if first.keys() != second.keys():
            names = ", ".join(map(repr, sorted(first.keys() ^ second.keys())))
            yield ORDER.broken(f"two runs of the {role} differ in their sites: {names}", role=role)
        for name in first.keys() & second.keys():
            shapes = [tuple(run[name]["value"].shape) for run in (first, second)]
            if shapes[0] != shapes[1] and (role == "guide" or name not in seen.pairs):
                yield ORDER.broken(
                    f"two runs give values of shape {shapes[0]} and {shapes[1]}",
                    **seen.place(role, name),
                )


CHECKS = (latents, guide_sites, observations, losses, changes)
