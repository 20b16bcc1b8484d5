"""The pathwise gradient of discrete latents made continuous, and its straight-through form."""

from __future__ import annotations

from typing import Any, ClassVar

from inference.elbo.analytic_kl import AnalyticKL
from inference.elbo.relaxation import RelaxMessenger, check_relaxable
from inference.elbo.traces import Traces, run_traces
from ppl_models.errors import PplError


class GumbelSoftmax(AnalyticKL):
    """The ELBO with Gumbel-softmax draws in the place of discrete ones, by their path.

    Bernoulli and OneHotCategorical sites of the guide are drawn as softmax((logits + noise) / τ),
    and the model is run on these. KL terms are those of the discrete distributions, in closed
    form where ``analytic_kl`` has them so, and else linear in the draw. Reparameterized sites
    stay pathwise. The gradient is that of another objective, so biased for the ELBO's; less so,
    and noisier, as the temperature falls.

    Args:
        num_particles: draws from the guide per step.
        temperature: τ > 0; may be changed between steps.
        **options: ``vectorize_particles``, ``max_plate_nesting``.

    References:
        Jang, Gu, Poole: Categorical Reparameterization with Gumbel-Softmax, 2017,
        arXiv:1611.01144. Maddison, Mnih, Teh: The Concrete Distribution, 2017, arXiv:1611.00712.
    """

    name: ClassVar[str] = "gumbel_softmax"
    objective: ClassVar[str] = "relaxed ELBO"
    latents: ClassVar[str] = "Bernoulli, OneHotCategorical (others pathwise)"
    bias: ClassVar[str] = "biased, less so as temperature → 0"
    reference: ClassVar[str] = "Jang et al. 2017, arXiv:1611.01144"
    straight_through: ClassVar[bool] = False

    def __init__(self, num_particles: int = 1, *, temperature: float = 0.5, **options: Any) -> None:
        if not temperature > 0:
            raise PplError(f"temperature must be positive, got {temperature}")
        super().__init__(num_particles, **options)
        self.temperature = temperature

    def check(self, traces: Traces) -> None:
        """Refuse sites that can be neither relaxed nor reparameterized."""
        check_relaxable(traces, self.name)

    def run(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Traces:
        """Guide and model with continuous draws at the discrete sites."""
        with RelaxMessenger(self.temperature, self.straight_through):
            return run_traces(model, guide, args, kwargs)


class StraightThrough(GumbelSoftmax):
    """The ELBO at discrete draws, with the gradient of Gumbel-softmax ones.

    The value is an unbiased estimate of the ELBO; the gradient is biased.

    References:
        Bengio, Léonard, Courville: Estimating or Propagating Gradients Through Stochastic
        Neurons, 2013, arXiv:1308.3432. Jang et al. 2017, arXiv:1611.01144, section 2.2.
    """

    name: ClassVar[str] = "straight_through"
    objective: ClassVar[str] = "ELBO"
    bias: ClassVar[str] = "biased"
    reference: ClassVar[str] = "Jang et al. 2017, arXiv:1611.01144, section 2.2"
    straight_through: ClassVar[bool] = True
