"""What the ELBO estimators share.

An estimator is a ``pyro.infer.ELBO``: it works in stock ``pyro.infer.SVI`` and in
:func:`inference.fit`. Its objective is a pure function of the guide's and the model's trace,
as one tensor, and reads no tensor's value in Python, so that a whole step can be traced.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.infer import ELBO, TraceEnum_ELBO
from pyro.infer.util import is_validation_enabled
from pyro.poutine.subsample_messenger import _Subsample
from pyro.util import check_model_guide_match, check_site_shape
from torch import Tensor

from ppl_models.errors import ProgramError

Site = Mapping[str, Any]


class Traces(NamedTuple):
    """One run of the guide and of the model replayed against it."""

    model: poutine.Trace
    guide: poutine.Trace


def run_traces(
    model: Callable[..., Any], guide: Callable[..., Any], args: Sequence[Any], kwargs: Any
) -> Traces:
    """Trace the guide, then the model with the guide's values."""
    guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
    replayed = poutine.replay(model, trace=guide_trace)
    return Traces(poutine.trace(replayed).get_trace(*args, **kwargs), guide_trace)


def sample_sites(trace: poutine.Trace) -> Iterator[tuple[str, Site]]:
    """The sample sites of a trace, without those by which plates record their subsample."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not isinstance(site["fn"], _Subsample):
            yield name, site


def scaled_log_prob(site: Site) -> Tensor:
    """Log density of a site's value, with the site's scale and mask: batch shape."""
    log_prob = site["fn"].log_prob(site["value"], *site["args"], **site["kwargs"])
    return scale_and_mask(log_prob, site["scale"], site["mask"])


class Estimator(ELBO):
    """Base class: subclasses say what one pair of traces contributes to the objective.

    Args:
        num_particles: draws from the guide per step.
        vectorize_particles: take them in one pass, through an outermost plate.
        max_plate_nesting: as in Pyro; guessed from the first run when left out.
    """

    name: ClassVar[str]
    """The name that ``fit(..., estimator=)`` takes."""
    objective: ClassVar[str] = "ELBO"
    latents: ClassVar[str]
    """Which latents it serves: continuous, discrete or both."""
    reference: ClassVar[str]

    def __init__(
        self,
        num_particles: int = 1,
        *,
        vectorize_particles: bool = False,
        max_plate_nesting: float = float("inf"),
    ) -> None:
        super().__init__(
            num_particles=num_particles,
            vectorize_particles=vectorize_particles,
            max_plate_nesting=max_plate_nesting,
        )

    @abstractmethod
    def particle_elbo(self, traces: Traces) -> Tensor:
        """The objective that one pair of traces gives (a scalar; higher is better).

        With vectorized particles this is the sum over them.
        """

    def _get_trace(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Traces:
        traces = run_traces(model, guide, args, kwargs)
        if is_validation_enabled():
            check_traces(traces, self.max_plate_nesting)
        return traces

    def differentiable_loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> Tensor:
        """−objective, with auxiliary losses, as a scalar that backpropagates; nats per batch."""
        elbos = [self.particle_elbo(t) for t in self._get_traces(model, guide, args, kwargs)]
        total = sum(elbos[1:], elbos[0])
        return -total if self.num_particles == 1 else -total / self.num_particles

    def loss(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """An estimate of the loss, as Pyro's ``SVI.evaluate_loss`` wants it."""
        with torch.no_grad():
            return float(self.differentiable_loss(model, guide, *args, **kwargs))

    def loss_and_grads(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> float:
        """Backpropagate the loss and return it, as Pyro's ``SVI.step`` wants it."""
        loss = self.differentiable_loss(model, guide, *args, **kwargs)
        if loss.requires_grad:
            loss.backward(retain_graph=self.retain_graph)
        return float(loss.detach())


def check_traces(traces: Traces, max_plate_nesting: float = float("inf")) -> None:
    """Refuse a model and guide that do not match.

    Raises:
        ProgramError: a latent of the model is missing from the guide.
    """
    in_guide = {name for name, _ in sample_sites(traces.guide)}
    for name, site in sample_sites(traces.model):
        if not site["is_observed"] and name not in in_guide:
            raise ProgramError(
                f"latent site {name!r} of the model is not in the guide (which has "
                f"{sorted(in_guide) or 'no sites'}). Sample it in the guide, or observe it "
                "with obs=."
            )
    check_weights_agree(traces)
    check_model_guide_match(traces.model, traces.guide, max_plate_nesting)
    for trace in traces:
        trace.compute_log_prob()
        for _, site in sample_sites(trace):
            check_site_shape(site, max_plate_nesting)


def require_enumeration(estimator: ELBO) -> None:
    """Refuse an estimator that cannot sum out a latent which the guide leaves out.

    Raises:
        ProgramError: naming one that can.
    """
    if not isinstance(estimator, TraceEnum_ELBO):
        raise ProgramError(
            "the model has enumerated latents, which the guide leaves out; they need an estimator "
            "that sums them out: pyro.infer.TraceEnum_ELBO"
        )


def set_plate_nesting(estimator: ELBO, traces: Traces) -> None:
    """Tell an estimator the depth of plates, which it would else find out by a run of its own.

    That run would draw random numbers anew after every resume.
    """
    if estimator.max_plate_nesting < float("inf"):
        return
    dims = [
        frame.dim
        for trace in traces
        for _, site in sample_sites(trace)
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    ]
    vectorized = estimator.vectorize_particles and estimator.num_particles > 1
    estimator.max_plate_nesting = max((-d for d in dims), default=0) + vectorized


def check_weights_agree(traces: Traces) -> None:
    """Refuse a latent whose scale (plates, ``poutine.scale``) or mask differs in the guide.

    Raises:
        ProgramError: naming the site; log p and log q would be weighed differently.
    """
    for name, site in sample_sites(traces.model):
        guide_site = traces.guide.nodes.get(name)
        if site["is_observed"] or guide_site is None:
            continue
        ours, theirs = (float(torch.as_tensor(s["scale"])) for s in (site, guide_site))
        if ours != theirs:
            raise ProgramError(
                f"latent site {name!r} has scale {ours:g} in the model but {theirs:g} in the "
                "guide, so its KL term would be no KL. Use the same plate sizes (num_data) and "
                "poutine.scale in both."
            )
        if (site["mask"] is None) != (guide_site["mask"] is None):
            raise ProgramError(
                f"latent site {name!r} is masked in the model or the guide alone; mask it in both"
            )


def require_reparameterized(name: str, site: Site, estimator: str) -> None:
    """Refuse a guide site whose draws carry no gradient.

    Raises:
        ProgramError: the site's distribution has no ``rsample``.
    """
    if not site["fn"].has_rsample:
        kind = type(site["fn"]).__name__
        raise ProgramError(
            f"estimator {estimator!r} needs reparameterized draws, but guide site {name!r} is "
            f"{kind}, which has no rsample: its gradient would be silently wrong. Use an "
            "estimator for discrete latents, such as pyro.infer.TraceGraph_ELBO() (score "
            "function) or pyro.infer.TraceEnum_ELBO() (enumeration)."
        )
