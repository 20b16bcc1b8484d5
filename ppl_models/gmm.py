"""The mixture of Gaussians.

Generative story, for each datum in the plate ``data``:

    z ~ Categorical(weights)            site ``z``, a number: the component it comes from
    x ~ Normal(locs[z], covariances[z]) site ``x``, x_shape: the datum

The guide is empty: z is summed out in parallel (``infer={"enumerate": "parallel"}``), so the
objective is the log-likelihood log Σ_z p(z) p(x | z) itself, its gradient exact in every
minibatch, and the posterior of z, the responsibilities, is known in closed form:

    p(z = k | x) = weights[k] Normal(x; locs[k], covariances[k]) / Σ_j (the same of j)

With a ``prior`` (:class:`ppl_models.mixture_prior.ConjugatePrior`) its log density weighs
training as the auxiliary loss ``prior``, once for the whole data set: the fit is then the MAP,
while ELBO and samples stay those of the mixture at that point.

Shapes: B or N data, K components, D the elements of a datum.

References:
    Dempster, Laird, Rubin: Maximum Likelihood from Incomplete Data via the EM Algorithm,
    Journal of the Royal Statistical Society B 39, 1977.
    Bishop: Pattern Recognition and Machine Learning, chapter 9, 2006.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn

from ppl_models.covariances import COVARIANCES
from ppl_models.distributions import Shaped
from ppl_models.errors import PplError, UnknownNameError, whole_number
from ppl_models.mixture_prior import ConjugatePrior
from ppl_models.program import auxiliary_loss

NARROWEST = 1e-3
"""Smallest scale of a component, relative to the data's."""
CHUNK = 2**24
"""Numbers, N·K·D, that :meth:`GaussianMixture.log_joint` holds at once."""


class Moments(NamedTuple):
    """Parameters of a mixture as they are spoken of."""

    weights: Tensor
    """(K,), adding up to one."""
    locs: Tensor
    """(K, D)."""
    covariances: Tensor
    """Full (K, D, D), tied (D, D), diagonal (K, D), spherical (K,)."""


class GaussianMixture(PyroModule):
    """A mixture of K Gaussians, its component identity summed out.

    Args:
        x_shape: shape of one datum; images are taken as vectors.
        num_components: K.
        covariance: ``full``, ``tied`` (one for all), ``diagonal`` or ``spherical``.
        zero_mean: every loc is fixed at zero, as for image patches without their mean.
        prior: a :class:`~ppl_models.mixture_prior.ConjugatePrior`, or its arguments by name;
            fits are then MAP.
        min_scale: no component is narrower than this, one number or one a dimension, in units of
            the data; when left out, a thousandth of ``unit``, which a start sets to the scales
            of the data.
    """

    unit: Tensor
    started: Tensor

    def __init__(
        self,
        x_shape: Sequence[int] = (1,),
        num_components: int = 10,
        covariance: str = "full",
        zero_mean: bool = False,
        prior: Mapping[str, Any] | None = None,
        min_scale: float | Sequence[float] | None = None,
    ) -> None:
        super().__init__()
        num_components = whole_number("num_components", num_components)
        if covariance not in COVARIANCES:
            raise UnknownNameError("covariance", covariance, COVARIANCES)
        if zero_mean and covariance == "tied":
            raise PplError(
                "zero_mean with tied covariance makes all components the same; use full, diagonal "
                "or spherical"
            )
        self.x_shape = tuple(x_shape)
        self.dim = math.prod(self.x_shape)
        self.num_components = num_components
        self.covariance = covariance
        self.zero_mean = zero_mean
        self.min_scale = self._check_floor(min_scale)
        self.prior = ConjugatePrior(**prior) if isinstance(prior, Mapping) else prior
        if self.prior is not None:
            self.prior.check(covariance, self.dim)
        self.logits = nn.Parameter(torch.zeros(num_components))
        if not zero_mean:
            self.raw_locs = nn.Parameter(torch.randn(num_components, self.dim))
        self.spread = COVARIANCES[covariance](num_components, self.dim)
        # Locs are learned in units of the data's scales: one learning rate serves all data.
        self.register_buffer("unit", torch.ones(self.dim))
        self.register_buffer("started", torch.tensor(False))
        self._set_floor()

    def _check_floor(
        self, min_scale: float | Sequence[float] | None
    ) -> float | tuple[float, ...] | None:
        """``min_scale`` as plain numbers.

        Raises:
            PplError: it is not positive, or not of one number a dimension.
        """
        if min_scale is None:
            return None
        min_scale = min_scale.tolist() if hasattr(min_scale, "tolist") else min_scale
        numbers = tuple(min_scale) if isinstance(min_scale, Sequence) else (min_scale,)
        if not all(0 < number < math.inf for number in numbers):
            raise PplError(f"min_scale must be positive and finite, got {min_scale}")
        if not isinstance(min_scale, Sequence):
            return float(min_scale)
        if self.covariance == "spherical":
            raise PplError("a spherical covariance takes one number for min_scale")
        if len(numbers) != self.dim:
            raise PplError(f"min_scale has {len(numbers)} entries for {self.dim} dimensions")
        return numbers

    def _set_floor(self) -> None:
        if self.min_scale is None:
            self.spread.set_floor(NARROWEST * self.unit)
        else:
            self.spread.set_floor(torch.as_tensor(self.min_scale, dtype=torch.float64))

    @property
    def floor(self) -> Tensor:
        """Smallest scales that a component may have, (D,), or (1,) of a spherical one."""
        return self.spread.floor

    @property
    def locs(self) -> Tensor:
        """Means of the components, (K, D)."""
        if self.zero_mean:
            return self.unit.new_zeros(self.num_components, self.dim)
        return self.raw_locs * self.unit

    def component(self, z: Tensor) -> dist.TorchDistribution:
        """p(x | z): batch shape of z, event shape x_shape."""
        flat = self.spread.components(self.locs, z)
        return flat if len(self.x_shape) == 1 else Shaped(flat, self.x_shape)

    @pyro_method
    def model(
        self, x: Tensor | None = None, *, size: int = 1, num_data: int | None = None
    ) -> Tensor:
        """p(x, z); without data, ``size`` draws from the mixture."""
        rows = size if x is None else len(x)
        index = torch.arange(rows, device=self.unit.device)
        with pyro.plate("data", max(num_data or rows, rows), subsample=index, dim=-1):
            if self.prior is not None and x is not None:
                penalty = -self.log_prior() / max(num_data or rows, rows)
                auxiliary_loss("prior", penalty.expand(rows))
            z = pyro.sample(
                "z", dist.Categorical(logits=self.logits), infer={"enumerate": "parallel"}
            )  # (B,), or (K, 1) where it is summed out
            return pyro.sample("x", self.component(z), obs=x)  # (B, x_shape)

    @pyro_method
    def guide(self, x: Tensor) -> None:
        """Empty: z is summed out of the model."""

    def log_prior(self) -> Tensor:
        """Log density of the parameters under the prior, a scalar; zero without one."""
        if self.prior is None:
            return self.logits.new_zeros(())
        covariances = self.spread.matrices()
        if self.covariance == "spherical":
            covariances = covariances.unsqueeze(-1)
        locs = None if self.zero_mean else self.locs
        return self.prior.log_prob(
            self.logits.log_softmax(0), locs, covariances, self.covariance, self.dim
        )

    def _flat(self, x: Tensor) -> Tensor:
        """Data (N, x_shape) as (N, D).

        Raises:
            PplError: of another shape.
        """
        if tuple(x.shape[1:]) != self.x_shape or x.dim() == 0:
            raise PplError(
                f"expected data of shape (N, {', '.join(map(str, self.x_shape))}), got "
                f"{tuple(x.shape)}"
            )
        return x.reshape(len(x), self.dim).to(self.unit)

    def log_joint(self, x: Tensor) -> Tensor:
        """Log p(x, z) of data (N, x_shape) for every z, (N, K)."""
        rows = max(1, CHUNK // (self.num_components * self.dim))
        parts = [self.spread.log_prob(part, self.locs) for part in self._flat(x).split(rows)]
        return torch.cat(parts) + self.logits.log_softmax(0)

    def log_prob(self, x: Tensor) -> Tensor:
        """Log p(x) of data (N, x_shape), (N,); nats."""
        return self.log_joint(x).logsumexp(-1)

    def responsibilities(self, x: Tensor) -> Tensor:
        """p(z | x) of data (N, x_shape), (N, K)."""
        return self.log_joint(x).softmax(-1)

    def posterior(self, x: Tensor) -> dist.TorchDistribution:
        """p(z | x), to draw z from: batch shape (N,)."""
        return dist.Categorical(logits=self.log_joint(x))

    @torch.no_grad()
    def sample(self, size: int = 1) -> Tensor:
        """Draws from the mixture, (size, x_shape)."""
        rows = max(1, CHUNK // self.dim**2)  # a draw takes a matrix of its own
        sizes = [min(rows, size - start) for start in range(0, size, rows)]
        return torch.cat([self.model(size=part) for part in sizes])

    @property
    def num_free_parameters(self) -> int:
        """What AIC and BIC count: weights (K − 1), locs and covariances."""
        locs = 0 if self.zero_mean else self.num_components * self.dim
        return self.num_components - 1 + locs + self.spread.num_free

    def bic(self, x: Tensor) -> float:
        """Bayesian information criterion of the fit on data (N, x_shape); lower is better."""
        return self._criterion(x, math.log(len(x)))

    def aic(self, x: Tensor) -> float:
        """Akaike's information criterion of the fit on data (N, x_shape); lower is better."""
        return self._criterion(x, 2.0)

    @torch.no_grad()
    def _criterion(self, x: Tensor, price: float) -> float:
        return price * self.num_free_parameters - 2 * float(self.log_prob(x).double().sum())

    @torch.no_grad()
    def moments(self) -> Moments:
        """Weights, locs and covariances, in float64, which keeps thin covariances positive."""
        weights = self.logits.double().softmax(0)
        return Moments(weights, self.locs.double(), self.spread.matrices(torch.float64))

    @torch.no_grad()
    def set_unit(self, unit: Tensor) -> None:
        """Take these scales of the data, (D,); :meth:`set_moments` is to follow.

        Gradients learn the locs in these units, and without a ``min_scale`` the smallest scales
        are a thousandth of them.
        """
        self.unit.copy_(unit)
        self._set_floor()

    @torch.no_grad()
    def set_moments(self, weights: Tensor, locs: Tensor | None, covariances: Tensor) -> None:
        """Take these parameters, as a closed form found them.

        Args:
            weights: (K,), not negative, adding up to one.
            locs: (K, D); not looked at where they are fixed at zero.
            covariances: full (K, D, D), tied (D, D), diagonal (K, D), spherical (K,).

        Raises:
            PplError: not of these shapes, or no weights, or a covariance not positive definite.
        """
        num, dim = self.num_components, self.dim
        total = float(weights.double().sum())
        if tuple(weights.shape) != (num,) or bool((weights < 0).any()) or abs(total - 1) > 1e-4:
            raise PplError(
                f"expected {num} weights, none negative, that add up to 1; got shape "
                f"{tuple(weights.shape)} with sum {total:g}"
            )
        self.spread.set(covariances.to(self.unit.device))
        if not self.zero_mean:
            if locs is None or tuple(locs.shape) != (num, dim):
                got = None if locs is None else tuple(locs.shape)
                raise PplError(f"expected locs of shape ({num}, {dim}), got {got}")
            self.raw_locs.copy_(locs.to(self.unit.device) / self.unit)
        tiny = torch.finfo(torch.float32).tiny
        self.logits.copy_(weights.double().clamp_min(tiny).log())
        self.started.fill_(True)
