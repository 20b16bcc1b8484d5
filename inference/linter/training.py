"""Rules about what is trained, and by which estimator."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pyro.infer import (
    ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from pyro.nn import PyroModule, PyroSample
from torch.nn.modules.batchnorm import _BatchNorm

from inference.elbo import AnalyticKL, Estimator, ScoreFunction
from inference.elbo.analytic_kl import closed_form_kl, latents_before
from inference.elbo.checks import ELBO_FOR_DISCRETE
from inference.elbo.traces import sample_sites, scaled_log_prob
from inference.linter.finding import Lint, Rule
from inference.linter.sighting import Sighting
from inference.parameters import check_ownership
from inference.sites import family, is_point
from ppl_models.errors import PplError, ProgramError

FOREIGN = Rule(
    "foreign-parameter",
    "error",
    "a network that takes part but belongs to no module of the program",
    "it would silently not be trained.",
    "Make the network an attribute of the program, hand it over as Program(model, guide, "
    "decoder=decoder), or register it with pyro.module('decoder', decoder).",
)
NO_PYRO_METHOD = Rule(
    "pyro-method-missing",
    "warning",
    "a `PyroModule` with `PyroSample` attributes whose model or guide is no `pyro_method`",
    "every look at such an attribute is a draw of its own, or a site of a doubled name.",
    "Decorate model and guide with @pyro_method.",
)
BATCH_NORM = Rule(
    "batch-norm",
    "warning",
    "batch normalization",
    "in training a datum's numbers depend on the rest of its batch: its ELBO is of no single "
    "datum, and differs from that in evaluation.",
    "Use LayerNorm or GroupNorm; or mind it when you compare training and validation.",
)
NO_RSAMPLE = Rule(
    "no-rsample",
    "warning",
    "a guide site without reparameterized draws, for the default estimator",
    "the pathwise estimator has no gradient for it and refuses it; score functions have one of "
    "high variance.",
    f"Choose an estimator: {ELBO_FOR_DISCRETE}; docs/estimators.md tells them apart.",
)
HIGH_VARIANCE = Rule(
    "plain-score-function",
    "warning",
    "a plain score function estimator on a discrete latent",
    "its gradient has a high variance; training is slow, or stands still.",
    "Use 'leave_one_out' (any latents, two particles or more) or 'enumerate' (few states).",
)
REFUSED = Rule(
    "estimator-refuses",
    "error",
    "an estimator that cannot serve the program",
    "its gradient would be wrong, so it refuses at the first step.",
    "Choose another estimator: docs/estimators.md.",
)
NOT_MEAN_FIELD = Rule(
    "guide-not-mean-field",
    "error",
    "a guide that draws a latent before what the model draws before it, under Pyro's "
    "`TraceMeanField_ELBO`",
    "the prior of such a site depends on the site's own value, so that its KL in closed form is "
    "not the KL.",
    "Sample in the guide in the order of the model, or use the estimator 'analytic_kl', which "
    "takes such sites from their draws, or 'pathwise'.",
)
BY_DRAWS = Rule(
    "kl-from-draws",
    "warning",
    "a latent whose KL 'analytic_kl' or `TraceMeanField_ELBO` can only take from its draw",
    "it is right, but no better than 'pathwise' at this site.",
    "A pair with a formula (pyro.distributions.kl_divergence, or register_kl) has one; else use "
    "'pathwise'.",
)
RULES = (
    *(FOREIGN, NO_PYRO_METHOD, BATCH_NORM, NO_RSAMPLE, HIGH_VARIANCE, REFUSED),
    *(NOT_MEAN_FIELD, BY_DRAWS),
)


def ownership(seen: Sighting) -> Iterator[Lint]:
    """Parameters that take part and are not the program's."""
    if not seen.runs:
        return
    try:
        terms = [scaled_log_prob(s).sum() for t in seen.traces for _, s in sample_sites(t)]
    except Exception:  # densities that cannot be taken: told by another rule
        return
    try:
        check_ownership(sum(terms[1:], terms[0]), seen.program)
    except ProgramError as error:
        yield FOREIGN.broken(str(error))


def methods(seen: Sighting) -> Iterator[Lint]:
    """Random attributes that are read without their context."""
    owner = seen.program.owner
    if not isinstance(owner, PyroModule):
        return
    random = bool(owner.__dict__.get("_pyro_samples")) or any(
        isinstance(a, PyroSample) for cls in type(owner).__mro__ for a in vars(cls).values()
    )
    for role in ("model", "guide"):
        fn = getattr(seen.program, role)
        # A decorator, as pyro_method is one, leaves the method that it wraps on it.
        if random and hasattr(fn, "__func__") and not hasattr(fn, "__wrapped__"):
            yield NO_PYRO_METHOD.broken(
                f"{type(owner).__name__}.{role} reads attributes that are PyroSample", role=role
            )


def normalization(seen: Sighting) -> Iterator[Lint]:
    """Layers that couple the data of a batch."""
    names = [n for n, m in seen.program.named_modules() if isinstance(m, _BatchNorm)]
    if names:
        yield BATCH_NORM.broken(f"{len(names)} layer(s), such as {names[0]}")


def estimation(seen: Sighting) -> Iterator[Lint]:
    """What the estimator makes of the guide's sites."""
    if not seen.runs or (seen.sums_out and seen.estimator is None):
        return
    estimator = seen.estimator
    stuck = {n: s for n, s in seen.guide.sites.items() if not s["fn"].has_rsample}
    if estimator is None:
        for name, site in stuck.items():
            yield NO_RSAMPLE.broken(
                f"{family(site['fn'])} has no rsample", **seen.place("guide", name)
            )
        return
    if isinstance(estimator, Estimator):
        try:
            estimator.check(seen.traces)
        except PplError as error:
            yield REFUSED.broken(str(error))
        if type(estimator) is ScoreFunction:
            yield from (_plain(estimator.name, seen.place("guide", name)) for name in stuck)
    else:
        yield from _stock(seen, estimator, list(stuck))
    if isinstance(estimator, AnalyticKL | TraceMeanField_ELBO):
        yield from _analytic(seen, isinstance(estimator, AnalyticKL))


def _stock(seen: Sighting, estimator: ELBO, stuck: list[str]) -> Iterator[Lint]:
    """What one of Pyro's own estimators makes of sites without reparameterized draws."""
    kind = type(estimator).__name__
    for name in stuck:
        at = seen.place("guide", name)
        if isinstance(estimator, TraceMeanField_ELBO | RenyiELBO):
            yield REFUSED.broken(
                f"{kind} gives no gradient to the guide of a site without rsample, silently "
                "where Pyro's validation is off",
                f"Use {ELBO_FOR_DISCRETE}.",
                **at,
            )
        elif type(estimator) is Trace_ELBO:
            yield _plain(kind, at)
    if seen.sums_out and not isinstance(estimator, TraceEnum_ELBO | TraceGraph_ELBO):
        yield REFUSED.broken(f"{kind} cannot sum out the latents that the guide leaves out")


def _plain(estimator: str, at: dict[str, Any]) -> Lint:
    return HIGH_VARIANCE.broken(f"{estimator} takes its score function without a baseline", **at)


def _analytic(seen: Sighting, falls_back: bool) -> Iterator[Lint]:
    """Sites whose KL in closed form is none, or not the KL."""
    before: set[str] = set()
    drawn = latents_before(seen.traces)
    for name, (guide, model) in seen.pairs.items():
        at = seen.place("guide", name)
        late = sorted(before - drawn[name])
        before.add(name)
        if late and not falls_back:
            yield NOT_MEAN_FIELD.broken(
                f"the model draws {', '.join(map(repr, late))} before {name!r}, the guide after it",
                **at,
            )
        elif late:
            yield BY_DRAWS.broken(
                f"the model draws {', '.join(map(repr, late))} before {name!r}, the guide after "
                "it: its KL has no closed form",
                "Sample in the guide in the order of the model.",
                **at,
            )
        elif not is_point(guide["fn"]) and closed_form_kl(guide, model) is None:
            yield BY_DRAWS.broken(
                f"no formula for KL({family(guide['fn'])} to {family(model['fn'])})", **at
            )


CHECKS = (ownership, methods, normalization, estimation)
