"""Mixtures of whatever a user has: containers, units, offsets, duplicates, nonsense."""

from __future__ import annotations

import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from mixture_helpers import STRUCTURES, blobs
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.mixture import GaussianMixture as Peer

from inference import fit_em, fit_mixture
from inference.data.arrays import to_tensor
from inference.mixtures import default_prior
from ppl_models import PplError
from ppl_models.gmm import GaussianMixture

IRIS = load_iris().data
RNG = np.random.default_rng(0)
FAR = np.concatenate([RNG.normal(0, 1, (99, 3)), 1e6 + RNG.normal(0, 1, (50, 3))])


def read_only(x: np.ndarray) -> np.ndarray:
    copy = x.copy()
    copy.flags.writeable = False
    return copy


CONTAINERS = {
    "lists": IRIS.tolist(),
    "tuples": tuple(map(tuple, IRIS)),
    "negative strides": IRIS[::-1, ::-1][::-1, ::-1],
    "read only": read_only(IRIS),
    "big endian": IRIS.astype(">f8"),
    "column by column": np.asfortranarray(IRIS),
    "objects": IRIS.astype(object),
    "data frame": pd.DataFrame(IRIS, columns=list("abcd")),
    "nullable data frame": pd.DataFrame(IRIS).convert_dtypes(),
    "with gradient": torch.tensor(IRIS, requires_grad=True),
}


@pytest.mark.parametrize("x", CONTAINERS.values(), ids=CONTAINERS)
def test_every_container_of_numbers_is_the_same_data(x):
    options = {"max_iterations": 3, "tolerance": 0.0}
    expected, found = (fit_mixture(data, 3, **options) for data in (IRIS, x))
    assert found.log_likelihood == pytest.approx(expected.log_likelihood, abs=1e-9)
    np.testing.assert_array_equal(np.asarray(found.predict(x)), expected.predict(IRIS))


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int64", "uint64", "bool", "float16"])
def test_integers_and_half_precision_keep_their_values(dtype):
    numbers = RNG.integers(0, 2, (40, 3)).astype(dtype)
    np.testing.assert_array_equal(to_tensor(numbers).numpy(), numbers.astype(float))
    assert to_tensor(numbers).dtype == (torch.float32 if dtype == "float16" else torch.float64)


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1.0, 2.0], [3.0]], "give all rows one length"),
        ([["a", "b"], ["c", "d"]], "expected numbers, got <U1"),
        (pd.DataFrame({"a": [1, 2], "b": ["x", "y"]}), "leave out text"),
        (pd.DataFrame({"a": [1, None, 3]}, dtype="Int64"), "fill them in"),
        (np.ones((4, 2)) * 1j, "complex"),
        (torch.eye(4).to_sparse(), "sparse"),
        (None, "got None"),
        ([[1.0, np.inf], [0.0, 1.0]], "holds inf at index"),
        (IRIS * 1e-200, "give the data in another unit"),
        (IRIS * 1e200, "give the data in another unit"),
    ],
)
def test_what_is_no_data_is_refused(x, message):
    with pytest.raises(PplError, match=message):
        fit_mixture(x, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_components": 2.5}, "num_components must be a whole number of at least 1, got 2.5"),
        ({"num_components": True}, "whole number of at least 1, got True"),
        ({"num_components": -1}, "whole number of at least 1, got -1"),
        ({"num_components": 151}, "151 component.s. from 150 data"),
        ({"num_components": 150}, "150 components from 149 distinct data points .of 150"),
        ({"max_iterations": 2.5}, "max_iterations must be a whole number"),
        ({"tolerance": -1.0}, "tolerance must be a number, not negative, got -1"),
        ({"tolerance": float("nan")}, "tolerance must be a number"),
        ({"tolerance": "small"}, "tolerance must be a number"),
        ({"max_iter": 5}, "What scikit-learn calls max_iter is max_iterations here"),
        ({"epochs": 5}, "unknown option of method 'em' 'epochs'"),
        ({"method": "svi", "tolerance": 5}, "unknown option of method 'svi' 'tolerance'"),
        ({"min_scale": 0.0}, "min_scale must be positive and finite"),
        ({"min_scale": [1.0, 2.0]}, "min_scale has 2 entries for 4 dimensions"),
        ({"min_scale": [1.0] * 4, "covariance": "spherical"}, "takes one number for min_scale"),
    ],
)
def test_options_out_of_bounds_are_refused(options, message):
    with pytest.raises(PplError, match=message):
        fit_mixture(IRIS, **options)


@pytest.mark.parametrize("covariance", STRUCTURES)
@pytest.mark.parametrize(
    ("factor", "offset", "dtype"),
    [
        *((1e6, 0, "f8"), (1e-6, 0, "f8"), (1, 1e6, "f8"), (1, 1e9, "f8")),
        *((1, 1e4, "f4"), (1e30, 0, "f4"), (1e-30, 0, "f4")),
    ],
)
def test_the_unit_of_the_data_does_not_matter(covariance, factor, offset, dtype):
    """The log-likelihood is that of the original data: only the Jacobian of the unit is added."""
    given = (factor * IRIS + offset).astype(dtype)
    expected = fit_mixture(IRIS, 3, covariance=covariance)
    found = fit_mixture(given, 3, covariance=covariance)
    shift = 4 * np.log(factor)
    assert found.log_likelihood + shift == pytest.approx(expected.log_likelihood, abs=2e-3)
    assert found.log_prob(given).mean() == pytest.approx(found.log_likelihood, abs=1e-3)
    assert (found.predict(given) == expected.predict(IRIS)).mean() > 0.98


@pytest.mark.parametrize("covariance", ["full", "tied", "diagonal"])
def test_the_unit_of_each_dimension_does_not_matter(covariance):
    units = np.array([1e6, 1.0, 1e-6, 30.0])
    expected, found = (fit_mixture(x, 3, covariance=covariance) for x in (IRIS, IRIS * units))
    shift = np.log(units).sum()
    assert found.log_likelihood + shift == pytest.approx(expected.log_likelihood, abs=1e-6)
    weak, other = (
        fit_mixture(x, 3, covariance=covariance, method="map") for x in (IRIS, IRIS * units)
    )
    assert other.log_likelihood + shift == pytest.approx(weak.log_likelihood, abs=1e-6)


def test_unscaled_data_are_fitted_no_worse_than_by_scikit_learn():
    """Breast cancer: dimensions of scales from 0.003 to 570."""
    x = load_breast_cancer().data
    theirs = Peer(2, random_state=0).fit(x).score(x)
    assert theirs == pytest.approx(39.05, abs=0.01)
    assert fit_mixture(x, 2).log_likelihood > theirs
    assert fit_mixture(x, 2, method="map").log_likelihood > theirs - 10  # a prior has its price


def test_a_cluster_far_away_widens_nobody_s_floor():
    found = fit_mixture(FAR, 2)
    theirs = Peer(2, random_state=0).fit(FAR).score(FAR)
    assert found.log_likelihood == pytest.approx(theirs, abs=1e-3)
    assert float(found.program.owner.floor.max()) < 0.01


@pytest.mark.parametrize("method", ["em", "map"])
@pytest.mark.parametrize("covariance", STRUCTURES)
def test_constant_columns_and_more_dimensions_than_data(covariance, method):
    columns = np.c_[blobs(60).numpy(), np.full(60, 7.3), np.zeros(60)]
    wide = RNG.normal(size=(10, 30))
    for x, num in ((columns, 3), (wide, 2), (wide, 10)):
        found = fit_mixture(x, num, covariance=covariance, method=method)
        assert np.isfinite(found.log_prob(x)).all()
        assert found.log_prob(x).mean() == pytest.approx(found.log_likelihood, abs=1e-3)
    assert (fit_mixture(columns, 3).locs[:, 2] - 7.3).abs().max() < 1e-9


def test_data_that_begin_with_duplicates_are_taken():
    """The first 100,000 are one point: valid data, and few of the rest are in a sample."""
    x = np.concatenate([np.zeros((100_000, 2)), RNG.normal(5, 1, (5, 2))])
    found = fit_mixture(x, 3, covariance="diagonal", max_iterations=3)
    assert np.isfinite(found.log_likelihood)
    with pytest.raises(PplError, match=r"7 components from 6 distinct data points .of 100005"):
        fit_mixture(x, 7)


def test_options_of_numpy_s_types_are_taken():
    found = fit_mixture(
        IRIS, np.int64(2), min_scale=np.full(4, 0.1), tolerance=np.float32(1e-3), seed=np.int64(1)
    )
    torch.testing.assert_close(found.program.owner.floor, torch.full((4,), 0.1).double())
    assert float(found.covariances.diagonal(dim1=-2, dim2=-1).min()) > 0.01


def test_a_floor_for_each_dimension_is_kept_by_every_structure():
    floors = (0.5, 0.01)
    for covariance in ("full", "tied", "diagonal"):
        mixture = GaussianMixture((2,), 2, covariance, min_scale=floors).double()
        fit_em(mixture, blobs(50))
        thin = torch.eye(2).double() if covariance == "tied" else torch.eye(2).expand(2, 2, 2)
        mixture.set_moments(
            torch.ones(2) / 2,
            torch.zeros(2, 2),
            1e-9 * (torch.ones(2, 2) if covariance == "diagonal" else thin),
        )
        variances = mixture.moments().covariances
        if covariance != "diagonal":
            variances = variances.diagonal(dim1=-2, dim2=-1)
        assert bool((variances >= torch.tensor(floors).double().square() * 0.999).all())


def test_a_start_of_a_saved_mixture_is_restored_with_its_floor():
    mixture = GaussianMixture((2,), 3).double()
    fit_em(mixture, 1000 * blobs(100))
    again = GaussianMixture((2,), 3).double()
    again.load_state_dict(mixture.state_dict())
    torch.testing.assert_close(again.floor, mixture.floor)
    torch.testing.assert_close(again.log_prob(blobs(10)), mixture.log_prob(blobs(10)))
    assert float(again.floor.min()) > 0.1


def test_the_prior_has_the_units_of_the_data():
    units = np.array([1.0, 1e4])
    one, other = (default_prior(torch.as_tensor(x), 3) for x in (IRIS[:, :2], IRIS[:, :2] * units))
    np.testing.assert_allclose(other["scale"], one["scale"] * units**2)
    assert isinstance(default_prior(torch.as_tensor(IRIS), 3, "spherical")["scale"], float)


def test_no_warning_leaves_a_fit():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fit_mixture(np.repeat(np.eye(4), 6, 0), 4)  # k-means would warn of duplicates
