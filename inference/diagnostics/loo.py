"""Leave-one-out: the log density of each datum given all others, from one approximate posterior.

With draws θ ~ q of the global latents, p(x_n | x_-n) is a ratio of expectations with the weights
p(x, θ) / (q(θ) p(x_n | θ)): those that take the datum out again, and those that correct q, in one,
smoothed together. Only latents that all data share make a datum depend on the others. A latent of
the datum itself has to be summed out first: a guide that was shown x_n knows it.

Shapes: S draws, N data.

References:
    Vehtari, Gelman, Gabry: Practical Bayesian model evaluation using leave-one-out cross-validation
    and WAIC, 2017, arXiv:1507.04544.
    Magnusson, Andersen, Jonasson, Vehtari: Bayesian leave-one-out cross-validation for large data,
    2019, arXiv:1904.10679 (the correction for an approximate posterior).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure

from inference.diagnostics.check import CannotTell, Check
from inference.diagnostics.importance import TOLERATED, check_draws, k_threshold, quantile, smooth
from inference.diagnostics.weighing import Weighed, weigh
from inference.plotting.posterior_checks import loo_figure
from ppl_models.program import Batch


@dataclass(frozen=True)
class LeaveOneOut:
    """Log p(x_n | all other data); nats."""

    elpd_of_data: np.ndarray
    """(N,)."""
    error_of_data: np.ndarray
    """Monte-Carlo standard error of each, (N,); to be believed where k is low."""
    pareto_k: np.ndarray
    """Of the weights of each, (N,)."""
    log_density: np.ndarray
    """Log p(x_n | all data, it included) by the same weights without taking it out, (N,)."""
    threshold: float
    num_samples: int
    drawn_within: int
    """Draws over which local latents were averaged out; 0: none is drawn."""
    too_noisy: str = ""
    """Why that averaging leaves too much chance for k to tell; empty if it does not."""

    @property
    def elpd(self) -> float:
        """The sum over data."""
        return float(self.elpd_of_data.sum())

    @property
    def elpd_se(self) -> float:
        """Its standard error as an estimate for other data of the same source."""
        count = len(self.elpd_of_data)
        return math.sqrt(count * float(self.elpd_of_data.var(ddof=1))) if count > 1 else math.nan

    @property
    def effective_parameters(self) -> float:
        """What the data gain in log density by having been seen: p_loo."""
        return float((self.log_density - self.elpd_of_data).sum())

    def checks(self) -> list[Check]:
        """One: whether the number can be trusted."""
        known = self.pareto_k[~np.isnan(self.pareto_k)]
        highest = float(known.max()) if len(known) else None
        text = (
            f"elpd_loo {self.elpd:.2f} ± {self.elpd_se:.2g} nats, effective parameters "
            f"{self.effective_parameters:.2f}; "
        )
        if self.drawn_within:
            text += (
                f"local latents averaged out by {self.drawn_within} draws, which makes it a little "
                "too low; "
            )
        above = int((self.pareto_k > self.threshold).sum())
        text += f"{above} of {len(self.pareto_k)} data have k above {self.threshold:.2f}. "
        if len(known) == 0:
            verdict = "cannot tell"
            end = "Cannot tell whether to trust it: the weights take too few values for a tail."
        elif above == 0:
            verdict, end = "ok", "The number can be trusted."
        elif self.too_noisy:
            verdict, end = "cannot tell", self.too_noisy
        elif quantile(known, 1 - TOLERATED) <= self.threshold:
            verdict, end = "warning", "Look at these data: each of them moves the posterior."
        else:
            verdict = "bad"
            end = "It cannot be trusted: refit without these data, or use a better guide."
        numbers = {
            "elpd": self.elpd,
            "elpd_se": self.elpd_se,
            "effective_parameters": self.effective_parameters,
            "num_samples": self.num_samples,
        }
        return [Check("loo", verdict, text + end, highest, self.threshold, numbers)]

    def figures(self) -> dict[str, Figure]:
        """The density of each datum, and the k it rests on."""
        shown = np.clip(self.pareto_k, -1.0, 3.0)  # infinite ones at the edge
        return {"loo": loo_figure(self.elpd_of_data, shown, self.threshold)}


def leave_one_out(
    program: object,
    batch: Batch,
    *,
    num_samples: int = 1000,
    num_data: int | None = None,
    weighed: Weighed | None = None,
    seed: int = 0,
) -> LeaveOneOut:
    """Log p(x_n | all other data) for a program with global latents.

    Args:
        program: any object with ``model`` and ``guide``; its data are independent given the
            global latents.
        batch: fields (N, ...); all that the guide was fitted to.
        num_samples: S.
        num_data: size of the data set that the posterior is about.
        weighed: weights that are there already.
        seed: of the draws.

    Raises:
        CannotTell: all latents are local; too few draws or data; weights that are not finite.
        PplError: the program has no latents.
    """
    check_draws(num_samples if weighed is None else weighed.num_samples)
    if weighed is None:
        weighed = weigh(program, batch, num_samples, num_data=num_data, seed=seed)
    if weighed.joint is None:
        raise CannotTell(_why_local(weighed))
    if weighed.pointwise is None:
        raise CannotTell(
            f"{weighed.num_data} data times {weighed.num_samples} draws are more numbers than are "
            "kept; give fewer draws"
        )
    if weighed.num_data < 2:
        raise CannotTell("one datum was given: there are no others to predict it from")
    log_lik, joint = weighed.pointwise.numpy(), weighed.joint.numpy()
    if not (np.isfinite(log_lik).all() and np.isfinite(joint).all()):
        raise CannotTell(
            "the joint log weights or the data's log densities are not all finite; compare the "
            "supports of guide and model"
        )
    smoothed, ks = smooth(joint - log_lik)  # (N, S)
    elpd = _log_mean(log_lik, smoothed)
    return LeaveOneOut(
        elpd_of_data=elpd,
        error_of_data=_error(log_lik, smoothed, elpd),
        pareto_k=ks,
        log_density=_log_mean(log_lik, smooth(joint[None])[0]),
        threshold=k_threshold(weighed.num_samples),
        num_samples=weighed.num_samples,
        drawn_within=weighed.drawn_within,
        too_noisy=weighed.too_noisy(),
    )


def _log_mean(log_lik: np.ndarray, log_weights: np.ndarray) -> np.ndarray:
    """Log of the weighted mean of the densities, (N,)."""
    total = np.logaddexp.reduce(log_lik + log_weights, axis=1)
    return total - np.logaddexp.reduce(log_weights, axis=1)


def _error(log_lik: np.ndarray, log_weights: np.ndarray, elpd: np.ndarray) -> np.ndarray:
    """Monte-Carlo standard error of the log of a self-normalized mean, (N,): delta method."""
    weights = np.exp(log_weights - log_weights.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    relative = np.exp(log_lik - elpd[:, None]) - 1
    return np.sqrt((np.square(weights * relative)).sum(1))


def _why_local(weighed: Weighed) -> str:
    named = ", ".join(map(repr, weighed.local_sites))
    if weighed.exact:
        return (
            f"the only latents ({named}) belong to a datum each and are summed out: given the "
            "parameters the data are independent, so leaving one out changes nothing; `evaluate` "
            "on test data gives log p(x)"
        )
    return (
        f"all latents ({named}) belong to a datum each, and the guide read them off that datum: "
        "its draws stand where that datum puts them, the weights that would take it out again have "
        "tails too heavy to use, and no latent carries anything from the other data; compare "
        "models by the IWAE bound on test data (`evaluate`)"
    )
