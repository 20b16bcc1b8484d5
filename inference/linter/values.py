"""Rules about values: data, supports, the numbers that distributions are given.

Shapes: B data, C H W image.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from inference.data.checks import check_finite
from inference.elbo.traces import Site, log_prob_of
from inference.linter.finding import Lint, Rule
from inference.linter.origins import Given, free_origin, given
from inference.linter.reach import reach
from inference.linter.sighting import Sighting
from inference.priming import pixel_hint
from inference.sites import family, is_point, known_support
from ppl_models.errors import PplError

BAD_DATA = Rule(
    "data-not-finite",
    "error",
    "NaN or infinity in the data",
    "one such value makes the whole loss NaN.",
    "Remove these data, or mask them in the likelihood.",
)
RAW_BYTES = Rule(
    "pixels-not-scaled",
    "warning",
    "pixels from 0 to 255 at a continuous likelihood",
    "networks and scales start for numbers near one; training is slow, or fails.",
    "Divide by 255.",
)
GREY = Rule(
    "grey-pixels",
    "error",
    "values between 0 and 1 observed by a Bernoulli",
    "the formula gives a number, which is no probability: ELBOs of such a model compare with "
    "nothing, and its samples are not like the data.",
    "Binarize the data (--binarize dynamic, static or threshold), or use a likelihood that fits "
    "grey values (normal, continuous_bernoulli, logistic_mixture).",
)
BINARY = Rule(
    "binary-pixels",
    "warning",
    "values 0 and 1 alone, observed by a continuous Bernoulli",
    "its density at the ends is no probability: numbers do not compare with those of a Bernoulli.",
    "Use a Bernoulli.",
)
OUTSIDE = Rule(
    "data-outside-support",
    "error",
    "data that the model's distribution holds impossible",
    "their log density is minus infinity, or a number without a meaning.",
    "Transform the data, or use a distribution over their range.",
)
SUPPORTS = Rule(
    "support-differs",
    "error",
    "a guide that can draw what the model's prior holds impossible",
    "sooner or later a draw has log density minus infinity (or NaN), if not among the first.",
    "Use a guide over the same support: LogNormal or Gamma for positive latents, Beta for "
    "the unit interval, or TransformedDistribution(Normal(...), biject_to(support)).",
)
NARROWER = Rule(
    "support-narrower",
    "warning",
    "a guide that cannot reach all that the prior holds possible",
    "what it leaves out is left out of the posterior, and of K-sample bounds.",
    "Use a guide over the whole support of the prior.",
)
PARAMETER = Rule(
    "parameter-out-of-range",
    "error",
    "a distribution's parameter out of its range, such as a negative scale",
    "log densities and draws are NaN, or silently wrong where validate_args is False.",
    "Map it: F.softplus(...) + 1e-4 or .exp() for scales, logits= instead of probs=.",
)
RAW = Rule(
    "raw-parameter",
    "warning",
    "a positive or bounded parameter that comes straight from a linear layer, a ReLU, a tanh or an "
    "unconstrained parameter",
    "nothing keeps it in its range: a step of training, or another datum, puts it out of it.",
    "Map it: F.softplus(...) + 1e-4 or .exp() for scales, logits= instead of probs=; "
    "pyro.param(..., constraint=constraints.positive).",
)
NOT_FINITE = Rule(
    "density-not-finite",
    "error",
    "a log density that is NaN or infinite at a possible value",
    "the loss is not finite from the first step on.",
    "Look for log(0), division by a scale near 0, or overflow of exp.",
)
RULES = (
    *(BAD_DATA, RAW_BYTES, GREY, BINARY, OUTSIDE),
    *(SUPPORTS, NARROWER, PARAMETER, RAW, NOT_FINITE),
)


def data(seen: Sighting) -> Iterator[Lint]:
    """NaN and infinity in the batch."""
    for name, value in seen.batch.items():
        try:
            check_finite(name, value, "batch")
        except PplError as error:
            yield BAD_DATA.broken(str(error))


def observed(seen: Sighting) -> Iterator[Lint]:
    """Data against the support of what observes them."""
    for name, site in seen.observed.items():
        value, kind, at = site["value"], family(site["fn"]), seen.place("model", name)
        if not _finite(value):
            continue  # said by `data`
        if not _possible(site):
            low, high = (float(v) for v in value.aminmax())
            message = (
                f"values from {low:g} to {high:g} are outside the support of the model's {kind}"
            )
            if low >= 0 and high <= 1 and "Bernoulli" in kind and "Continuous" not in kind:
                grey = float(((value > 0) & (value < 1)).float().mean())
                yield GREY.broken(f"{100 * grey:.0f} % of the values are between 0 and 1", **at)
            else:
                hint = "Scale the data to [0, 1]." if "Continuous" in kind else pixel_hint(kind)
                yield OUTSIDE.broken(message, hint.strip() or None, **at)
        elif "ContinuousBernoulli" in kind and bool(((value == 0) | (value == 1)).all()):
            yield BINARY.broken("all values of the batch are 0 or 1", **at)
        elif _bytes(value) and not _is_discrete(site):
            yield RAW_BYTES.broken(f"values are whole numbers up to {float(value.max()):g}", **at)


def _finite(value: Tensor) -> bool:
    return not value.is_floating_point() or bool(torch.isfinite(value).all())


def _is_discrete(site: Site) -> bool:
    support = known_support(site["fn"])
    return support is not None and bool(support.is_discrete)


def _bytes(value: Tensor) -> bool:
    """Whether values look like the bytes of images (B, C, H, W)."""
    if value.dim() != 4 or not value.is_floating_point() or value.shape[1] not in (1, 3, 4):
        return False
    low, high = (float(v) for v in value.aminmax())
    return low >= 0 and 100 < high <= 255 and bool((value % 1 == 0).all())


def _possible(site: Site) -> bool:
    """Whether a site's value is in its distribution's support, where it is not masked."""
    support = known_support(site["fn"])
    if support is None:
        return True
    try:
        ok = support.check(site["value"])
        mask = site["mask"]
        if isinstance(mask, Tensor) or mask is False:
            ok = ok | ~torch.as_tensor(mask, device=ok.device)
        return bool(ok.all())
    except (RuntimeError, NotImplementedError):  # of another shape: told by another rule
        return True


def supports(seen: Sighting) -> Iterator[Lint]:
    """What the guide can draw against what the prior holds possible."""
    for name, (guide, model) in seen.pairs.items():
        at = seen.place("guide", name)
        names = f"the guide's {family(guide['fn'])}", f"the model's {family(model['fn'])}"
        possible = _possible(model | {"value": guide["value"]})
        ours, theirs = (reach(s["fn"]) for s in (guide, model))
        if ours is None or theirs is None or is_point(guide["fn"]):
            if not possible:
                yield SUPPORTS.broken(
                    f"{names[0]} draws values outside the support of {names[1]} "
                    f"({known_support(model['fn'])})",
                    **at,
                )
            continue
        message = f"{names[0]} is over {ours}, {names[1]} over {theirs}"
        if ours.discrete != theirs.discrete:
            straight_through = theirs.discrete and possible  # relaxed draws, rounded
            if not straight_through:
                yield SUPPORTS.broken(f"{message}: a mass against a density", **at)
        elif not ours.within(theirs):
            yield SUPPORTS.broken(message, **at)
        elif not theirs.within(ours):
            yield NARROWER.broken(message, **at)


def parameters(seen: Sighting) -> Iterator[Lint]:
    """The numbers that distributions are given, and where they come from."""
    for role, run in seen.roles.items():
        for name, site in run.sites.items():
            if site["infer"].get("is_auxiliary_loss"):
                continue
            for each in given(site["fn"]):
                yield from _parameter(each, seen.place(role, name))


def _parameter(each: Given, at: dict[str, Any]) -> Iterator[Lint]:
    what = f"{each.name} of {each.owner} (possible: {each.range})"
    if not _finite(each.value):
        yield PARAMETER.broken(f"{what} is not finite", **at)
    elif each.out_of_range():
        low, high = (float(v) for v in each.value.detach().aminmax())
        yield PARAMETER.broken(f"{what} is from {low:g} to {high:g}", **at)
    elif each.bounded and (origin := free_origin(each.value)):
        yield RAW.broken(f"{what} comes straight from {origin}", **at)


def densities(seen: Sighting) -> Iterator[Lint]:
    """Log densities that are not finite, where nothing else says why."""
    for role, run in seen.roles.items():
        for name, site in run.sites.items():
            if site["infer"].get("is_auxiliary_loss") or not _possible(site):
                continue
            if not _finite(site["value"]) or any(not g.sound() for g in given(site["fn"])):
                continue
            try:
                found = log_prob_of(site)
            except Exception:  # of shapes that do not fit, or a flow without an inverse
                continue
            if not bool(torch.isfinite(found).all()):
                yield NOT_FINITE.broken(
                    f"the log density of {family(site['fn'])} is {float(found.detach().sum())}",
                    **seen.place(role, name),
                )


CHECKS = (data, observed, supports, parameters, densities)
