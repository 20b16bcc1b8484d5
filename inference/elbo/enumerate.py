"""Exact sums over discrete latents.

Symbols: as Pyro packs a tensor, each dimension has a letter, that of a plate or of an
enumerated site.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any, ClassVar

import opt_einsum
import torch
from pyro import poutine
from pyro.infer.traceenum_elbo import _compute_model_factors
from pyro.infer.util import is_validation_enabled
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.util import prune_subsample_sites
from pyro.util import check_model_guide_match, check_site_shape, check_traceenum_requirements
from torch import Tensor

from inference.elbo.base import Estimator
from inference.elbo.states import EnumerateLatents, check_enumerable
from inference.elbo.traces import Traces, run_model
from ppl_models.errors import ProgramError


class Enumerate(Estimator):
    """The ELBO, with sums over discrete latents in the place of draws.

    Discrete sites of the guide are summed over their states, those that stand together in
    ``to_event`` over their joint states. Discrete latents of the model that the guide leaves out
    are summed out of the model: with nothing else, the objective is log p(x) itself. Sites with
    ``rsample`` are drawn, and pathwise.

    References:
        Obermeyer et al.: Tensor Variable Elimination for Plated Factor Graphs, 2019,
        arXiv:1902.03210.
    """

    name: ClassVar[str] = "enumerate"
    latents: ClassVar[str] = "discrete of few states (others pathwise)"
    bias: ClassVar[str] = "none; exact"
    reference: ClassVar[str] = "Obermeyer et al. 2019, arXiv:1902.03210"
    sums_out: ClassVar[bool] = True

    def check(self, traces: Traces) -> None:
        """Refuse latents that can be neither summed out nor reparameterized."""
        check_enumerable(traces, self.name)

    def run(self, model: Any, guide: Any, args: Any, kwargs: Any) -> Traces:
        """Guide and model over all states of their discrete latents."""
        guide_states = EnumMessenger(first_available_dim=-1 - int(self.max_plate_nesting))
        guide = guide_states(EnumerateLatents()(guide))
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        model = EnumMessenger()(EnumerateLatents(given=guide_trace)(model))
        model_trace = run_model(model, guide_trace, args, kwargs)
        if is_validation_enabled():
            check_model_guide_match(model_trace, guide_trace, self.max_plate_nesting)
        guide_trace, model_trace = map(prune_subsample_sites, (guide_trace, model_trace))
        for trace in (model_trace, guide_trace):
            trace.compute_log_prob()
        if is_validation_enabled():
            check_traceenum_requirements(model_trace, guide_trace)
            for trace in (model_trace, guide_trace):
                for site in trace.nodes.values():
                    if site["type"] == "sample":
                        check_site_shape(site, self.max_plate_nesting)
        guide_trace.pack_tensors()
        model_trace.pack_tensors(guide_trace.plate_to_symbol)
        return Traces(model_trace, guide_trace)

    def surrogate(self, runs: list[Traces]) -> Tensor:
        """Σ over states of q times the ELBO's terms."""
        parts = [_expected_elbo(traces) for traces in runs]
        return sum(parts[1:], parts[0]) / self.num_particles


def _expected_elbo(traces: Traces) -> Tensor:
    factors = _guide_factors(traces.guide)
    plates = {symbol: plate for plate, symbol in traces.guide.plate_to_symbol.items()}
    total = torch.zeros(())
    for cost in _model_costs(traces):
        total = total + expectation(cost, factors, plates)
    for _, site in _samples(traces.guide):
        total = total - expectation(site["packed"]["log_prob"], factors, plates)
    return total


def _samples(trace: poutine.Trace) -> list[tuple[str, Any]]:
    return [(n, s) for n, s in trace.nodes.items() if s["type"] == "sample"]


def _guide_factors(guide: poutine.Trace) -> dict[str, Tensor]:
    """Log q of the enumerated sites, packed, by the symbol that their states run along."""
    return {
        site["infer"]["_enumerate_symbol"]: site["packed"]["unscaled_log_prob"]
        for _, site in _samples(guide)
        if site["infer"].get("_enumerate_dim") is not None
    }


def _model_costs(traces: Traces) -> list[Tensor]:
    """The model's log densities, packed, with its own enumerated latents summed out."""
    try:
        costs, log_factors, _, sum_dims, scale = _compute_model_factors(traces.model, traces.guide)
    except ValueError as error:
        raise ProgramError(
            f"estimator 'enumerate' cannot sum out the model's latents: {error} A weight of the KL "
            "term (kl_warmup) is none: what is summed out has no KL term."
        ) from error
    found = [cost for terms in costs.values() for cost in terms]
    if log_factors:
        summed = contract_tensor_tree(OrderedDict(log_factors), sum_dims)
        found += [packed.scale_and_mask(t, scale=scale) for ts in summed.values() for t in ts]
    return found


def expectation(cost: Tensor, factors: dict[str, Tensor], plates: dict[str, str]) -> Tensor:
    """E_q of a packed cost, summed over its plates: a scalar.

    Args:
        cost: packed; along the symbols of enumerated sites, it has a value for each state.
        factors: log q of the enumerated sites by their symbol.
        plates: names of the plates by their symbol.

    Raises:
        ProgramError: what stands outside a plate depends on enumerated sites inside it.
    """
    needed = set(cost._pyro_dims) & factors.keys()  # type: ignore[attr-defined]
    if not needed:
        return cost.sum()
    relevant: dict[str, Tensor] = {}
    while needed - relevant.keys():  # with the sites that these depend on; the rest sum to one
        symbol = min(needed - relevant.keys())
        relevant[symbol] = factors[symbol]
        needed |= set(factors[symbol]._pyro_dims) & factors.keys()  # type: ignore[attr-defined]
    terms = [(f._pyro_dims, f.exp()) for f in relevant.values()]  # type: ignore[attr-defined]
    present = set().union(*(dims for dims, _ in terms))
    inside = [plates[d] for d in present - set(cost._pyro_dims) if d in plates]  # type: ignore[attr-defined]
    if inside:
        raise ProgramError(
            f"estimator 'enumerate' sums each element of plate {inside[0]!r} by itself, but a site "
            "outside it depends on the enumerated ones inside. Write these as one site with "
            "to_event, or use 'leave_one_out'."
        )
    kept = "".join(d for d in cost._pyro_dims if d in present)  # type: ignore[attr-defined]
    equation = ",".join(dims for dims, _ in terms) + "->" + kept
    probability = opt_einsum.contract(equation, *(p for _, p in terms), backend="torch")
    probability._pyro_dims = kept
    cost, probability = packed.broadcast_all(cost, probability)
    possible = probability > 0
    return (probability * torch.where(possible, cost, 0.0)).sum()
