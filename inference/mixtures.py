"""Gaussian mixtures in one call: :func:`fit_mixture`.

Shapes: N data, K components, D the elements of a datum.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from inference.data.arrays import to_tensor
from inference.data.checks import check_fields
from inference.data.dataset import DataSet, MemorySplit, describe
from inference.em import Repair, fit_em
from inference.em.start import scales_of
from inference.runs import build_for
from inference.svi import fit
from ppl_models.errors import PplError, UnknownNameError, whole_number
from ppl_models.program import Program

METHODS = ("em", "svi", "map")
UPDATES, PASSES = 1000, 10
"""Steps of gradient descent, and passes over the data, at least."""
BATCH = 500
"""Data a step of gradient descent, at most; of few data it is a tenth."""
EXACT = 1000.0
"""Data further from zero than so many times their range are taken in float64."""
SMALLEST = 1e-9
"""So are those of a smaller range: cubes and fourth powers have to fit."""
THEIR_NAMES = {
    "n_components": "num_components",
    "covariance_type": "covariance",
    "max_iter": "max_iterations",
    "tol": "tolerance",
    "random_state": "seed",
    "reg_covar": "min_scale (its square root)",
    "weights_init": "fit_em and start='current'",
    "means_init": "fit_em and start='current'",
}
"""What scikit-learn calls options that are here as well."""


@dataclass(repr=False)
class FittedMixture:
    """A mixture that was fitted to data; arrays in, arrays out, and tensors for tensors."""

    program: Program
    log_likelihood: float
    """Per datum, of the data it was fitted to; nats."""
    history: list[float]
    """Log-likelihood per datum, by iteration of EM or epoch of gradient descent."""
    converged: bool | None
    """Whether EM stopped because it no longer rose; None for gradient descent."""
    repairs: list[Repair] = field(default_factory=list)
    """Components that EM found empty or collapsed, and what it did."""

    def __repr__(self) -> str:
        mixture = self.program.owner
        return (
            f"FittedMixture({mixture.num_components} components, {mixture.covariance} covariance, "
            f"log-likelihood {self.log_likelihood:.4f} nats a datum)"
        )

    @property
    def weights(self) -> Tensor:
        """(K,)."""
        return self.program.owner.moments().weights

    @property
    def locs(self) -> Tensor:
        """(K, D)."""
        return self.program.owner.moments().locs

    @property
    def covariances(self) -> Tensor:
        """Full (K, D, D), tied (D, D), diagonal (K, D), spherical (K,)."""
        return self.program.owner.moments().covariances

    @torch.no_grad()
    def log_prob(self, x: Any) -> Any:
        """Log p(x) of data (N, ...), (N,); nats."""
        return _like(x, self.program.owner.log_prob(_take(x)))

    @torch.no_grad()
    def responsibilities(self, x: Any) -> Any:
        """p(z | x) of data (N, ...), (N, K)."""
        return _like(x, self.program.owner.responsibilities(_take(x)))

    def predict(self, x: Any) -> Any:
        """The likeliest component of data (N, ...), (N,)."""
        return self.responsibilities(x).argmax(-1)

    def sample(self, size: int = 1) -> Tensor:
        """Draws, (size, ...)."""
        return self.program.owner.sample(size)

    def bic(self, x: Any) -> float:
        """Bayesian information criterion on data (N, ...); lower is better."""
        return self.program.owner.bic(_take(x))

    def aic(self, x: Any) -> float:
        """Akaike's information criterion on data (N, ...); lower is better."""
        return self.program.owner.aic(_take(x))


def _take(x: Any) -> Tensor:
    """Data as a tensor, checked."""
    data = to_tensor(x)
    check_fields({"x": data}, "data")
    return data


def _like(given: Any, found: Tensor) -> Any:
    """On the side that the data came from."""
    return found.to(given.device) if isinstance(given, Tensor) else found.cpu().numpy()


def fit_mixture(
    x: Any,
    num_components: int = 10,
    *,
    covariance: str = "full",
    method: str = "em",
    zero_mean: bool = False,
    prior: Any = None,
    min_scale: float | Sequence[float] | None = None,
    seed: int = 0,
    **options: Any,
) -> FittedMixture:
    """Fit a Gaussian mixture to all of the data.

    Args:
        x: data (N, D), (N,), or images (N, C, H, W): an array, a tensor, lists, or a data frame.
            Integers are taken as float64.
        num_components: K.
        covariance: ``full``, ``tied``, ``diagonal`` or ``spherical``.
        method: ``em`` (closed form), ``svi`` (gradient descent in minibatches on the same
            log-likelihood), or ``map`` (EM with a prior).
        zero_mean: fix every loc at zero.
        prior: a :class:`ppl_models.mixture_prior.ConjugatePrior` or its arguments by name; for
            ``map``, that of Fraley & Raftery (2007) when left out.
        min_scale: no component is narrower, in units of the data: one number, or one a dimension;
            when left out, a thousandth of the data's own scale in each dimension. Its square is
            scikit-learn's ``reg_covar``.
        seed: of the start (k-means++) and of the order of minibatches.
        **options: of :func:`inference.em.fit_em` (``max_iterations``, ``tolerance``, ...), or of
            :func:`inference.fit` (``epochs``, ``learning_rate``, ...).

    Returns:
        A :class:`FittedMixture`.

    Raises:
        PplError: data or options are not fit for it; the message says what to do.

    Example:
        >>> import numpy as np
        >>> from inference import fit_mixture
        >>> x = np.random.default_rng(0).normal(size=(500, 2))
        >>> mixture = fit_mixture(x, num_components=3)
        >>> mixture.responsibilities(x).shape
        (500, 3)
    """
    if method not in METHODS:
        raise UnknownNameError("method", method, METHODS)
    _check_options(method, options)
    num_components = whole_number("num_components", num_components)
    seed = whole_number("seed", seed, 0)
    data = _exact(_take(x))
    if method == "map" and prior is None:
        prior = default_prior(data.reshape(len(data), -1), num_components, covariance)
    arguments = {
        "num_components": num_components,
        "covariance": covariance,
        "zero_mean": zero_mean,
        "prior": prior,
        "min_scale": min_scale,
    }
    whole = MemorySplit({"x": data})
    dataset = DataSet(describe("data", whole.tensors), whole, whole, whole)
    program = build_for("gmm", arguments, dataset.info)
    if method == "svi":
        return _by_gradients(program, dataset, seed, options)
    found = fit_em(program, whole, seed=seed, **options)
    return FittedMixture(
        found.program, found.log_likelihood, found.history, found.converged, found.repairs
    )


def _by_gradients(
    program: Program, data: DataSet, seed: int, options: dict[str, Any]
) -> FittedMixture:
    """By :func:`inference.fit`, from EM's start."""
    x = data.train.tensors["x"]  # type: ignore[attr-defined]
    size = options.get("batch_size", max(10, min(BATCH, math.ceil(len(x) / 10))))
    defaults: dict[str, Any] = {
        "epochs": max(PASSES, math.ceil(UPDATES / math.ceil(len(x) / size))),
        "batch_size": size,
        "learning_rate": 0.05,
        "lr_schedule": "cosine",
        "precision": "64" if x.dtype == torch.float64 else "32",
        "keep": "last",
        "progress": False,
    }
    found = fit(program, data, seed=seed, **defaults | options)
    history = [row["valid_elbo"] for row in found.history]  # on the training data themselves
    return FittedMixture(found.program, history[-1], history, None)


def _check_options(method: str, options: dict[str, Any]) -> None:
    """Refuse options that the method does not take.

    Raises:
        UnknownNameError: naming those that it takes.
    """
    taker = fit if method == "svi" else fit_em
    known = set(inspect.signature(taker).parameters) - {"program", "data", "seed"}
    for name in options:
        if name not in known:
            meant = THEIR_NAMES.get(name)
            hint = f"What scikit-learn calls {name} is {meant} here." if meant else ""
            raise UnknownNameError(f"option of method {method!r}", name, known, hint)


def _exact(x: Tensor) -> Tensor:
    """Data in float64 if float32 rounds their spread away, or cannot hold its powers."""
    if x.dtype == torch.float64:
        return x
    flat = x.reshape(len(x), -1)
    low, high = flat.amin(0).double(), flat.amax(0).double()
    extent = high - low
    far = torch.maximum(low.abs(), high.abs()) > EXACT * extent
    extreme = (extent > 1 / SMALLEST) | (extent < SMALLEST)
    return x.double() if bool(((far | extreme) & (extent > 0)).any()) else x


def default_prior(x: Tensor, num_components: int, covariance: str = "full") -> dict[str, Any]:
    """A weak prior in the units of the data, after Fraley & Raftery (2007).

    Args:
        x: data (N, D).
        num_components: K.
        covariance: structure; ``spherical`` has one scale, the others one a dimension.

    Returns:
        Arguments of :class:`ppl_models.mixture_prior.ConjugatePrior`.

    Raises:
        PplError: no dimension of the data varies.
    """
    dim = x.shape[1]
    if bool((x == x[0]).all()):
        raise PplError("no dimension of the data varies; there is no scale for a prior")
    variances = scales_of(x.double(), x.dtype).square() / num_components ** (2 / dim)
    whole = covariance == "spherical"
    scale = float(variances.mean()) if whole else tuple(variances.tolist())
    return {
        "concentration": 1.0,
        "scale": scale,
        "df": dim + 2.0,
        "mean": tuple(x.double().mean(0).tolist()),
        "mean_strength": 0.01,
    }
