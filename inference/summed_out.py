"""Latents of the model that the guide leaves out, summed over all their states, per datum.

Such a latent z has its exact posterior p(z | x) in the place of a guide: the datum's log weight is
log Σ_z p(x, z), its rate KL(p(z | x) ‖ p(z)) and its distortion −E log p(x | z) under it. The
expectations are read off the sum itself: with the log density of one site multiplied by β, the
derivative of log Σ_z in β at 1 is that log density's expectation under the posterior.

Shapes: K particles, B data.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
from pyro import poutine
from pyro.infer import infer_discrete
from pyro.ops import packed
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine.enum_messenger import EnumMessenger
from torch import Tensor

from inference.elbo.base import forked_rng, plate_depth
from inference.elbo.states import EnumerateLatents
from inference.elbo.traces import (
    Site,
    Traces,
    log_prob_of,
    masked_log_prob,
    run_model,
    run_traces,
    sample_sites,
)
from ppl_models.errors import ProgramError
from ppl_models.program import Batch, Program

IMPOSSIBLE = -1e30
"""Log probability of an impossible state, for which the derivative of the sum is zero, not NaN."""

Plate = tuple[str, int]


def enumerates(traces: Traces) -> bool:
    """Whether a latent of the model is summed out instead of being in the guide."""
    in_guide = {name for name, _ in sample_sites(traces.guide)}
    return any(
        name not in in_guide and not site["is_observed"] and site["infer"].get("enumerate")
        for name, site in sample_sites(traces.model)
    )


def shared_sums(traces: Traces) -> bool:
    """Whether a latent that is summed out is shared by data, which then have no numbers each."""
    model, guide = dict(sample_sites(traces.model)), dict(sample_sites(traces.guide))
    latents = [s for n, s in model.items() if not s["is_observed"] and n not in guide]
    observed = [_plates(s) for s in model.values() if s["is_observed"]]
    return bool(latents) and not all(
        _plates(latent) & frozenset.intersection(*observed) for latent in latents
    )


def _plates(site: Site) -> frozenset[str]:
    return frozenset(f.name for f in site["cond_indep_stack"] if f.vectorized)


def over_all_states(
    traces: Traces, model: Callable[..., Any], args: Sequence[Any], kwargs: Any
) -> Traces:
    """The run with the model's summed-out latents in all their states.

    Args:
        traces: a plain run.
        model: that was run.
        args: that it was run on.
        kwargs: its options.
    """
    return _all_states(traces.guide, plate_depth(traces), model, args, kwargs)


def _all_states(
    guide: poutine.Trace, depth: int, model: Callable[..., Any], args: Sequence[Any], kwargs: Any
) -> Traces:
    every = EnumMessenger(-1 - depth)(EnumerateLatents(given=guide)(model))
    return Traces(run_model(every, guide, args, kwargs), guide)


_DEPTHS: WeakKeyDictionary[Program, int | None] = WeakKeyDictionary()
"""Depth of the plates of programs that sum latents out; None for others."""
HEAD = 8
"""Rows from which that is read: with z drawn, a plain run may need far more memory."""


def run_summed(program: Program, batch: Batch, options: dict[str, Any]) -> Traces:
    """Run guide and model, with latents that are summed out in all their states.

    Args:
        program: in its scope.
        batch: fields (B, ...).
        options: of model and guide.
    """
    model, guide = program.run_model, program.run_guide
    if program not in _DEPTHS:
        head = {name: value[:HEAD] for name, value in batch.items()}
        with forked_rng():
            try:
                traces = run_traces(model, guide, (head,), options)
            except Exception:  # whatever a program makes of fewer rows
                return _plain_or_summed(program, batch, options)
        _DEPTHS[program] = plate_depth(traces) if enumerates(traces) else None
    depth = _DEPTHS[program]
    if depth is None:
        return run_traces(model, guide, (batch,), options)
    guide_trace = poutine.trace(guide).get_trace(batch, **options)
    return _all_states(guide_trace, depth, model, (batch,), options)


def _plain_or_summed(program: Program, batch: Batch, options: dict[str, Any]) -> Traces:
    traces = run_traces(program.run_model, program.run_guide, (batch,), options)
    if enumerates(traces):
        return over_all_states(traces, program.run_model, (batch,), options)
    return traces


def posterior_draw(
    traces: Traces, model: Callable[..., Any], args: Sequence[Any], kwargs: Any
) -> Traces:
    """The run with the summed-out latents drawn from their exact posterior.

    Args:
        traces: a plain run.
        model: that was run.
        args: that it was run on.
        kwargs: its options.
    """
    values = {name: site["value"] for name, site in sample_sites(traces.guide)}
    given = poutine.condition(EnumerateLatents(given=traces.guide)(model), data=values)
    drawn = infer_discrete(given, first_available_dim=-1 - plate_depth(traces))
    return Traces(poutine.trace(drawn).get_trace(*args, **kwargs), traces.guide)


def is_summed_out(trace: poutine.Trace) -> bool:
    """Whether a model's trace holds latents in all their states."""
    return any(_states_dim(site) is not None for _, site in sample_sites(trace))


def involved_in_sums(trace: poutine.Trace) -> list[str]:
    """Sites of a model's trace with all states that are summed out, or vary with one that is."""
    return [name for name, site in sample_sites(trace) if _has_states(site)]


def _states_dim(site: Site) -> int | None:
    return None if site["is_observed"] else site["infer"].get("_enumerate_dim")


class SummedOut:
    """The sums of a run over all states, and expectations under the exact posterior.

    Args:
        model: trace of the model with all states.
        plate: the data plate.
        rows: its size.

    Raises:
        ProgramError: a summed-out latent stands outside the data plate.
    """

    def __init__(self, model: poutine.Trace, plate: Plate, rows: int) -> None:
        model.symbolize_dims()
        self.symbols = model.plate_to_symbol
        self.latents = [n for n, s in sample_sites(model) if _states_dim(s) is not None]
        involved = {n: s for n, s in sample_sites(model) if _has_states(s)}
        for name, site in involved.items():
            if plate not in {(f.name, f.dim) for f in site["cond_indep_stack"]}:
                raise ProgramError(
                    f"the summed-out latent(s) {', '.join(map(repr, self.latents))} stand outside "
                    f"the data plate {plate[0]!r}, or reach beyond it (site {name!r}): the sum "
                    "over them belongs to the data set, so no number can be given for each datum"
                )
        for name, site in involved.items():
            if site["infer"].get("is_auxiliary_loss"):
                raise ProgramError(
                    f"auxiliary_loss {name!r} depends on the summed-out latent(s) "
                    f"{', '.join(map(repr, self.latents))}; take its mean over their states"
                )
        axis = plate[1]
        with torch.enable_grad():
            betas = {n: _beta(s, rows, axis) for n, s in involved.items()}
            factors: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
            sizes: dict[str, int] = {}
            for name, site in involved.items():
                frames = [f for f in site["cond_indep_stack"] if f.vectorized]
                plates = frozenset(self.symbols[f.name] for f in frames)
                sizes |= {self.symbols[f.name]: f.size for f in frames}
                log_prob = _factor(site) * betas[name]
                term = packed.pack(log_prob, site["infer"]["_dim_to_symbol"])
                factors.setdefault(plates, []).append(term)
            states = set().union(
                *(s["infer"]["_dim_to_symbol"].values() for s in involved.values())
            )
            summed = contract_tensor_tree(factors, states - set(self.symbols.values()))
            log_z = _per_row(summed, self.symbols[plate[0]], sizes, rows)
            slopes = torch.autograd.grad(log_z.sum(), list(betas.values()))
        self.log_evidence = log_z.detach()
        """Of the sites that the states bear on: log Σ of their product, (rows,)."""
        self.expected = {n: s.reshape(rows) for n, s in zip(betas, slopes, strict=True)}
        """E log p of each of these sites under the exact posterior, (rows,)."""

    @property
    def log_posterior(self) -> tuple[str, Tensor]:
        """E log p(z | x) under itself, (rows,), and the site that it is booked under."""
        total = sum(self.expected.values(), torch.zeros(()))
        name = self.latents[0] if len(self.latents) == 1 else "+".join(self.latents)
        return name, total - self.log_evidence


def _per_row(
    summed: Mapping[frozenset[str], list[Tensor]], own: str, sizes: dict[str, int], rows: int
) -> Tensor:
    """Packed terms added up for each datum, (rows,).

    Args:
        summed: by the symbols of the plates that they stand in.
        own: symbol of the data plate.
        sizes: of the plates.
        rows: size of the data plate.
    """
    terms = []
    for plates, found in summed.items():
        for term in found:
            dims = term._pyro_dims  # type: ignore[attr-defined]
            others = [i for i, d in enumerate(dims) if d != own]
            inner = term.sum(others) if others else term
            # A plate that the term does not vary in counts as often.
            copies = math.prod(sizes[p] for p in plates if p != own and p not in dims)
            terms.append((inner * copies).expand(rows))
    return sum(terms[1:], terms[0])


def _has_states(site: Site) -> bool:
    """Whether a site is summed out, or varies with one that is."""
    if _states_dim(site) is not None:
        return True
    plates = {f.dim for f in site["cond_indep_stack"] if f.vectorized}
    shape = log_prob_of(site).shape
    dims = set(site["infer"].get("_dim_to_id", {})) - plates
    return any(-d <= len(shape) and shape[d] > 1 for d in dims)


def _factor(site: Site) -> Tensor:
    """Log density over all states. A mask hides data, not what is summed out for them."""
    log_prob = log_prob_of(site) if _states_dim(site) is not None else masked_log_prob(site)
    return log_prob.detach().clamp_min(IMPOSSIBLE)


def _beta(site: Site, rows: int, axis: int) -> Tensor:
    """A one for every datum, in the place of the data plate."""
    like = log_prob_of(site)
    ones = torch.ones(rows, *[1] * (-axis - 1), dtype=like.dtype, device=like.device)
    return ones.requires_grad_()
