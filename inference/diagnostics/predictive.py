"""Posterior predictive checks: do data drawn from the fitted model look like the observed ones?

A replicated data set has one draw of every datum from p(x | z), z ~ q(z | x), and the same number
of data as the observed one; a statistic of it is compared with that of the observed data. The
p-values are conservative: a replicate has seen the datum that it repeats, so they crowd about ½
under a true model (they are not uniform), and one near 0 says more than it seems to. What a mask
takes out of the likelihood is in every replicate as it was observed.

Shapes: S replicated data sets, B data.

References:
    Gelman, Meng, Stern: Posterior predictive assessment of model fitness, Statistica Sinica 6,
    1996.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from inference.diagnostics.check import CannotTell, Check
from inference.diagnostics.replicates import counted, replicate
from inference.elbo.traces import Site
from inference.plotting.posterior_checks import predictive_figure
from inference.sampling import redrawn
from ppl_models.errors import PplError, UnknownNameError, whole_number
from ppl_models.program import Batch, as_program

Statistic = Callable[[Tensor], Tensor | float]
DOUBTFUL, REJECTED = 0.05, 0.01
"""Two-sided p-values below which a statistic is doubtful, or not of this model."""


def _sd_of_means(x: Tensor) -> Tensor:
    return x.flatten(1).mean(1).std()


STATISTICS: dict[str, Statistic] = {
    "mean": lambda x: x.mean(),
    "sd": lambda x: x.std(),
    "smallest": lambda x: x.min(),
    "largest": lambda x: x.max(),
    "sd of data's means": _sd_of_means,
}
"""What is asked of a replicated data set (B, ...), unless the user asks something else."""
LEAST_SAMPLES = 40
"""With fewer, no p-value could be below 0.05; with fewer than 200, none below 0.01."""
OF_RANGE = ("smallest", "largest")
"""Those that say nothing of data of two values."""
OF_PARTS = ("sd of data's means",)
"""Those that say nothing new of data of one number, and nothing of one datum."""
OF_MANY = ("sd",)
"""Those that one number does not have."""


@dataclass(frozen=True)
class PredictiveCheck:
    """Statistics of replicated data sets against those of the observed one."""

    field: str
    replicated: Mapping[str, np.ndarray]
    """By statistic, (S,)."""
    observed: Mapping[str, float]
    """By statistic."""
    p_values: Mapping[str, float]
    """Two-sided, by statistic: twice the smaller tail, ties in both; at least 2/(S + 1)."""
    num_samples: int

    def checks(self) -> list[Check]:
        """One a statistic."""
        return [self._of(name) for name in self.p_values]

    def figures(self) -> dict[str, Figure]:
        """A histogram a statistic, with the observed value."""
        return {"predictive": predictive_figure(self.replicated, self.observed, self.p_values)}

    def _of(self, name: str) -> Check:
        p, seen, drawn = self.p_values[name], self.observed[name], self.replicated[name]
        low, high = (float(v) for v in np.quantile(drawn, [0.025, 0.975]))
        numbers = {"observed": seen, "low": low, "high": high, "num_samples": self.num_samples}
        text = (
            f"{name} of {self.field}: {seen:.4g} observed, 95 of 100 replicated data sets lie in "
            f"[{low:.4g}, {high:.4g}]. "
        )
        if p >= DOUBTFUL:
            verdict = "ok"
            text += "The data are as the model would draw them, so far as this tells."
        else:
            verdict = "bad" if p <= REJECTED else "warning"
            text += (
                "The model does not draw data like these"
                if verdict == "bad"
                else "The model seldom draws data like these (of twenty statistics of a right "
                "model one may be so)"
            )
            text += ", and the check is a lenient one (a replicate has seen its datum)."
        return Check(f"predictive[{name}]", verdict, text, p, DOUBTFUL, numbers)


def predictive_check(
    program: object,
    batch: Batch,
    *,
    statistics: Mapping[str, Statistic] | None = None,
    field: str | None = None,
    num_samples: int = 300,
    seed: int = 0,
) -> PredictiveCheck:
    """Compare statistics of replicated data sets with those of the observed one.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (B, ...).
        statistics: by name, functions of one data set (B, ...) that give a number; mean, standard
            deviation, smallest, largest and the spread of the data's means when left out.
        field: the observed site; may be left out if there is one.
        num_samples: S.
        seed: of the draws.

    Raises:
        CannotTell: the model draws no field of the data, nothing is latent, or masks hide all data
            or cannot be read.
        PplError: a statistic gives no number; several fields to choose from.
        UnknownNameError: no such field.
    """
    program = as_program(program)
    whole_number("num_samples", num_samples, LEAST_SAMPLES)
    first = redrawn(program, batch, seed=seed)
    name = _chosen(first, field)
    seen = batch[name]
    where = _where(first[name], seen)
    if statistics is None:
        statistics = _fitting(seen, where)
    elif not statistics:
        raise PplError("statistics is empty: give {'name': function of a data set (B, ...)}")
    observed = {n: _number(n, f, seen) for n, f in statistics.items()}
    values: dict[str, list[float]] = {n: [] for n in statistics}
    for i in range(num_samples):
        # Seeds far apart: those of other draws from the same program stay others.
        drawn = replicate(redrawn(program, batch, seed=seed * 1_000_003 + i)[name], seen)
        for n, f in statistics.items():
            values[n].append(_number(n, f, drawn))
    replicated = {n: np.array(v) for n, v in values.items()}
    return PredictiveCheck(
        field=name,
        replicated=replicated,
        observed=observed,
        p_values={n: two_sided(replicated[n], observed[n]) for n in statistics},
        num_samples=num_samples,
    )


def two_sided(drawn: np.ndarray, observed: float) -> float:
    """Twice the smaller tail beyond a value, which is itself one of the draws; at most 1.

    Args:
        drawn: (S,).
        observed: the value.
    """
    count = len(drawn) + 1
    above, below = (int((drawn >= observed).sum()) + 1, int((drawn <= observed).sum()) + 1)
    return min(1.0, 2 * min(above, below) / count)


def _chosen(observed: Mapping[str, Site], field: str | None) -> str:
    if field is not None and field not in observed:
        raise UnknownNameError("observed field", field, observed)
    if not observed:
        raise CannotTell(
            "the model draws no field of the data from latents, so nothing can be replicated"
        )
    if field is None and len(observed) > 1:
        if "x" in observed:
            return "x"
        raise PplError(f"which field? The model observes: {', '.join(observed)}")
    return field if field is not None else next(iter(observed))


def _where(site: Site, seen: Tensor) -> Tensor:
    """Which of the data count, (B, ...).

    Raises:
        CannotTell: none, or replicates have another shape.
    """
    if site["value"].shape != seen.shape:
        raise CannotTell(
            f"the model's {site['name']!r} has shape {tuple(site['value'].shape)} and the data "
            f"have {tuple(seen.shape)}: replicates cannot be compared with them"
        )
    where = counted(site).expand(seen.shape)
    if not where.any():
        raise CannotTell(f"all of {site['name']!r} is masked, so there is nothing to be compared")
    return where


def _fitting(seen: Tensor, where: Tensor) -> dict[str, Statistic]:
    """Those of :data:`STATISTICS` that say something of these data (B, ...)."""
    idle = [*OF_RANGE] if len(seen[where].unique()) <= 2 else []
    idle += OF_PARTS if seen[0].numel() == 1 or len(seen) == 1 else ()
    idle += OF_MANY if seen.numel() == 1 else ()
    return {n: f for n, f in STATISTICS.items() if n not in idle}


def _number(name: str, statistic: Statistic, data: Tensor) -> float:
    """A statistic of one data set.

    Raises:
        PplError: it fails, or gives no finite number.
    """
    given = data.detach()
    try:
        found = float(statistic(given if given.is_floating_point() else given.double()))
    except Exception as error:
        raise PplError(
            f"statistic {name!r} must be a function of a data set {tuple(data.shape)} that gives "
            f"one number; it failed by {type(error).__name__}: {error}"
        ) from error
    if not np.isfinite(found):
        raise PplError(f"statistic {name!r} gave {found} of a data set {tuple(data.shape)}")
    return found
