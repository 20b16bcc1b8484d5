"""Schedules of the objective as effect handlers.

They act in training alone: evaluation takes log densities without any scale, so the reported
ELBO is never affected. A handler is put around model **and** guide, as :func:`inference.fit` does
with its ``handlers``; in stock Pyro, ``SVI(handler.around_model(model),
handler.around_guide(guide), ...)``, with ``handler.at(step)`` before each step. A further one is in
:mod:`inference.kl_balance`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable
from typing import Any, ClassVar

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from inference.densities import DATA_PLATE
from inference.elbo.analytic_kl import closed_form_kl
from inference.elbo.traces import PARTICLES, Site, masked_log_prob
from inference.schedules import StepSchedule, exponential, linear
from ppl_models.errors import PplError
from ppl_models.program import auxiliary_loss

Run = Callable[..., Any]


class Handler(Messenger):
    """What acts on latent sites in training, by numbers that may change from step to step.

    Args:
        sites: names of the latent sites; all when left out.
    """

    changing: ClassVar[tuple[str, ...]] = ()
    """Attributes that change from step to step: the inputs of a compiled step."""

    def __init__(self, sites: Collection[str] | None = None) -> None:
        super().__init__()
        self.sites = sites

    def __repr__(self) -> str:
        """With what it was set to, so that a resumed run can be known to be the same."""
        fixed = {
            name: value
            for name, value in vars(self).items()
            if isinstance(value, int | float | tuple | list) and name not in self.changing
        }
        return f"{type(self).__name__}({', '.join(f'{k}={v}' for k, v in fixed.items())})"

    def at(self, step: int) -> None:
        """Take the values for the step of this number (from 0)."""

    def numbers(self) -> dict[str, float]:
        """The present values of what changes."""
        return {name: getattr(self, name) for name in self.changing}

    def around_guide(self, guide: Run) -> Run:
        """The guide with this handler."""
        return self(guide)

    def around_model(self, model: Run) -> Run:
        """The model with this handler."""
        return self(model)

    def acts_on(self, msg: Any) -> bool:
        """Whether a sample message is of a latent site that it acts on."""
        if msg["is_observed"] or isinstance(msg["fn"], _Subsample):
            return False
        return self.sites is None or msg["name"] in self.sites


class KLWeight(Handler):
    """Weighs the KL term of latent sites, log p(z) and log q(z) alike.

    Scaling one alone would be a different objective. Observed sites and auxiliary losses keep
    their weight.

    Args:
        weight: factor of the KL term; may be changed between steps.
        sites: names of the latent sites it weighs; all when left out.
    """

    changing: ClassVar[tuple[str, ...]] = ("weight",)

    def __init__(self, weight: float = 1.0, sites: Collection[str] | None = None) -> None:
        super().__init__(sites)
        self.weight = weight

    def _pyro_sample(self, msg: Any) -> None:
        neutral = isinstance(self.weight, float) and self.weight == 1.0
        if not neutral and self.acts_on(msg):
            msg["scale"] = msg["scale"] * self.weight


class KLSchedule(KLWeight):
    """A KL weight that is a function of the step.

    Args:
        schedule: such as :func:`inference.schedules.cyclical`.
        sites: names of the latent sites it weighs; all when left out.
    """

    def __init__(self, schedule: StepSchedule, sites: Collection[str] | None = None) -> None:
        super().__init__(sites=sites)
        self.schedule = schedule
        self.at(0)

    def at(self, step: int) -> None:
        """Set the weight."""
        self.weight = float(self.schedule(step))


class KLWarmup(KLSchedule):
    """Linear warm-up of the KL term from zero to one.

    Args:
        num_steps: steps until the weight is one; 0 means no warm-up.
        sites: names of the latent sites; all when left out.

    References:
        Sønderby, Raiko, Maaløe, Sønderby, Winther: Ladder Variational Autoencoders, 2016,
        arXiv:1602.02282, section 3.1.

    Raises:
        PplError: a negative number of steps.
    """

    def __init__(self, num_steps: int, sites: Collection[str] | None = None) -> None:
        if num_steps < 0:
            raise PplError(f"kl_warmup must not be negative, got {num_steps}")
        self.num_steps = num_steps
        super().__init__(linear(num_steps) if num_steps else lambda step: 1.0, sites)

    def numbers(self) -> dict[str, float]:
        """The weight, unless there is no warm-up."""
        return super().numbers() if self.num_steps else {}


class KLAnnealing(KLSchedule):
    """A KL weight whose distance from one falls by a factor at every step.

    With ``FreeBits(0.2 * D)`` it is Sketch-RNN's objective, weight · max(rate, floor).

    Args:
        decay: the factor R, between 0 and 1.
        start: the weight at the first step.
        sites: names of the latent sites; all when left out.

    References:
        Ha, Eck: A Neural Representation of Sketch Drawings, 2018, arXiv:1704.03477, section 3.2.
    """

    def __init__(
        self, decay: float = 0.99995, start: float = 0.01, sites: Collection[str] | None = None
    ) -> None:
        self.decay, self.start = decay, start
        super().__init__(exponential(decay, start), sites)


class RateObjective(Handler, ABC):
    """Puts another function of the rate in the place of the rate.

    The rate of the batch, KL(q ‖ p) in nats per datum, is taken in closed form where there is one
    and from the draws elsewhere. What the objective has in its place is added as an auxiliary
    loss, a named site in the model's trace.
    """

    def __init__(self, sites: Collection[str] | None = None) -> None:
        super().__init__(sites)
        self._guide: dict[str, Site] = {}
        self._seen: dict[str, Site] | None = None
        self.sizes: dict[str, int] = {}
        """Numbers in the batch's draw of each site."""

    @abstractmethod
    def penalty(self, rates: dict[str, Tensor], scales: dict[str, Any]) -> Tensor:
        """What is added to Σ scale · rate, nats per datum; a scalar.

        Args:
            rates: by site, nats per datum.
            scales: what weighs each in the objective (beta, a warm-up).
        """

    def _pyro_post_sample(self, msg: Any) -> None:
        if self._seen is not None and self.acts_on(msg):
            self._seen[msg["name"]] = dict(msg)

    def _recorded(self, run: Run, args: Any, kwargs: Any) -> tuple[Any, dict[str, Site]]:
        self._seen = {}
        try:
            with self:
                value = run(*args, **kwargs)
            return value, self._seen
        finally:
            self._seen = None

    def around_guide(self, guide: Run) -> Run:
        """The guide, whose latents are remembered."""

        def recorded(*args: Any, **kwargs: Any) -> Any:
            value, self._guide = self._recorded(guide, args, kwargs)
            return value

        return recorded

    def around_model(self, model: Run) -> Run:
        """The model, with the loss at its end."""

        def recorded(*args: Any, **kwargs: Any) -> Any:
            value, sites = self._recorded(model, args, kwargs)
            pairs = {n: (self._guide[n], s) for n, s in sites.items() if n in self._guide}
            self._guide = {}
            if not pairs:
                raise PplError(
                    f"{type(self).__name__} found none of its latent sites "
                    f"({', '.join(self.sites) if self.sites else 'all'}) in guide and model"
                )
            kl = {name: _kl(*pair) for name, pair in pairs.items()}
            self.sizes = {name: site["value"].numel() for name, (site, _) in pairs.items()}
            data, particles = _counts([site for _, site in pairs.values()], kl.values())
            rates = {name: term.sum() / (data * particles) for name, term in kl.items()}
            scales = {name: site["scale"] for name, (_, site) in pairs.items()}
            # Once for all particles: their plate, which is around the model, repeats it for each.
            auxiliary_loss(type(self).__name__, data * self.penalty(rates, scales))
            return value

        return recorded


def _counts(sites: Iterable[Site], terms: Iterable[Tensor]) -> tuple[int, int]:
    """How many data, and how many particles in one pass, the terms of these sites are of."""
    sizes = {f.name: f.size for site in sites for f in site["cond_indep_stack"] if f.vectorized}
    particles = sizes.get(PARTICLES, 1)
    data = sizes.get(DATA_PLATE) or max(term.numel() for term in terms) // particles
    return data, particles


def _kl(guide_site: Site, model_site: Site) -> Tensor:
    """KL(q ‖ p) of a site, batch shape, without scale."""
    model_site = model_site | {"value": guide_site["value"]}
    closed = closed_form_kl(guide_site | {"scale": 1.0}, model_site)
    return masked_log_prob(guide_site) - masked_log_prob(model_site) if closed is None else closed


class FreeBits(RateObjective):
    """max(nats, rate) for the rate of each latent site: below that much, it costs nothing.

    Args:
        nats: per datum and site.
        sites: names of the latent sites; all when left out.

    References:
        Kingma, Salimans, Jozefowicz, Chen, Sutskever, Welling: Improving Variational Inference
        with Inverse Autoregressive Flow, 2016, arXiv:1606.04934, appendix C.8.
    """

    def __init__(self, nats: float, sites: Collection[str] | None = None) -> None:
        if not nats > 0:
            raise PplError(f"free bits must be positive (nats per site), got {nats}")
        super().__init__(sites)
        self.nats = nats

    def penalty(self, rates: dict[str, Tensor], scales: dict[str, Any]) -> Tensor:
        """Σ scale · (max(nats, rate) − rate)."""
        short = [scales[name] * torch.relu(self.nats - rate) for name, rate in rates.items()]
        return sum(short[1:], short[0])


class Capacity(RateObjective):
    """gamma · |rate − capacity| in the place of the rate, all sites together.

    The capacity grows, so that the code takes up one factor of variation after the other.

    Args:
        nats: the capacity per datum at the end.
        num_steps: over which it grows from 0, linearly; 0: it is there from the start.
        gamma: the penalty.
        sites: names of the latent sites; all when left out.

    References:
        Burgess et al.: Understanding disentangling in beta-VAE, 2018, arXiv:1804.03599, eq. 8.
    """

    changing: ClassVar[tuple[str, ...]] = ("capacity",)

    def __init__(
        self,
        nats: float,
        num_steps: int = 0,
        gamma: float = 1000.0,
        sites: Collection[str] | None = None,
    ) -> None:
        if not nats > 0 or not gamma > 0:
            raise PplError(f"capacity and gamma must be positive, got {nats} and {gamma}")
        super().__init__(sites)
        self.nats, self.num_steps = nats, num_steps
        self.gamma = gamma
        self.schedule = linear(num_steps, 0.0, nats) if num_steps else lambda step: nats
        self.at(0)

    def at(self, step: int) -> None:
        """Set the capacity."""
        self.capacity = float(self.schedule(step))

    def penalty(self, rates: dict[str, Tensor], scales: dict[str, Any]) -> Tensor:
        """Gamma · |Σ rate − capacity| − Σ scale · rate."""
        parts = list(rates.values())
        total = sum(parts[1:], parts[0])
        weighed = [scales[name] * rate for name, rate in rates.items()]
        return self.gamma * (total - self.capacity).abs() - sum(weighed[1:], weighed[0])
