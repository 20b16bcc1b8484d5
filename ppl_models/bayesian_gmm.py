"""The mixture of Gaussians with a prior on all of its parameters, and a posterior over them.

Generative story:

    weights ~ Dirichlet(concentration)       site ``weights``, (K,)
    for every component k, in the plate ``components``:
        loc_k   ~ Normal(0, loc_scale)       site ``locs``, (K, D)
        scale_k ~ LogNormal(0, 1)            site ``scales``, (K, D)
        corr_k  ~ LKJCholesky(lkj)           site ``corr``, (K, D, D): Cholesky factor of a
                                             correlation matrix; none where D is one, or for
                                             diagonal covariances
    for each datum, in the plate ``data``:
        z ~ Categorical(weights)             site ``z``, summed out
        x ~ Normal(loc_z, diag(scale_z) corr_z)   site ``x``, x_shape

The scales of the priors are in units of ``unit``, which a start from data sets to theirs. The
guide is mean field: a normal for every parameter in unconstrained space, centred where EM's
parameters would be set. Draws of ``model(size=n)`` come from the prior, as it says.

Shapes: B data, K components, D the elements of a datum.

References:
    Lewandowski, Kurowicka, Joe: Generating random correlation matrices based on vines and
    extended onion method, Journal of Multivariate Analysis 100, 2009.
    Kucukelbir et al.: Automatic Differentiation Variational Inference, JMLR 18, 2017,
    arXiv:1603.00788.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from pyro.nn import PyroModule, pyro_method
from torch import Tensor, nn
from torch.distributions import biject_to, constraints
from torch.distributions.transforms import Transform

from ppl_models.distributions import Shaped
from ppl_models.errors import PplError

SUPPORTS = {
    "weights": constraints.simplex,
    "locs": constraints.real_vector,
    "scales": constraints.positive,
    "corr": constraints.corr_cholesky,
}
"""Of the global sites, in the order in which they are drawn."""
START_WIDTH = 0.05
"""Standard deviation of the guide where it starts, in unconstrained space."""


class BayesianGaussianMixture(PyroModule):
    """A mixture of K Gaussians whose parameters are latent too.

    Args:
        x_shape: shape of one datum; images are taken as vectors.
        num_components: K.
        covariance: ``full`` or ``diagonal``.
        concentration: of the Dirichlet; below 1 it prefers few components.
        loc_scale: of the prior of the locs, in units of the data's scales.
        lkj: concentration of the correlations; 1 is flat, above it prefers independence.
    """

    unit: Tensor
    center: Tensor

    def __init__(
        self,
        x_shape: Sequence[int] = (1,),
        num_components: int = 10,
        covariance: str = "full",
        concentration: float = 1.0,
        loc_scale: float = 3.0,
        lkj: float = 1.0,
    ) -> None:
        super().__init__()
        if num_components < 2:
            raise PplError(f"num_components must be at least 2 here, got {num_components}")
        if covariance not in ("full", "diagonal"):
            raise PplError(f"covariance must be full or diagonal here, got {covariance!r}")
        self.x_shape = tuple(x_shape)
        self.dim = math.prod(self.x_shape)
        self.num_components = num_components
        self.correlated = covariance == "full" and self.dim > 1
        self.concentration, self.loc_scale, self.lkj = concentration, loc_scale, lkj
        self.register_buffer("unit", torch.ones(self.dim))
        self.register_buffer("center", torch.zeros(self.dim))
        sizes = {
            "weights": (num_components - 1,),
            "locs": (num_components, self.dim),
            "scales": (num_components, self.dim),
            "corr": (num_components, self.dim * (self.dim - 1) // 2),
        }
        self.sites = [name for name in SUPPORTS if name != "corr" or self.correlated]
        start = {name: torch.zeros(sizes[name]) for name in self.sites}
        start["locs"] = torch.randn(sizes["locs"])
        self.means = nn.ParameterDict(start)
        widths = {n: torch.full(sizes[n], math.log(START_WIDTH)) for n in self.sites}
        self.log_widths = nn.ParameterDict(widths)

    def components(self) -> pyro.plate:
        """The plate of components."""
        return pyro.plate("components", self.num_components, dim=-1)

    def prior(self, site: str) -> dist.TorchDistribution:
        """P of a global site; locs and scales in units of the data."""
        zeros = torch.zeros_like(self.unit)
        if site == "weights":
            return dist.Dirichlet(self.concentration * self.unit.new_ones(self.num_components))
        if site == "locs":
            return dist.Normal(zeros, self.loc_scale).to_event(1)
        if site == "scales":
            return dist.LogNormal(zeros, 1.0).to_event(1)
        return dist.LKJCholesky(self.dim, self.unit.new_tensor(self.lkj))

    @pyro_method
    def model(
        self, x: Tensor | None = None, *, size: int = 1, num_data: int | None = None
    ) -> Tensor:
        """p(parameters, x, z); without data, ``size`` draws from the prior predictive."""
        rows = size if x is None else len(x)
        weights = pyro.sample("weights", self.prior("weights"))
        with self.components():
            locs = pyro.sample("locs", self.prior("locs")) * self.unit + self.center  # (K, D)
            scales = pyro.sample("scales", self.prior("scales")) * self.unit  # (K, D)
            if self.correlated:
                corr = pyro.sample("corr", self.prior("corr"))  # (K, D, D)
        index = torch.arange(rows, device=self.unit.device)
        with pyro.plate("data", max(num_data or rows, rows), subsample=index, dim=-1):
            z = pyro.sample("z", dist.Categorical(weights), infer={"enumerate": "parallel"})
            if self.correlated:
                factor = scales.unsqueeze(-1) * corr
                flat = dist.MultivariateNormal(locs[z], scale_tril=factor[z])
            else:
                flat = dist.Normal(locs[z], scales[z]).to_event(1)
            fn = flat if len(self.x_shape) == 1 else Shaped(flat, self.x_shape)
            return pyro.sample("x", fn, obs=x)

    def posterior(self, site: str) -> dist.TorchDistribution:
        """Q of a global site."""
        normal = dist.Normal(self.means[site], self.log_widths[site].exp()).to_event(1)
        return dist.TransformedDistribution(normal, [self._transform(site)])

    @staticmethod
    def _transform(site: str) -> Transform:
        return biject_to(SUPPORTS[site])

    @pyro_method
    def guide(self, x: Tensor) -> None:
        """q(parameters); z is summed out of the model."""
        pyro.sample("weights", self.posterior("weights"))
        with self.components():
            for site in self.sites[1:]:
                pyro.sample(site, self.posterior(site))

    @torch.no_grad()
    def start_at(self, weights: Tensor, locs: Tensor, covariances: Tensor, unit: Tensor) -> None:
        """Centre the guide at parameters, such as those that EM found.

        Args:
            weights: (K,), positive.
            locs: (K, D).
            covariances: (K, D, D).
            unit: (D,), scales of the data; the priors are in these units, about their mean.
        """
        self.unit.copy_(unit)
        self.center.copy_(weights @ locs)
        scales = covariances.diagonal(dim1=-2, dim2=-1).sqrt()
        values = {
            "weights": weights.clamp_min(1e-6) / weights.clamp_min(1e-6).sum(),
            "locs": (locs - weights @ locs) / unit,
            "scales": scales / unit,
        }
        if self.correlated:
            matrices = covariances / (scales.unsqueeze(-1) * scales.unsqueeze(-2))
            values["corr"] = torch.linalg.cholesky(matrices)
        for site, value in values.items():
            self.means[site].copy_(self._transform(site).inv(value))
