"""The guide against the exact posterior, as NUTS draws it with the model's parameters fixed.

Every latent dimension is compared by its mean, its standard deviation and the 1-Wasserstein
distance, in units of NUTS's standard deviation. Local latents of a few data make one posterior
whose blocks are independent; global ones are of the whole batch. Discrete latents are summed out
and not compared.

Shapes: B data, D latent dimensions of all sites and data, S draws.

References:
    Hoffman, Gelman: The No-U-Turn Sampler, JMLR 15, 2014, arXiv:1111.4246.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from inference.densities import Plate, data_plate, is_local
from inference.devices import isolated_rng
from inference.diagnostics.agreement import AgainstNuts, compare
from inference.diagnostics.amortized import has_autoguide, refusal_of
from inference.diagnostics.chains import run_chains
from inference.diagnostics.check import CannotTell
from inference.diagnostics.columns import full_value, row_axis
from inference.diagnostics.fixed import fixed_parameters
from inference.diagnostics.weighing import refuse_part
from inference.elbo.traces import Site, Traces, run_traces, sample_sites
from inference.sites import hides, is_discrete
from inference.weights import batch_size, evaluation_mode, repeat, rows_at_once
from ppl_models.errors import PplError, UnknownNameError, whole_number
from ppl_models.program import Batch, Program, as_program

FEW = 5
STARTS = ("prior", "guide")


def against_nuts(
    program: object,
    batch: Batch,
    *,
    max_data: int | None = None,
    num_data: int | None = None,
    num_samples: int = 500,
    warmup: int = 300,
    num_chains: int = 2,
    num_draws: int = 1000,
    starts: str = "prior",
    compile: bool = True,
    seed: int = 0,
) -> AgainstNuts:
    """Compare the guide with NUTS on the same model.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (B, ...); of a program with global latents, all data that its guide is of.
        max_data: at most the first so many are taken, five when left out; of a program with
            global latents, an autoguide, or parameters for each datum, all.
        num_data: size of the data set that the guide of global latents was fitted to; the batch
            is all of it when left out.
        num_samples: of each chain of NUTS.
        warmup: its steps before.
        num_chains: the first starts from the guide.
        num_draws: of the guide.
        starts: of the other chains: ``prior``, which finds other modes; or ``guide``, which keeps
            to its own (a mixture with its components numbered otherwise is another mode).
        compile: trace the model for NUTS, for cheaper steps, where a trace gives the same.
        seed: of the draws; the global random state is left as it was.

    Returns:
        An :class:`AgainstNuts`; its checks cannot tell where the chains are not to be believed.

    Raises:
        CannotTell: no real-valued latent stands in model and guide, one is masked, the guide is a
            point, the batch is a part of what a global posterior is about, or NUTS cannot run the
            model.
        PplError: ``max_data`` is fewer than the guide is of.
    """
    num_samples = whole_number("num_samples", num_samples, 20)
    warmup, num_chains = whole_number("warmup", warmup), whole_number("num_chains", num_chains)
    num_draws = whole_number("num_draws", num_draws, 20)
    if starts not in STARTS:
        raise UnknownNameError("starts", starts, STARTS)
    program = as_program(program)
    with evaluation_mode(program), isolated_rng(seed), program.scope():
        batch, shared = _part(program, batch, max_data, num_data)
        with torch.no_grad():
            runs = [
                run_traces(program.run_model, program.run_guide, (batch,), {})
                for _ in range(num_chains)
            ]
        traces = runs[0]
        plate = data_plate(traces.model, batch_size(batch))
        sites = _compared(traces)
        guide = _guide_draws(program, batch, sites, plate, num_draws, shared)
        for name, draws in guide.items():
            if bool((draws == draws[0]).all()):
                raise CannotTell(f"the guide is a point at {name!r}; it has no width to compare")
        with fixed_parameters(program):
            chains = run_chains(program, batch, runs, num_samples, warmup, starts, compile)
    names, exact, ours = [], [], []
    for name, site in sites.items():
        if name not in chains.samples:
            continue
        rows = _rows_first(chains.samples[name], site, plate, 2)
        names += _names(name, rows.shape[2:])
        exact.append(rows.reshape(*rows.shape[:2], -1))
        ours.append(guide[name].reshape(num_draws, -1))
    nuts, draws = (torch.cat(parts, -1).cpu().double() for parts in (exact, ours))
    return compare(tuple(names), nuts, draws, chains.divergences)


def _part(
    program: Program, batch: Batch, max_data: int | None, num_data: int | None
) -> tuple[Batch, bool]:
    """The data that are taken, and whether the guide must be run once a draw."""
    with torch.no_grad():
        traces = run_traces(program.run_model, program.run_guide, (batch,), {})
    size = batch_size(batch)
    plate = data_plate(traces.model, size)
    shared = [name for name, site in sample_sites(traces.guide) if not is_local(site, plate)]
    if shared:
        refuse_part(shared, size, num_data)
    usual = FEW if max_data is None else whole_number("max_data", max_data)
    part = {name: value[:usual] for name, value in batch.items()}
    if not (shared or _has_rows_of_its_own(program, batch, part)):
        return part, False
    if max_data is not None and max_data < size:
        raise PplError(
            f"max_data={max_data}, but the guide is of all the {size} data given: it has global "
            "latents, or parameters for each of them. Leave max_data out"
        )
    return batch, True


def _has_rows_of_its_own(program: Program, batch: Batch, part: Batch) -> bool:
    """Whether the guide has parameters for each datum, and so runs on just these data."""
    if has_autoguide(program):
        return True
    other = part if batch_size(part) < batch_size(batch) else repeat(batch, 2)
    return refusal_of(program, other) is not None


def _compared(traces: Traces) -> dict[str, Site]:
    """Real-valued latents of the model that the guide has too."""
    guide = dict(sample_sites(traces.guide))
    latents = {
        name: site
        for name, site in sample_sites(traces.model)
        if not site["is_observed"] and not is_discrete(site["fn"])
    }
    for name, site in latents.items():
        if hides(site):
            raise CannotTell(
                f"a mask takes entries of the latent {name!r} out of the model: they have a flat "
                "density, which NUTS cannot draw from. Give data of which every entry counts"
            )
    found = {name: guide[name] for name in latents if name in guide}
    if not found:
        raise CannotTell("no real-valued latent stands both in the model and in the guide")
    return found


@torch.no_grad()
def _guide_draws(
    program: Program,
    batch: Batch,
    sites: dict[str, Site],
    plate: Plate,
    num_draws: int,
    shared: bool,
) -> dict[str, Tensor]:
    """By site, (S, ...), with the data first where they have an axis."""
    size = batch_size(batch)
    block = 1 if shared else max(1, rows_at_once(batch) // size)
    runs: dict[str, list[Tensor]] = {name: [] for name in sites}
    for start in range(0, num_draws, block):
        count = min(block, num_draws - start)
        wide = repeat(batch, count)
        traces = run_traces(program.run_model, program.run_guide, (wide,), {})
        for name in sites:
            site = traces.guide.nodes[name]
            value = _rows_first(full_value(site), site, plate, 0)
            runs[name].append(value.unsqueeze(0) if shared else value.unflatten(0, (count, size)))
    return {name: torch.cat(values) for name, values in runs.items()}


def _rows_first(value: Tensor, site: Site, plate: Plate, before: int) -> Tensor:
    """The data's axis moved to the front, behind ``before`` others; as it is of a global site."""
    return value.movedim(row_axis(site, plate), before) if is_local(site, plate) else value


def _names(name: str, shape: torch.Size) -> list[str]:
    inner = [", ".join(map(str, index)) for index in np.ndindex(*shape)]
    return [f"{name}[{index}]" if index else name for index in inner]
