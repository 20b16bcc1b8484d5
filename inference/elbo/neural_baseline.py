"""The score function with a baseline that a network reads off the data."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inference.elbo.decaying_average import DecayingAverage, key
from inference.elbo.terms import Plates, Terms, plates_of
from inference.elbo.traces import Site, Traces, sample_sites
from ppl_models.errors import ProgramError


class NeuralBaseline(DecayingAverage):
    """The score function, with a baseline for each datum from a network (NVIL).

    The baseline is m + s · C(x), where m and s are decaying mean and standard deviation of past
    costs, and the network C reads the observed values of the datum. C is trained, with the
    program's parameters, to the squared error of the standardized cost. Its parameters are in
    ``state``; ``fit`` and ``pyro.infer.SVI`` train them, a loop of one's own has to.

    Args:
        num_particles: K, draws from the guide per step.
        hidden_dim: width of the network's hidden layer.
        decay: weight of the past in the averages.
        **options: ``sites``, ``vectorize_particles``, ``max_plate_nesting``.

    References:
        Mnih, Gregor: Neural Variational Inference and Learning in Belief Networks, 2014,
        arXiv:1402.0030, section 2.3.
    """

    name: ClassVar[str] = "neural_baseline"
    reference: ClassVar[str] = "Mnih & Gregor 2014, arXiv:1402.0030, section 2.3"

    def __init__(self, num_particles: int = 1, *, hidden_dim: int = 100, **options: Any) -> None:
        super().__init__(num_particles, **options)
        self.hidden_dim = hidden_dim
        self._loss: Tensor | float = 0.0

    def prepare(self, traces: Traces) -> None:
        """Make the networks, one a score-function site."""
        super().prepare(traces)
        sites = dict(sample_sites(traces.guide))
        for name in self.score_sites(traces):
            seen = features(traces, plates_of(sites[name]))
            if seen is None:
                raise ProgramError(
                    f"estimator {self.name!r} reads its baseline off the datum, but no observed "
                    f"site stands in a plate with guide site {name!r}; use 'decaying_average' or "
                    "'leave_one_out'"
                )
            known: Any = getattr(self.state, f"{key(name)}_network", None)
            if known is None or known[0].in_features != seen.shape[-1]:
                self.state.add_module(f"{key(name)}_network", self._network(seen))

    def _network(self, seen: Tensor) -> nn.Module:
        first, last = nn.Linear(seen.shape[-1], self.hidden_dim), nn.Linear(self.hidden_dim, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        return nn.Sequential(first, nn.Tanh(), last).to(seen.device, seen.dtype)

    def surrogate(self, runs: list[Traces]) -> Tensor:
        """The objective, and the networks' squared error with value zero."""
        self._loss = 0.0
        return super().surrogate(runs)

    def signal(self, terms: Terms, site: str, cost: Tensor, runs: list[Traces]) -> Tensor:
        """The cost's excess over the network's prediction."""
        moments = self.moments(site, cost)
        mean, scale = moments.mean(), moments.scale()
        plates = terms.guide[site].plates
        seen = features(runs[0], plates)
        assert seen is not None
        network: Any = getattr(self.state, f"{key(site)}_network", None)
        if network is None:
            raise ProgramError(
                f"estimator {self.name!r} needs the same sites in every run, but {site!r} is new; "
                "use 'decaying_average' or 'leave_one_out'"
            )
        predicted = network(seen)[..., 0]
        predicted = predicted.reshape(_with_gaps(predicted, plates, cost.dim()))
        standardized = (cost - mean) / scale
        error = (standardized - predicted).square().mean()
        self._loss = self._loss + (error - error.detach())
        if torch.is_grad_enabled():
            moments.update(cost)
        return cost - mean - scale * predicted.detach()

    def baseline_loss(self) -> Tensor | float:
        """The networks' squared errors, of value zero."""
        loss, self._loss = self._loss, 0.0
        return loss


def _with_gaps(predicted: Tensor, plates: Plates, dims: int) -> list[int]:
    """The shape with ones for plates that the site is not in."""
    sizes = dict(zip(sorted(dim for _, dim in plates), predicted.shape, strict=True))
    return [sizes.get(dim, 1) for dim in range(-dims, 0)]


def features(traces: Traces, plates: Plates) -> Tensor | None:
    """The observed values of each element of the plates, (plates..., features), or None."""
    if not plates:
        return None
    found = list(_features(traces, sorted(dim for _, dim in plates), plates))
    return torch.cat(found, dim=-1) if found else None


def _in_plates(site: Site, plates: Plates) -> Tensor:
    """An observed value with the sizes of the plates, if it was given once for all of them."""
    value, batch = site["value"].detach(), site["fn"].batch_shape
    event_dim = len(site["fn"].event_shape)
    depth = max(-dim for _, dim in plates)
    own = [1] * (depth + event_dim - value.dim()) + list(value.shape)
    value, shape = value.reshape(own), own
    for _, dim in plates:
        shape[dim - event_dim] = batch[dim]
    return value.expand(shape)


def _features(traces: Traces, dims: list[int], plates: Plates) -> Iterator[Tensor]:
    for _, site in sample_sites(traces.model):
        auxiliary = site["infer"].get("is_auxiliary_loss")
        if not site["is_observed"] or auxiliary or not plates <= plates_of(site):
            continue
        value = _in_plates(site, plates)
        event_dim = len(site["fn"].event_shape)
        value = value.movedim([d - event_dim for d in dims], list(range(len(dims))))
        flat = value.flatten(len(dims)) if value.dim() > len(dims) else value.unsqueeze(-1)
        yield flat.to(torch.get_default_dtype() if not flat.is_floating_point() else flat.dtype)
