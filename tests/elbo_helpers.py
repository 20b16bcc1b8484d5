"""Copies of small programs, one a datum, and the exact expectations of their gradients.

Every datum has parameters of its own, so one backward pass over n data gives n independent
single-draw gradients, and a datum that leaked into another's gradient would show.

Shapes: n copies; S states, of which K particles take S^K; d elements of a parameter.
"""

from __future__ import annotations

import itertools
import math
from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from inference.elbo import ESTIMATORS, Estimator

LUCK = 4.0
"""Standard errors that a mean or a variance may be off: p = 6.3e-5 by luck for each of them."""


class Copies(nn.Module):
    """A program of one datum x, in n copies. Parameters: (n, d)."""

    x: ClassVar[float] = 0.9
    start: ClassVar[dict[str, object]]
    guide_names: ClassVar[tuple[str, ...]]
    """The guide's parameters."""

    def __init__(self, n: int = 1, **start: object):
        super().__init__()
        self.n = n
        for name, value in (self.start | start).items():
            one = torch.as_tensor(value, dtype=torch.get_default_dtype())
            self.register_parameter(name, nn.Parameter(one.expand(n, *one.shape).clone()))

    def data(self) -> Tensor:
        return torch.full((self.n,), self.x)

    def plate(self, num_data=None):
        rows = None if num_data is None else torch.arange(self.n)
        return pyro.plate("data", num_data or self.n, subsample=rows, dim=-1)

    def table(self) -> tuple[Tensor, Tensor, Tensor]:
        """Of one copy: log probability, log p(x, z) and log q(z) of each state, (S,) each.

        A continuous latent has quadrature nodes for states, at which it is reparameterized.
        """
        raise NotImplementedError


def nodes(count: int) -> tuple[Tensor, Tensor]:
    """Gauss-Hermite nodes and log weights of the standard normal distribution, (count,)."""
    points, weights = np.polynomial.hermite_e.hermegauss(count)
    log_weights = torch.as_tensor(weights).log() - 0.5 * math.log(2 * math.pi)
    return torch.as_tensor(points), log_weights


class GaussianCopies(Copies):
    """z ~ N(0, 1), x | z ~ N(z + b, ¼), q = N(m, σ²)."""

    x, s = 1.7, 0.5
    start: ClassVar[dict[str, object]] = {"b": 0.3, "m": 0.2, "log_sigma": -0.4}
    guide_names = ("m", "log_sigma")

    def model(self, x, num_data=None):
        with self.plate(num_data):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.b), 1.0))
            pyro.sample("x", dist.Normal(z + self.b, self.s), obs=x)

    def guide(self, x, num_data=None):
        with self.plate(num_data):
            pyro.sample("z", dist.Normal(self.m, self.log_sigma.exp()))

    def table(self):
        e, log_weights = nodes(60)
        z = self.m + self.log_sigma.exp() * e
        log_p = dist.Normal(0.0, 1.0).log_prob(z)
        log_p = log_p + dist.Normal(z + self.b, self.s).log_prob(torch.tensor(self.x))
        return log_weights, log_p, dist.Normal(self.m, self.log_sigma.exp()).log_prob(z)


def bits(count: int) -> Tensor:
    return torch.tensor(list(itertools.product([0.0, 1.0], repeat=count)))


class BitCopies(Copies):
    """Three bits of one site: b ~ Bernoulli(prior).to_event(1), x | b ~ N(b·w, scale²)."""

    start: ClassVar[dict[str, object]] = {
        "logits": [0.5, -0.8, 0.1],
        "prior": [-0.3, 0.2, 0.6],
        "w": [1.0, -0.7, 0.4],
        "log_scale": -0.3,
    }
    guide_names = ("logits",)

    def model(self, x, num_data=None):
        with self.plate(num_data):
            b = pyro.sample("b", dist.Bernoulli(logits=self.prior).to_event(1))
            loc = (b * self.w).sum(-1)
            pyro.sample("x", dist.Normal(loc, self.log_scale.exp()), obs=x)

    def guide(self, x, num_data=None):
        with self.plate(num_data):
            pyro.sample("b", dist.Bernoulli(logits=self.logits).to_event(1))

    def table(self):
        b = bits(self.logits.shape[-1]).to(self.w)
        log_p = dist.Bernoulli(logits=self.prior).to_event(1).log_prob(b)
        x = dist.Normal((b * self.w).sum(-1), self.log_scale.exp())
        log_q = dist.Bernoulli(logits=self.logits).to_event(1).log_prob(b)
        return log_q, log_p + x.log_prob(torch.tensor(self.x)), log_q


class CategoricalCopies(Copies):
    """A class by its index: c ~ Categorical(prior), x | c ~ N(w[c], ½)."""

    start: ClassVar[dict[str, object]] = {
        "logits": [0.5, -0.8, 0.1],
        "prior": [-0.3, 0.2, 0.6],
        "w": [1.0, -0.7, 0.4],
    }
    guide_names = ("logits",)

    def model(self, x, num_data=None):
        with self.plate(num_data):
            c = pyro.sample("c", dist.Categorical(logits=self.prior))
            pyro.sample("x", dist.Normal(self.location(c), 0.5), obs=x)

    def location(self, c):
        return Vindex(self.w)[torch.arange(self.n), c]

    def guide(self, x, num_data=None):
        with self.plate(num_data):
            pyro.sample("c", dist.Categorical(logits=self.logits))

    def table(self):
        log_q = self.logits[0].log_softmax(-1)
        x = dist.Normal(self.w[0], 0.5).log_prob(torch.tensor(self.x))
        return log_q, self.prior[0].log_softmax(-1) + x, log_q


class OneHotCopies(CategoricalCopies):
    """The same by a one-hot vector."""

    def model(self, x, num_data=None):
        with self.plate(num_data):
            c = pyro.sample("c", dist.OneHotCategorical(logits=self.prior))
            pyro.sample("x", dist.Normal((c * self.w).sum(-1), 0.5), obs=x)

    def guide(self, x, num_data=None):
        with self.plate(num_data):
            pyro.sample("c", dist.OneHotCategorical(logits=self.logits))


class TwoLayerCopies(Copies):
    """p(b2) p(b1 | b2) p(x | b1) with the guide q(b1) q(b2 | b1)."""

    start: ClassVar[dict[str, object]] = {
        "q1": 0.4,
        "q2": [-0.5, 1.2],
        "p2": 0.3,
        "p1": [-0.6, 1.5],
        "w": 0.8,
    }
    guide_names = ("q1", "q2")

    def model(self, x, num_data=None):
        with self.plate(num_data):
            b2 = pyro.sample("b2", dist.Bernoulli(logits=self.p2))
            b1 = pyro.sample("b1", dist.Bernoulli(logits=affine(self.p1, b2)))
            pyro.sample("x", dist.Normal(b1 * self.w, 0.5), obs=x)

    def guide(self, x, num_data=None):
        with self.plate(num_data):
            b1 = pyro.sample("b1", dist.Bernoulli(logits=self.q1))
            pyro.sample("b2", dist.Bernoulli(logits=affine(self.q2, b1)))

    def table(self):
        b1, b2 = bits(2).to(self.w).T
        log_q = dist.Bernoulli(logits=self.q1).log_prob(b1)
        log_q = log_q + dist.Bernoulli(logits=affine(self.q2, b1)).log_prob(b2)
        log_p = dist.Bernoulli(logits=self.p2).log_prob(b2)
        log_p = log_p + dist.Bernoulli(logits=affine(self.p1, b2)).log_prob(b1)
        x = dist.Normal(b1 * self.w, 0.5).log_prob(torch.tensor(self.x))
        return log_q, log_p + x, log_q


def affine(weights: Tensor, b: Tensor) -> Tensor:
    return weights[..., 0] + weights[..., 1] * b


class MixedCopies(Copies):
    """A discrete y and a continuous z given it, in model and guide."""

    start: ClassVar[dict[str, object]] = {
        "q": 0.4,
        "m": [0.1, 0.7],
        "log_sigma": -0.4,
        "p": -0.3,
        "e": [-0.2, 0.9],
        "w": 0.6,
    }
    guide_names = ("q", "m", "log_sigma")

    def model(self, x, num_data=None):
        with self.plate(num_data):
            y = pyro.sample("y", dist.Bernoulli(logits=self.p))
            z = pyro.sample("z", dist.Normal(affine(self.e, y), 1.0))
            pyro.sample("x", dist.Normal(z + self.w * y, 0.5), obs=x)

    def guide(self, x, num_data=None):
        with self.plate(num_data):
            y = pyro.sample("y", dist.Bernoulli(logits=self.q))
            pyro.sample("z", dist.Normal(affine(self.m, y), self.log_sigma.exp()))

    def table(self):
        e, log_weights = nodes(40)
        y, e = torch.zeros(2, 40).double() + torch.tensor([[0.0], [1.0]]), e.expand(2, 40)
        q_z = dist.Normal(affine(self.m, y), self.log_sigma.exp())
        z = q_z.loc + self.log_sigma.exp() * e
        log_q_y = dist.Bernoulli(logits=self.q).log_prob(y)
        log_p = dist.Bernoulli(logits=self.p).log_prob(y)
        log_p = log_p + dist.Normal(affine(self.e, y), 1.0).log_prob(z)
        log_p = log_p + dist.Normal(z + self.w * y, 0.5).log_prob(torch.tensor(self.x))
        log_q = log_q_y + q_z.log_prob(z)
        return (log_q_y + log_weights).flatten(), log_p.flatten(), log_q.flatten()


def tuples(values: Tensor, k: int) -> Tensor:
    """The values of K particles in each of their joint states, (K, S^K)."""
    return torch.stack([g.flatten() for g in torch.meshgrid(*[values] * k, indexing="ij")])


def bound(program: Copies, k: int = 1) -> Tensor:
    """E[log (1/K) Σ_k w_k] over all joint states; the ELBO where K = 1."""
    log_prob, log_p, log_q = program.table()
    log_w = tuples(log_p - log_q, k).logsumexp(0) - math.log(k)
    return (tuples(log_prob, k).sum(0).exp() * log_w).sum()


def wake(program: Copies, k: int) -> Tensor:
    """What has E[Σ_k w̃_k ∇(log p + log q)] for its gradient; of discrete latents."""
    log_prob, log_p, log_q = program.table()
    weights = tuples(log_p - log_q, k).detach().softmax(0)
    learned = (weights * (tuples(log_p, k) + tuples(log_q, k))).sum(0)
    return (tuples(log_prob, k).sum(0).exp().detach() * learned).sum()


def exact_gradients(kind: type[Copies], objective, *args, **start) -> dict[str, Tensor]:
    """Of one copy, (d,) each."""
    program = kind(1, **start).double()
    objective(program, *args).backward()
    return {name: p.grad[0] for name, p in program.named_parameters()}


def gradients(program: nn.Module, estimator, *args, **kwargs) -> dict[str, Tensor]:
    """Single-draw gradients of the objective, (n, d) each, in double precision."""
    args = args or (program.data(),)
    program.zero_grad()
    (-estimator.differentiable_loss(program.model, program.guide, *args, **kwargs)).backward()
    return {
        name: torch.zeros(p.shape).double() if p.grad is None else p.grad.double()
        for name, p in program.named_parameters()
    }


CONTINUOUS = (
    *("pathwise", "analytic_kl", "sticking_the_landing"),
    *("iwae", "doubly_reparameterized"),
)
"""Estimators that serve no discrete latent."""
K_SAMPLE = ("iwae", "doubly_reparameterized", "vimco", "reweighted_wake_sleep")


def served(name: str) -> type[Copies]:
    """A program that the estimator serves."""
    return GaussianCopies if name in CONTINUOUS else BitCopies


def make(name: str, num_particles: int | None = None, **options) -> Estimator:
    """An estimator by name, of as few particles as it takes unless told."""
    kind = ESTIMATORS[name]
    return kind(num_particles or kind.min_particles, **options)


def z_scores(found: Tensor, value: Tensor) -> Tensor:
    """Of the mean over copies, (d,); none where the draws have no noise and the value is right."""
    difference = found.mean(0) - value
    error = found.std(0) / math.sqrt(len(found))
    exact = difference.abs() < 1e-5 * (1 + value.abs())
    return torch.where(exact, 0.0, difference / error)


def worst(found: dict[str, Tensor], expected: dict[str, Tensor]) -> float:
    """The largest |z| of all elements of all parameters."""
    return max(float(z_scores(found[n], v).abs().max()) for n, v in expected.items())


def variance_z(found: Tensor, value: Tensor) -> Tensor:
    """Of the variance over copies, by the fourth moment, (d,)."""
    square = (found - found.mean(0)).square()
    error = square.std(0) / math.sqrt(len(found))
    exact = (square.mean(0) - value).abs() < 1e-5 * (1 + value.abs())
    return torch.where(exact, 0.0, (square.mean(0) - value) / error)
