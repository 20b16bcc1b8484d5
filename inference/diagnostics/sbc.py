"""Simulation-based calibration: is an amortized guide right on average over the model's own data?

Where (z, x) is drawn from the model, and L draws from the exact posterior of x, the rank of z among
them is uniform. A guide whose ranks are not is no posterior: ranks pile up at one end where it is
shifted, at both where it is too narrow (U), in the middle where it is too wide (hump).

The converse does not hold for latents alone: a guide that ignores the data and gives the prior has
uniform ranks. So log p(x, z), which depends on the data too, is always ranked beside them.

Shapes: N simulations, L draws, Q quantities.

References:
    Talts, Betancourt, Simpson, Vehtari, Gelman: Validating Bayesian Inference Algorithms with
    Simulation-Based Calibration, 2018, arXiv:1804.06788.
    Modrák, Moon, Kim, Bürkner, Huurre, Faltejsková, Gelman, Vehtari: Simulation-Based Calibration
    Checking for Bayesian Computation: The Choice of Test Quantities Shapes Sensitivity, Bayesian
    Analysis, 2023, arXiv:2211.02383.
    Yao, Vehtari, Simpson, Gelman: Yes, but Did It Work?: Evaluating Variational Inference, 2018,
    arXiv:1802.02538: VSBC, which asks for symmetry alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray

from inference.devices import isolated_rng
from inference.diagnostics.amortized import check_amortized
from inference.diagnostics.check import Check
from inference.diagnostics.simulations import (
    LOG_JOINT,
    Statistic,
    check_statistics,
    ranked,
    simulate,
)
from inference.diagnostics.uniformity import (
    below_points,
    chi_square_p_value,
    ecdf_p_value,
    holm,
    shape_of,
    symmetry_p_value,
)
from inference.plotting.sbc import ecdf_differences, rank_histograms
from inference.weights import evaluation_mode
from ppl_models.errors import PplError, whole_number
from ppl_models.program import Batch, as_program

FALSE_ALARM = 0.01
"""Chance that an exact posterior is doubted, over all quantities together."""
LARGE = 0.1
"""Distance of distribution functions from which a departure is called bad."""
LEAST_SIMULATIONS, LEAST_DRAWS = 50, 9
SHAPES = {
    "low": "what made the data lies below the guide's draws too often: the guide is too high",
    "high": "what made the data lies above the guide's draws too often: the guide is too low",
    "U": "what made the data lies outside of the guide's draws too often: the guide is too narrow",
    "hump": "what made the data lies amid the guide's draws too often: the guide is too wide",
}


@dataclass(frozen=True)
class Uniformity:
    """The ranks of one quantity, tested."""

    name: str
    """Such as ``z[3]``, or ``log p(x, z)``."""
    site: str
    """That it belongs to; its own name for a statistic."""
    is_latent: bool
    """Whether it is a dimension of a latent site, and no statistic."""
    p_value: float
    """That uniform ranks stray as far (simultaneous ECDF band, exact)."""
    chi_square: float
    """p-value of the ranks in bins."""
    symmetry: float
    """p-value of symmetry about the middle (VSBC); a bias breaks it, a wrong width does not."""
    distance: float
    """Largest distance of the ranks' distribution function from the uniform one."""
    mean: float
    """Of the shares of draws that lie below, ½ if all is well."""
    shapes: tuple[str, ...]
    """Of ``low``, ``high``, ``U`` and ``hump`` those that are clear, the clearest first."""


@dataclass(frozen=True)
class Calibration:
    """Ranks of what made simulated data among the guide's draws."""

    names: tuple[str, ...]
    """Of the quantities, Q."""
    ranks: NDArray[np.int64]
    """From 0 to L, (N, Q)."""
    num_draws: int
    """L."""
    tests: tuple[Uniformity, ...]
    """One a quantity."""
    left_out: int
    """Latent dimensions that were not ranked."""

    def adjusted(self, kind: str = "p_value") -> NDArray[np.floating]:
        """p-values after Holm, for all Q quantities together, (Q,).

        Args:
            kind: ``p_value``, ``chi_square`` or ``symmetry``.
        """
        return holm(np.array([getattr(test, kind) for test in self.tests]))

    @property
    def shares(self) -> NDArray[np.floating]:
        """P(draw < what made the data) by q, the probabilities of VSBC, (N, Q)."""
        return (self.ranks + 0.5) / (self.num_draws + 1)

    def checks(self) -> list[Check]:
        """``sbc[site]`` for every site and statistic, and ``vsbc[site]`` for every site."""
        found = []
        adjusted, symmetry = self.adjusted(), self.adjusted("symmetry")
        for site in dict.fromkeys(test.site for test in self.tests):
            places = [i for i, test in enumerate(self.tests) if test.site == site]
            found.append(self._uniform(site, places, adjusted))
            if self.tests[places[0]].is_latent:
                found.append(self._symmetric(site, places, symmetry))
        return found

    def _uniform(self, site: str, places: list[int], adjusted: NDArray[np.floating]) -> Check:
        worst = min(places, key=lambda i: (adjusted[i], -self.tests[i].distance))
        test, p = self.tests[worst], float(adjusted[worst])
        numbers = {
            "quantity": test.name,
            "distance": test.distance,
            "chi_square": float(self.adjusted("chi_square")[worst]),
            "shapes": list(test.shapes),
            "quantities": len(self.names),
            "simulations": len(self.ranks),
            "left_out": self.left_out,
        }
        shown = f"{len(self.ranks)} simulations, Holm over {len(self.names)} quantities"
        if p >= FALSE_ALARM:
            message = f"Ranks of {site} are as uniform as chance has it (p = {p:.2g}; {shown})."
            return Check(f"sbc[{site}]", "ok", message, p, FALSE_ALARM, numbers)
        what = "; ".join(SHAPES[shape] for shape in test.shapes if test.is_latent)
        what = what or "the guide's draws do not follow the data as the posterior's would"
        verdict = "bad" if test.distance >= LARGE else "warning"
        message = (
            f"Ranks of {test.name} are not uniform (p = {p:.2g}; {shown}; {test.distance:.3f} from "
            f"uniform): {what}."
        )
        return Check(f"sbc[{site}]", verdict, message, p, FALSE_ALARM, numbers)

    def _symmetric(self, site: str, places: list[int], adjusted: NDArray[np.floating]) -> Check:
        worst = min(places, key=lambda i: adjusted[i])
        test, p = self.tests[worst], float(adjusted[worst])
        numbers = {"quantity": test.name, "mean": test.mean}
        if p >= FALSE_ALARM:
            message = f"No bias of {site} is seen: its ranks are symmetric about the middle."
            return Check(f"vsbc[{site}]", "ok", message, p, FALSE_ALARM, numbers)
        verdict = "bad" if abs(test.mean - 0.5) >= LARGE / 2 else "warning"
        side = "low" if test.mean > 0.5 else "high"
        message = (
            f"Ranks of {test.name} are not symmetric (p = {p:.2g}, mean {test.mean:.3f}): on "
            f"average the guide is too {side}."
        )
        return Check(f"vsbc[{site}]", verdict, message, p, FALSE_ALARM, numbers)

    def figures(self) -> dict[str, Figure]:
        """``sbc_ranks`` and ``sbc_ecdf``, of the quantities that are least uniform."""
        order = np.argsort([test.p_value for test in self.tests], kind="stable")
        ranks = {self.names[i]: self.ranks[:, i] for i in order}
        return {
            "sbc_ranks": rank_histograms(ranks, self.num_draws, FALSE_ALARM),
            "sbc_ecdf": ecdf_differences(ranks, self.num_draws, FALSE_ALARM),
        }


@torch.no_grad()
def simulation_based_calibration(
    program: object,
    num_simulations: int = 1000,
    num_draws: int = 99,
    *,
    given: Batch | None = None,
    statistics: Mapping[str, Statistic] | None = None,
    max_dims: int = 16,
    seed: int = 0,
) -> Calibration:
    """Rank latents that made simulated data among the guide's draws given these data.

    Args:
        program: any object with ``model`` and ``guide``; its model takes ``size``, and its guide
            is amortized: it has an answer to new data.
        num_simulations: N; with 1,000 a distance of 0.05 from uniform is found.
        num_draws: L, of the guide for each; ranks have L + 1 values, which bins should divide.
        given: fields that the model conditions on, such as labels; gone through in turn.
        statistics: further quantities by name, functions of latents and data (rows, ...) that
            give a number a row, (rows,).
        max_dims: of a site, at even distances.
        seed: of the draws; the global random state is left as it was.

    Returns:
        A :class:`Calibration`.

    Raises:
        CannotTell: the guide is not amortized, is a point, or has nothing to rank.
        ProgramError: the model takes no ``size``, or needs a field that is not given.
        PplError: too few simulations or draws.

    Example:
        >>> from inference.diagnostics.sbc import simulation_based_calibration
        >>> found = simulation_based_calibration(program, 500)
        >>> [check.message for check in found.checks()]
    """
    num_simulations = whole_number("num_simulations", num_simulations, LEAST_SIMULATIONS)
    num_draws = whole_number("num_draws", num_draws, LEAST_DRAWS)
    max_dims = whole_number("max_dims", max_dims)
    statistics = dict(statistics or {})
    check_statistics(statistics)
    if given is not None and any(len(value) == 0 for value in given.values()):
        raise PplError("a given field is empty")
    program = as_program(program)
    made = simulate(program, num_simulations, given, seed)
    with evaluation_mode(program), isolated_rng(seed), program.scope():
        check_amortized(program, made.batch, seed)
    # Another seed: with the one that made them, the guide's first draws could be the latents.
    ranks, sites, left_out = ranked(program, made, num_draws, statistics, max_dims, seed + 1)
    others = {LOG_JOINT, *statistics}
    tests = tuple(
        _test(name, sites[name], name not in others, found, num_draws)
        for name, found in ranks.items()
    )
    return Calibration(tuple(ranks), np.stack([*ranks.values()], 1), num_draws, tests, left_out)


def _test(
    name: str, site: str, is_latent: bool, ranks: NDArray[np.int64], num_draws: int
) -> Uniformity:
    points = np.arange(1, num_draws + 1) / (num_draws + 1)
    away = np.abs(below_points(ranks, num_draws) / len(ranks) - points)
    return Uniformity(
        name=name,
        site=site,
        is_latent=is_latent,
        p_value=ecdf_p_value(ranks, num_draws),
        chi_square=chi_square_p_value(ranks, num_draws),
        symmetry=symmetry_p_value(ranks, num_draws),
        distance=float(away.max()),
        mean=float(((ranks + 0.5) / (num_draws + 1)).mean()),
        shapes=shape_of(ranks, num_draws),
    )
