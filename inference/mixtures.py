"""Gaussian mixtures in one call: :func:`fit_mixture`.

Shapes: N data, K components, D the elements of a datum.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from inference.data.checks import check_fields
from inference.data.dataset import DataSet, MemorySplit, describe
from inference.em import Repair, fit_em
from inference.em.start import check_enough
from inference.runs import build_for
from inference.svi import fit
from ppl_models.errors import PplError, UnknownNameError
from ppl_models.program import Program

METHODS = ("em", "svi", "map")
NARROWEST = 1e-3
"""Smallest scale of a component, relative to the data's."""


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
        return _like(x, self.program.owner.log_prob(self._data(x)))

    @torch.no_grad()
    def responsibilities(self, x: Any) -> Any:
        """p(z | x) of data (N, ...), (N, K)."""
        return _like(x, self.program.owner.responsibilities(self._data(x)))

    def predict(self, x: Any) -> Any:
        """The likeliest component of data (N, ...), (N,)."""
        return self.responsibilities(x).argmax(-1)

    def sample(self, size: int = 1) -> Tensor:
        """Draws, (size, ...)."""
        return self.program.owner.sample(size)

    def bic(self, x: Any) -> float:
        """Bayesian information criterion on data (N, ...); lower is better."""
        return self.program.owner.bic(self._data(x))

    def aic(self, x: Any) -> float:
        """Akaike's information criterion on data (N, ...); lower is better."""
        return self.program.owner.aic(self._data(x))

    def _data(self, x: Any) -> Tensor:
        data = torch.as_tensor(x)
        check_fields({"x": data}, "data")
        return data


def _like(given: Any, found: Tensor) -> Any:
    """On the side that the data came from."""
    return found.to(given.device) if isinstance(given, Tensor) else found.cpu().numpy()


def fit_mixture(
    x: np.ndarray | Tensor,
    num_components: int = 10,
    *,
    covariance: str = "full",
    method: str = "em",
    zero_mean: bool = False,
    prior: Any = None,
    min_scale: float | None = None,
    seed: int = 0,
    **options: Any,
) -> FittedMixture:
    """Fit a Gaussian mixture to all of the data.

    Args:
        x: data (N, D), (N,), or images (N, C, H, W).
        num_components: K.
        covariance: ``full``, ``tied``, ``diagonal`` or ``spherical``.
        method: ``em`` (closed form), ``svi`` (gradient descent in minibatches on the same
            log-likelihood), or ``map`` (EM with a prior).
        zero_mean: fix every loc at zero.
        prior: a :class:`ppl_models.mixture_prior.ConjugatePrior` or its arguments by name; for
            ``map``, that of Fraley & Raftery (2007) when left out.
        min_scale: no component is narrower in any direction; a thousandth of the data's scale
            when left out.
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
    data = torch.as_tensor(x)
    check_fields({"x": data}, "data")
    if not data.is_floating_point():
        data = data.to(torch.get_default_dtype())
    flat = data.reshape(len(data), -1)
    check_enough(flat[:100_000].double(), num_components)
    if min_scale is None:
        min_scale = NARROWEST * float(flat.var(0, correction=0).mean().sqrt())
    if method == "map" and prior is None:
        prior = default_prior(flat, num_components)
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
    double = data.train.tensors["x"].dtype == torch.float64  # type: ignore[attr-defined]
    defaults: dict[str, Any] = {
        "epochs": 100,
        "learning_rate": 1e-2,
        "lr_schedule": "cosine",
        "precision": "64" if double else "32",
        "keep": "last",
        "progress": False,
    }
    found = fit(program, data, seed=seed, **defaults | options)
    history = [row["valid_elbo"] for row in found.history]  # on the training data themselves
    return FittedMixture(found.program, history[-1], history, None)


def default_prior(x: Tensor, num_components: int) -> dict[str, Any]:
    """A weak prior in the units of the data, after Fraley & Raftery (2007).

    Args:
        x: data (N, D).
        num_components: K.

    Returns:
        Arguments of :class:`ppl_models.mixture_prior.ConjugatePrior`.

    Raises:
        PplError: no dimension of the data varies.
    """
    dim = x.shape[1]
    variances = x.double().var(0, correction=0)
    if not float(variances.max()) > 0:
        raise PplError("no dimension of the data varies; there is no scale for a prior")
    share = num_components ** (2 / dim)
    scale = float(variances.mean()) / share
    return {
        "concentration": 1.0,
        "scale": scale,
        "df": dim + 2.0,
        "mean": tuple(x.double().mean(0).tolist()),
        "mean_strength": 0.01,
    }
