"""What of a difference between guide and NUTS is chance: independent draws in the place of both."""

from __future__ import annotations

import pytest
import torch
from torch.distributions import Laplace, Normal, StudentT

from inference.diagnostics.agreement import compare

NAMES = ("a", "b", "c")
REPETITIONS = 200


def found(exact, guide, seed):
    """Two chains of 200 draws, and 500 of the guide, of three dimensions."""
    torch.manual_seed(seed)
    nuts = exact.sample((2, 200, 3)).double()
    return compare(NAMES, nuts, guide.sample((500, 3)).double(), 0)


def doubted(exact, guide):
    """How many of 20 repetitions have another verdict than ok, by check."""
    checks = [check for seed in range(20) for check in found(exact, guide, seed).checks()]
    return {name: sum(c.name == name and c.verdict != "ok" for c in checks) for name in ASKED}


ASKED = ("nuts_mean", "nuts_sd", "nuts_wasserstein")
BY_CHANCE = 3
"""One comparison in 300 is doubted by chance, if errors are right: four of 20 are at 1e-6."""


def test_a_wide_guide_has_a_mean_of_chance():
    """Its error is 20/√500 = 0.9 of NUTS's standard deviations."""
    assert doubted(Normal(0.0, 1.0), Normal(0.0, 20.0))["nuts_mean"] <= BY_CHANCE
    assert doubted(Normal(0.0, 1.0), Normal(2.0, 1.0))["nuts_mean"] == 20


def test_tails_make_the_standard_deviation_uncertain():
    """Draws of one heavy-tailed distribution: its kurtosis is infinite."""
    heavy = StudentT(torch.tensor(2.5))
    assert doubted(heavy, heavy)["nuts_sd"] <= BY_CHANCE
    assert doubted(Normal(0.0, 1.0), Normal(0.0, 0.6))["nuts_sd"] == 20


def test_the_interval_tells_a_narrow_guide_where_tails_leave_the_deviation_unsure():
    heavy, narrow = (StudentT(torch.tensor(2.5), 0.0, scale) for scale in (1.0, 0.4))
    runs = [found(heavy, narrow, seed) for seed in range(20)]
    unsure = [bool((r.sd_ratio.log().abs() < 3 * r.sd_error).any()) for r in runs]
    assert sum(unsure) >= 5
    assert {run.checks()[1].verdict for run in runs} <= {"warning", "bad"}
    assert "interval" in runs[0].checks()[1].message


@pytest.mark.parametrize("width", [1.0, 3.0])
def test_standard_errors_are_those_of_repetitions(width):
    """Of the scatter of 600 numbers the error is 3 %; tolerances are five of these or more."""
    runs = [found(Laplace(1.0, 2.0), Laplace(1.0, 2 * width), seed) for seed in range(REPETITIONS)]
    shift = torch.cat([run.shift for run in runs]).std()
    claimed = torch.cat([run.shift_error for run in runs]).mean()
    assert float(claimed) == pytest.approx(float(shift), rel=0.2)
    log_ratio = torch.cat([run.sd_ratio.log() for run in runs]).std()
    claimed = torch.cat([run.sd_error for run in runs]).mean()
    assert 0.9 < float(claimed / log_ratio) < 1.3  # it takes the larger kurtosis of two
