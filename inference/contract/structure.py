"""Clauses about sites, plates, shapes, supports and gradients."""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine

from inference.contract.subject import Subject, run, sites_of
from inference.densities import data_plate
from inference.elbo import AnalyticKL, Enumerate, Estimator, LeaveOneOut
from inference.elbo.traces import Traces, sample_sites
from inference.linter.plates import plate_mismatches
from inference.parameters import check_gradients, check_ownership, trainable
from inference.priming import pixel_hint, prime
from inference.sites import family, known_support
from inference.summed_out import enumerates
from ppl_models.errors import ProgramError


def _latents(traces: Traces) -> dict[str, Any]:
    return {n: s for n, s in sample_sites(traces.model) if not s["is_observed"]}


def check_sites(subject: Subject) -> str:
    """Latents of the model are in the guide, and the other way round."""
    model, guide = sites_of(subject.traces.model), sites_of(subject.traces.guide)
    for name, site in guide.items():
        if name not in model and not site["infer"].get("is_auxiliary"):
            raise ProgramError(
                f"guide site {name!r} is not in the model (which has {sorted(model)}); name it as "
                "the latent it stands for, or mark it infer={'is_auxiliary': True}"
            )
        if site["is_observed"]:
            raise ProgramError(f"guide site {name!r} is observed; guides only sample")
        if name in model and model[name]["is_observed"]:
            raise ProgramError(f"site {name!r} is sampled in the guide but observed in the model")
    observed = [n for n, s in model.items() if s["is_observed"]]
    for name in observed:
        field = next((f for f, v in subject.batch.items() if v is model[name]["value"]), name)
        if field != name:
            raise ProgramError(
                f"site {name!r} observes the field {field!r}; name it {field!r}, for samples and "
                "reconstructions are found by name"
            )
    if not observed:
        raise ProgramError("the model observes nothing: give a sample site obs=x")
    return f"latent {sorted(_latents(subject.traces))}, observed {sorted(observed)}"


def check_plates(subject: Subject) -> str:
    """Every latent stands in the same plates in model and guide; the data plate is there."""
    data_plate(subject.traces.model, subject.num_data)
    for _, message in plate_mismatches(subject.traces):
        raise ProgramError(message)
    return "model and guide agree"


def check_shapes(subject: Subject) -> str:
    """A latent's value has the shape that the model's distribution says."""
    for name, site in sites_of(subject.traces.model).items():
        expected = site["fn"].shape()
        if tuple(site["value"].shape) != tuple(expected):
            raise ProgramError(
                f"site {name!r} has values of shape {tuple(site['value'].shape)}, but the model's "
                f"distribution has {tuple(expected)} (batch {tuple(site['fn'].batch_shape)}, event "
                f"{tuple(site['fn'].event_shape)})"
            )
    return "values fit their distributions"


def check_supports(subject: Subject) -> str:
    """The guide draws nothing that the model holds impossible."""
    for _ in range(20):
        traces = run(subject.program, subject.batch)
        for name, site in sites_of(traces.model).items():
            support = known_support(site["fn"])
            if support is None or bool(support.check(site["value"]).all()):
                continue
            kind = family(site["fn"])
            if site["is_observed"]:
                raise ProgramError(
                    f"the data at site {name!r} are outside the support of the model's {kind}."
                    + pixel_hint(kind)
                )
            raise ProgramError(
                f"site {name!r} takes values outside the support of the model's {kind} "
                f"({support}); a guide over the same support is needed (LogNormal for positive "
                "latents, say)"
            )
    return "values are in the model's supports"


def _estimator(traces: Traces) -> Estimator:
    if enumerates(traces):
        return Enumerate()
    reparameterized = all(site["fn"].has_rsample for _, site in sample_sites(traces.guide))
    return AnalyticKL() if reparameterized else LeaveOneOut(num_particles=2)


def check_every_gradient(subject: Subject) -> str:
    """A gradient reaches every parameter, and the loss depends on no parameter besides."""
    program = subject.program.train()
    estimator = _estimator(subject.traces)
    options = {"num_data": subject.num_data}
    count = len(trainable(program))
    with program.scope():
        loss = estimator.differentiable_loss(
            program.run_model, program.run_guide, subject.batch, **options
        )
        check_ownership(loss, program)
        loss.backward()
    check_gradients(program)
    for name, parameter in program.named_parameters():
        if parameter.grad is not None and not bool(torch.isfinite(parameter.grad).all()):
            raise ProgramError(f"the gradient of {name} is not finite")
    return f"a finite gradient reaches all {count} parameters"


def check_prior_predictive(subject: Subject) -> str:
    """The model runs without data, and draws what looks like data."""
    with subject.program.scope(), torch.no_grad():
        trace = poutine.trace(subject.program.draw_prior).get_trace(3)
    drawn = sites_of(trace)
    for name, value in subject.batch.items():
        if name in drawn and drawn[name]["value"].shape[1:] != value.shape[1:]:
            raise ProgramError(
                f"the prior predictive draws {name!r} of shape "
                f"{tuple(drawn[name]['value'].shape[1:])}; the data have {tuple(value.shape[1:])}"
            )
        if name in drawn and len(drawn[name]["value"]) != 3:
            raise ProgramError(f"size=3 drew {len(drawn[name]['value'])} of {name!r}")
    return f"draws {sorted(drawn)}"


def check_validation(subject: Subject) -> str:
    """Pyro's own validation finds nothing: arguments, shapes against plates, supports."""
    prime(subject.program, subject.batch, subject.num_data)
    return "Pyro's validation passes"
