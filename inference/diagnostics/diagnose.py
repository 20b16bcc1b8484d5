"""Ask a posterior all questions that apply to it, and give the answers in one report."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.densities import data_plate, is_local
from inference.devices import isolated_rng
from inference.diagnostics.check import Check, Finding, cannot_tell
from inference.diagnostics.diagnosis import Diagnosis
from inference.diagnostics.evidence import evidence
from inference.diagnostics.gaps import inference_gaps
from inference.diagnostics.importance import importance_weights
from inference.diagnostics.label_calibration import label_calibration
from inference.diagnostics.loo import leave_one_out
from inference.diagnostics.nuts import against_nuts
from inference.diagnostics.predictive import predictive_check
from inference.diagnostics.sbc import simulation_based_calibration
from inference.diagnostics.source import (
    NOT_DATA,
    checked_batch,
    on_device_of,
    training_size,
)
from inference.diagnostics.surgery import elbo_surgery
from inference.diagnostics.weighing import Weighed, no_latents, weigh
from inference.elbo.traces import Site, run_traces, sample_sites
from inference.sites import is_discrete
from inference.weights import batch_size, evaluation_mode
from ppl_models.errors import PplError, UnknownNameError, describe, whole_number
from ppl_models.program import Batch, Program, as_program


@dataclass(frozen=True)
class Diagnostic:
    """A function that asks one question of a program.

    It is given the program, and of ``batch, num_data, seed, weighed`` what it names; the number of
    draws if it weighs them.
    """

    ask: Callable[..., Finding]
    costly: bool = False
    """Asked only when it is named, or everything is wanted."""
    about: str = "any"
    """Without which there is nothing to ask: ``local`` or ``global`` latents, ``labels`` beside a
    discrete latent, or ``any``."""


REGISTRY: dict[str, Diagnostic] = {
    "importance": Diagnostic(importance_weights),
    "evidence": Diagnostic(evidence),
    "surgery": Diagnostic(elbo_surgery, about="local"),
    "predictive": Diagnostic(predictive_check),
    "loo": Diagnostic(leave_one_out, about="global"),
    "labels": Diagnostic(label_calibration, about="labels"),
    "sbc": Diagnostic(simulation_based_calibration, costly=True, about="local"),
    "gaps": Diagnostic(inference_gaps, costly=True, about="local"),
    "nuts": Diagnostic(against_nuts, costly=True),
}
"""The diagnostics by the name that ``diagnose(..., checks=)`` takes, in the order of the report."""


@dataclass(frozen=True)
class Subject:
    """What a diagnosis is about."""

    program: Program
    batch: Batch
    num_data: int | None
    """Size of the data set that a global posterior is about."""
    split: str
    latents: frozenset[str]
    """``local``, ``global``, or both; and ``labels``."""


def diagnose(
    program: object,
    data: object = None,
    *,
    checks: Iterable[str] | str | None = None,
    num_samples: int = 1000,
    max_data: int = 200,
    num_data: int | None = None,
    thorough: bool = False,
    seed: int = 0,
    **options: Mapping[str, Any],
) -> Diagnosis:
    """Diagnose the posterior of a program: checks, each with value, threshold and verdict.

    Args:
        program: any object with ``model`` and ``guide``, the result of a fit, or an open run.
        data: a batch of fields (B, ...), one array (the field ``x``), a split, or a data set;
            those of the fit or the run when left out. Of a data set test data are taken, but all
            training data where latents are global, for these are what their posterior is about.
        checks: names of ``REGISTRY``; all that apply and cost little when left out.
        num_samples: S, draws from the guide a datum.
        max_data: of a split or data set, where latents are local; a batch is taken whole.
        num_data: size of the data set that a global posterior is about; when left out that of the
            fit or run, told by a data set, and else the batch itself.
        thorough: the costly checks as well.
        seed: of the draws; the global random state is left as it was.
        **options: of single diagnostics, by their names: ``predictive={"statistics": ...}``.

    Returns:
        A :class:`Diagnosis`. A diagnostic that has no answer for this program says why.

    Raises:
        PplError: the program has no latents; no data; a name or option that is not there.
    """
    whole_number("num_samples", num_samples, 2)
    whole_number("max_data", max_data)
    named = _named(checks, options)
    subject = _subject(as_program(program), _given(program, data), max_data, num_data, seed)
    if num_data is None and "global" in subject.latents:
        subject = replace(subject, num_data=training_size(program))
    asked = named or _that_apply(subject, thorough, options)
    weighing = _Weighing(subject, num_samples, seed)
    found: list[Check] = []
    findings: dict[str, Finding] = {}
    for name in asked:
        try:
            finding = _ask(REGISTRY[name], subject, weighing, dict(options.get(name, {})))
            found += finding.checks()
            findings[name] = finding
        except PplError as error:
            found.append(cannot_tell(name, error))
        except Exception as error:  # one diagnostic shall not take the others' answers with it
            found.append(cannot_tell(name, f"it failed: {describe(error)}"))
    settings = {
        "num_samples": num_samples,
        "num_data": batch_size(subject.batch),
        "data": subject.split,
        "seed": seed,
    }
    return Diagnosis(subject.program.name, found, findings, settings)


def _named(checks: Iterable[str] | str | None, options: Mapping[str, Any]) -> list[str]:
    """The diagnostics that were named; none if the choice is left to us.

    Raises:
        PplError: a name that is not there, none at all, or options of one that is not asked.
    """
    names = [checks] if isinstance(checks, str) else list(checks or ())
    for name in names:
        if name not in REGISTRY:
            raise UnknownNameError("diagnostic", name, REGISTRY)
    for name in options:
        if name not in REGISTRY:
            arguments = [*REGISTRY, *inspect.signature(diagnose).parameters]
            raise UnknownNameError("diagnostic or argument", name, arguments[:-1])
    if checks is None:
        return []
    if not names:
        raise PplError(f"checks is empty: name some of {', '.join(REGISTRY)}, or leave it out")
    for name in options:
        if name not in names:
            raise PplError(f"options of {name!r} were given, but checks names {', '.join(names)}")
    return list(dict.fromkeys(names))


def _that_apply(subject: Subject, thorough: bool, options: Mapping[str, Any]) -> list[str]:
    """What is asked unless something is named; who gives options wants the answer."""
    return [
        name
        for name, diagnostic in REGISTRY.items()
        if name in options
        or (
            (thorough or not diagnostic.costly)
            and (diagnostic.about == "any" or diagnostic.about in subject.latents)
        )
    ]


def _ask(
    diagnostic: Diagnostic, subject: Subject, weighing: _Weighing, options: dict[str, Any]
) -> Finding:
    """Call a diagnostic with what it names.

    Raises:
        PplError: an option that it has not; whatever it has to say.
    """
    named = inspect.signature(diagnostic.ask).parameters
    for option in options:
        if option not in named:
            raise UnknownNameError("option", option, named)
    given: dict[str, Any] = {"batch": subject.batch, "num_data": subject.num_data}
    given["seed"] = weighing.seed
    known = {name: value for name, value in given.items() if name in named}
    if "weighed" in named:
        if {"num_samples", "seed", "num_data"} & set(options):
            known["num_samples"] = weighing.num_samples
        else:
            known["weighed"] = weighing.weights()
    return diagnostic.ask(subject.program, **(known | options))


class _Weighing:
    """Importance weights that several diagnostics share; drawn when first asked for.

    Args:
        subject: whose.
        num_samples: S.
        seed: of the draws.
    """

    def __init__(self, subject: Subject, num_samples: int, seed: int) -> None:
        self.subject, self.num_samples, self.seed = subject, num_samples, seed
        self._found: Weighed | Exception | None = None

    def weights(self) -> Weighed:
        """The weights.

        Raises:
            PplError: why there are none.
        """
        if self._found is None:
            subject = self.subject
            try:
                self._found = weigh(
                    subject.program,
                    subject.batch,
                    self.num_samples,
                    num_data=subject.num_data,
                    seed=self.seed,
                )
            except Exception as error:
                self._found = error
        if isinstance(self._found, Exception):
            raise self._found
        return self._found


def _given(program: object, data: object) -> Any:
    """The data that were given, or those of a fit or a run.

    Raises:
        PplError: none.
    """
    found = data if data is not None else getattr(program, "data", None)
    if found is None:
        raise PplError(
            "diagnose needs data: a batch {'x': x}, a split or a data set as its second argument "
            "(the result of a fit and an open run bring their own)"
        )
    return found


def _subject(
    program: Program, data: Any, max_data: int, num_data: int | None, seed: int
) -> Subject:
    """Program and batch, once the program is known to have latents."""
    if isinstance(data, Tensor | np.ndarray):
        data = {"x": data}
    if isinstance(data, Mapping):
        batch = checked_batch(program, data)
        return Subject(program, batch, num_data, "batch", _kinds(program, batch, seed))
    if not (hasattr(data, "batches") or hasattr(data, "train")):
        raise PplError(f"{NOT_DATA}, got {type(data).__name__}")
    sets = hasattr(data, "train")
    kinds = _kinds(program, _first(program, data.train if sets else data, 8, seed), seed)
    if "global" in kinds:
        name, split = ("train", data.train) if sets else ("split", data)
        num = len(split)
    else:
        name, split = ("test", data.test) if sets else ("split", data)
        num = min(max_data, len(split))
    return Subject(program, _first(program, split, num, seed), num_data, name, kinds)


def _first(program: Program, split: Any, num: int, seed: int) -> Batch:
    """The first data of a split."""
    if len(split) == 0:
        raise PplError("there are no data to diagnose with")
    with isolated_rng(seed):  # transforms of the data draw too
        return on_device_of(program, next(iter(split.batches(num))))


def _kinds(program: Program, batch: Batch, seed: int) -> frozenset[str]:
    """Whether latents are local, global, or both.

    Raises:
        PplError: the program has none.
    """
    with evaluation_mode(program), isolated_rng(seed), program.scope(), torch.no_grad():
        traces = run_traces(program.run_model, program.run_guide, (batch,), {"num_data": None})
    latents = [site for _, site in sample_sites(traces.model) if not site["is_observed"]]
    latents += [site for _, site in sample_sites(traces.guide)]
    if not latents:
        raise PplError(no_latents(program))
    plate = data_plate(traces.model, batch_size(batch))
    kinds = {"local" if is_local(site, plate) else "global" for site in latents}
    if "y" in batch and any(_is_label(site) and is_local(site, plate) for site in latents):
        kinds.add("labels")
    return frozenset(kinds)


def _is_label(site: Site) -> bool:
    """Whether a datum has one state of a discrete site."""
    fn = site["fn"]
    return is_discrete(fn) and len(fn.batch_shape) == 1 and len(fn.event_shape) <= 1
