"""Are the posteriors over a discrete latent right about labels, and as sure as they should be?

The latent is a class of the model itself (semi-supervised ``y``), or the component of a mixture.
Components are numbered arbitrarily: they are matched to classes on one half of the data, and
everything is measured on the other.

Shapes: B data, N of them measured, K states, C classes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from inference.devices import isolated_rng
from inference.diagnostics.check import CannotTell, Check
from inference.diagnostics.label_probabilities import state_probabilities
from inference.diagnostics.reliability import Reliability, brier, log_score, reliability
from inference.plotting.reliability import reliability_diagram
from inference.weights import batch_size, evaluation_mode
from ppl_models.errors import PplError, ProgramError, UnknownNameError, whole_number
from ppl_models.program import Batch, as_program

MATCHES = ("auto", "same", "one_to_one", "majority")
LEAST_DATA = 20
FALSE_ALARM = 0.01
LARGE = 0.1
"""Calibration error beyond that of chance from which it is called bad."""


@dataclass(frozen=True)
class LabelCalibration:
    """Posteriors over a discrete latent against labels."""

    site: str
    probabilities: NDArray[np.floating]
    """p(class | x) of the data that were measured, (N, C)."""
    labels: NDArray[np.int64]
    """(N,)."""
    match: str
    """``same`` numbers, or components matched ``one_to_one`` or by ``majority``."""
    classes: NDArray[np.int64]
    """Of each state, −1 of one that no class is left for, (K,)."""
    reliability: Reliability
    brier: float
    """Σ_c (p_c − 1[c = y])², averaged: from 0 to 2."""
    brier_se: float
    nll: float
    """−log p(y | x), averaged; nats."""
    nll_se: float
    accuracy: float
    accuracy_se: float
    commonest: float
    """Share of the commonest class: the accuracy of always saying so."""

    def checks(self) -> list[Check]:
        """``label_calibration`` and ``label_accuracy``."""
        return [self._calibration(), self._accuracy()]

    def _calibration(self) -> Check:
        found = self.reliability
        sure = float(self.probabilities.max(1).mean())
        numbers = {
            "ece_se": found.ece_se,
            "ece_of_chance": found.ece_of_chance,
            "p_value": found.p_value,
            "brier": self.brier,
            "nll": self.nll,
            "mean_confidence": sure,
            "bins": len(found.counts),
            "num_data": len(self.labels),
            "match": self.match,
        }
        shown = (
            f"The calibration error of {self.site} is {found.ece:.3f} ± {2 * found.ece_se:.3f} "
            f"({len(found.counts)} bins, {len(self.labels)} labels{self._halves}); perfect "
            f"calibration gives {found.ece_of_chance:.3f} by chance, and rarely more than "
            f"{found.ece_limit:.3f}"
        )
        name = "label_calibration"
        if found.p_value >= FALSE_ALARM:
            message = shown + ". No miscalibration is seen."
            return Check(name, "ok", message, found.ece, found.ece_limit, numbers)
        side = "over" if sure > self.accuracy else "under"
        message = (
            f"{shown}. It is {side}confident: {sure:.1%} sure and {self.accuracy:.1%} right on "
            "average. Do not take its probabilities at their word."
        )
        verdict = "bad" if found.ece - found.ece_of_chance > LARGE else "warning"
        return Check(name, verdict, message, found.ece, found.ece_limit, numbers)

    @property
    def _halves(self) -> str:
        if self.match == "same":
            return ""
        how = "one to one" if self.match == "one_to_one" else "to their commonest class"
        return f", components matched {how} on the other half of the data"

    def _accuracy(self) -> Check:
        better = self.accuracy - 2 * self.accuracy_se > self.commonest
        message = (
            f"{self.site} tells {self.accuracy:.1%} ± {2 * self.accuracy_se:.1%} of the labels"
            f"{self._halves}; always saying the commonest class tells {self.commonest:.1%}."
        )
        numbers = {"accuracy_se": self.accuracy_se, "classes": self.classes.tolist()}
        if not better:
            message += " So it is not seen to tell anything of the labels."
        verdict = "ok" if better else "warning"
        return Check("label_accuracy", verdict, message, self.accuracy, self.commonest, numbers)

    def figures(self) -> dict[str, Figure]:
        """``reliability``: how often it is right against how sure it is."""
        found = self.reliability
        title = f"{self.site}: ECE {found.ece:.3f}, by chance {found.ece_of_chance:.3f}"
        return {
            "reliability": reliability_diagram(
                found.edges, found.counts, found.confidence, found.accuracy, title
            )
        }


@torch.no_grad()
def label_calibration(
    program: object,
    batch: Batch,
    *,
    site: str | None = None,
    labels: str = "y",
    match: str = "auto",
    num_draws: int = 20,
    num_bins: int = 10,
    seed: int = 0,
) -> LabelCalibration:
    """Compare p(discrete latent | x) with true labels, which the program is not shown.

    A latent that is summed out has its exact posterior, any other its guide's.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (B, ...), and labels (B,) from 0 on.
        site: the discrete latent; may be left out if it is named as the labels, or the only one.
        labels: name of the field of labels.
        match: ``same``: states are the classes; ``one_to_one``: components are assigned to classes
            (Hungarian algorithm); ``majority``: each to its commonest class. ``auto``: the same if
            the site is named as the labels, else one to one if there are as many, else majority.
        num_draws: of other latents that it depends on.
        num_bins: of equal width, of the calibration error.
        seed: of the halves and of the draws; the global random state is left as it was.

    Returns:
        A :class:`LabelCalibration`.

    Raises:
        CannotTell: no such latent, the labels are an input of the program, or too few data.
        PplError: no labels, or of a wrong kind.
    """
    if labels not in batch:
        raise PplError(f"the batch has no field {labels!r} of labels; it has: {', '.join(batch)}")
    if match not in MATCHES:
        raise UnknownNameError("match", match, MATCHES)
    num_draws, num_bins = whole_number("num_draws", num_draws), whole_number("num_bins", num_bins)
    truth = _whole(labels, batch[labels], batch_size(batch))
    unlabelled = {name: value for name, value in batch.items() if name != labels}
    program = as_program(program)
    with evaluation_mode(program), isolated_rng(seed, "labels"), program.scope():
        try:
            name, found = state_probabilities(program, unlabelled, site, labels, num_draws)
        except ProgramError as error:
            if labels not in program.fields:
                raise
            raise CannotTell(
                f"the labels {labels!r} are an input of the program and no latent: {error}"
            ) from error
    states = found.cpu().numpy()
    num_classes = int(truth.max()) + 1
    if match == "auto":
        one = "one_to_one" if states.shape[1] == num_classes else "majority"
        match = "same" if name == labels else one
    order = np.random.default_rng(seed).permutation(len(truth))
    half = order[: 0 if match == "same" else len(truth) // 2]
    rest = np.setdiff1d(order, half)
    if len(rest) < LEAST_DATA:
        raise CannotTell(f"only {len(rest)} labels are left to measure on; give more data")
    num_classes = max(num_classes, states.shape[1] if match == "same" else 0)
    classes = _matched(states[half], truth[half], num_classes, match, states.shape[1])
    return _measured(name, states[rest], truth[rest], classes, num_classes, match, num_bins, seed)


def _whole(name: str, labels: Tensor, rows: int) -> NDArray[np.int64]:
    values = labels.detach().cpu()
    if values.shape != (rows,) or bool((values != values.long()).any()) or int(values.min()) < 0:
        raise PplError(
            f"labels {name!r} must be whole numbers from 0 on, ({rows},), got "
            f"{tuple(values.shape)} of {values.dtype}"
        )
    return values.long().numpy()


def _matched(
    states: NDArray[np.floating],
    labels: NDArray[np.int64],
    num_classes: int,
    match: str,
    num_states: int,
) -> NDArray[np.int64]:
    """The class of each state, (K,)."""
    if match == "same":
        return np.arange(num_states)
    shared = states.T @ np.eye(num_classes)[labels]  # (K, C)
    if match == "majority":
        return shared.argmax(1)
    found = np.full(num_states, -1)
    rows, columns = linear_sum_assignment(-shared)
    found[rows] = columns
    return found


def _measured(
    name: str,
    states: NDArray[np.floating],
    labels: NDArray[np.int64],
    classes: NDArray[np.int64],
    num_classes: int,
    match: str,
    num_bins: int,
    seed: int,
) -> LabelCalibration:
    # A last column for states that no class is left for: their share is never right.
    wide = states @ np.eye(num_classes + 1)[classes]
    probabilities = wide if (classes < 0).any() else wide[:, :num_classes]
    correct = probabilities.argmax(1) == labels
    scores = brier(probabilities, labels), log_score(probabilities, labels), correct
    errors = [float(np.std(score) / np.sqrt(len(labels))) for score in scores]
    confidence = np.clip(probabilities.max(1), 0.0, 1.0)
    return LabelCalibration(
        site=name,
        probabilities=probabilities,
        labels=labels,
        match=match,
        classes=classes,
        reliability=reliability(confidence, correct, num_bins, seed),
        brier=float(scores[0].mean()),
        brier_se=errors[0],
        nll=float(scores[1].mean()),
        nll_se=errors[1],
        accuracy=float(correct.mean()),
        accuracy_se=errors[2],
        commonest=float(np.bincount(labels).max() / len(labels)),
    )
