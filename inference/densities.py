"""Log densities of a run of guide and model, by site and datum.

They are free of ``poutine.scale`` and of subsampling; masks count, for they are part of the model.

Shapes: K particles, B data.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pyro.distributions as dist
import torch
from pyro import poutine
from torch import Tensor

from inference.elbo.traces import Site, Traces, masked_log_prob, sample_sites
from inference.sites import is_discrete, is_point, known_mean, state_counts
from inference.summed_out import SummedOut, is_summed_out
from ppl_models.errors import ProgramError

DATA_PLATE = "data"
Plate = tuple[str, int]


@dataclass
class SiteDensities:
    """Log densities of one block of particles, by site.

    Local sites, those in the data plate, have shape (K, B); global ones (K,).
    """

    observed: dict[str, Tensor]
    """log p of the observed sites."""
    prior: dict[str, Tensor]
    """log p of the latent sites."""
    posterior: dict[str, Tensor]
    """log q of the guide's sites."""
    auxiliary: dict[str, Tensor]
    """Auxiliary losses, by site; part of no ELBO."""
    guide_means: dict[str, Tensor]
    """E_q[z], (K, B, event...), of the local latents whose distribution tells it; NaN where it
    has none."""
    states: dict[str, Tensor]
    """How often the guide's draws had each state of the local latents that have finitely many,
    one row a run, (1, S)."""
    dims: int
    """Observed elements per datum."""
    discrete: bool
    """Whether every observed site is over a discrete support, so that its density is a mass."""
    exact: bool = False
    """Whether nothing was drawn, and all particles are the same: nothing is latent, every latent is
    summed out, or the guide says with certainty what a discrete one is."""

    @property
    def distortion(self) -> Tensor:
        """−log p(x | z), (K, B)."""
        return -_total(self.observed)

    @property
    def kl(self) -> dict[str, Tensor]:
        """Log q − log p by latent site, (K, B) or (K,); its mean is the site's KL.

        An auxiliary site of the guide counts with the latent that it makes: ``z_unconstrained``
        (an autoguide's) with ``z``, any other with all latents, under ``joint``.
        """
        zero = torch.zeros(())
        found: dict[str, Tensor] = {}
        foreign = [n for n in self.posterior if n not in self.prior and _made(n) not in self.prior]
        for name in dict.fromkeys([*self.posterior, *self.prior]):
            key = "joint" if foreign else name if name in self.prior else _made(name)
            term = self.posterior.get(name, zero) - self.prior.get(name, zero)
            if key == "joint" and term.dim() == 1:
                key = name  # global ones are not mixed with local ones
            found[key] = found.get(key, zero) + term
        return found

    @property
    def global_sites(self) -> list[str]:
        """Latent sites outside the data plate."""
        return [name for name, value in self.kl.items() if value.dim() == 1]

    @property
    def log_weights(self) -> Tensor:
        """Log p(x, z) − log q(z) of the local sites, (K, B)."""
        local = [value for value in self.kl.values() if value.dim() == 2]
        return -self.distortion - sum(local, torch.zeros(()))


def _made(auxiliary: str) -> str:
    return auxiliary.removesuffix("_unconstrained")


def _total(terms: dict[str, Tensor]) -> Tensor:
    values = list(terms.values())
    return sum(values[1:], values[0])


def data_plate(trace: poutine.Trace, rows: int) -> tuple[str, int]:
    """Name and dimension of the data plate: ``data``, or else the only one with so many rows.

    Raises:
        ProgramError: no plate, or more than one, could be it.
    """
    plates = {
        (frame.name, frame.dim): frame.size
        for _, site in sample_sites(trace)
        for frame in site["cond_indep_stack"]
        if frame.vectorized
    }
    named = [plate for plate in plates if plate[0] == DATA_PLATE]
    fitting = named or [plate for plate, size in plates.items() if size == rows]
    if len(fitting) != 1:
        shown = ", ".join(f"{n!r} of size {s}" for (n, _), s in plates.items()) or "none"
        raise ProgramError(
            f"cannot tell which plate holds the {rows} data of the batch (plates: {shown}). "
            f"Put the sites of a datum in `with pyro.plate('{DATA_PLATE}', len(x), dim=-1):`, in "
            "model and guide."
        )
    return fitting[0]


def is_local(site: Site, plate: tuple[str, int]) -> bool:
    """Whether a site stands in the data plate."""
    return any((f.name, f.dim) == plate for f in site["cond_indep_stack"])


def has_global_latents(traces: Traces, rows: int) -> bool:
    """Whether a site of the guide stands outside the data plate."""
    plate = data_plate(traces.model, rows)
    return any(not is_local(site, plate) for _, site in sample_sites(traces.guide))


def stack(runs: list[SiteDensities]) -> SiteDensities:
    """Blocks of particles as one, along K."""

    def cat(part: str) -> dict[str, Tensor]:
        return {k: torch.cat([getattr(r, part)[k] for r in runs]) for k in getattr(runs[0], part)}

    return SiteDensities(
        observed=cat("observed"),
        prior=cat("prior"),
        posterior=cat("posterior"),
        auxiliary=cat("auxiliary"),
        guide_means=cat("guide_means"),
        states=cat("states"),
        dims=runs[0].dims,
        discrete=runs[0].discrete,
        exact=runs[0].exact,
    )


def densities_of(traces: Traces, rows: int, num_particles: int = 1) -> SiteDensities:
    """The log densities of a run of guide and model on K·B rows, by site.

    Args:
        traces: of the run.
        rows: K·B.
        num_particles: K.

    Raises:
        ProgramError: the sites cannot be told apart by datum, or do not match.
    """
    plate = data_plate(traces.model, rows)
    expected: dict[str, Tensor] = {}
    out = SiteDensities({}, {}, {}, {}, {}, {}, dims=0, discrete=True)
    out.exact = _is_certain(traces)
    if is_summed_out(traces.model):
        summed = SummedOut(traces.model, plate, rows)
        expected = summed.expected
        name, log_posterior = summed.log_posterior
        out.posterior[name] = log_posterior.unflatten(0, (num_particles, -1))
        out.exact = not any(True for _ in sample_sites(traces.guide))

    def per_datum(site: Site) -> Tensor:
        if site["name"] in expected:
            return expected[site["name"]].unflatten(0, (num_particles, -1))
        return _reduce(site, plate, num_particles)

    for name, site in sample_sites(traces.model):
        if site["infer"].get("is_auxiliary_loss"):
            out.auxiliary[name] = -per_datum(site)
        elif site["is_observed"]:
            _require_local(name, site, plate)
            out.observed[name] = per_datum(site)
            out.dims += site["value"].numel() // rows
            out.discrete &= is_discrete(site["fn"])
        else:
            out.prior[name] = per_datum(site)
    for name, site in sample_sites(traces.guide):
        out.posterior[name] = _reduce(site, plate, num_particles)
    _check_complete(out)
    out.exact |= not out.kl
    out.guide_means.update(_guide_means(traces, plate, num_particles))
    out.states.update(_states(traces, plate))
    return out


def _is_certain(traces: Traces) -> bool:
    """Whether the guide is a point at discrete latents, and at what is a function of them."""
    latents = [(name, site["fn"]) for name, site in sample_sites(traces.guide)]
    return bool(latents) and all(
        is_point(fn)
        and name in traces.model.nodes
        and (is_point(prior := traces.model.nodes[name]["fn"]) or is_discrete(prior))
        for name, fn in latents
    )


def _states(traces: Traces, plate: tuple[str, int]) -> Iterator[tuple[str, Tensor]]:
    """How often the guide drew each state of the local latents whose prior numbers them."""
    for name, site in sample_sites(traces.guide):
        if name in traces.model.nodes and is_local(site, plate):
            counts = state_counts(traces.model.nodes[name]["fn"], site["value"])
            if counts is not None:
                yield name, counts.unsqueeze(0)


def _require_local(name: str, site: Site, plate: tuple[str, int]) -> None:
    if not is_local(site, plate):
        raise ProgramError(
            f"observed site {name!r} (or pyro.factor) stands outside the data plate {plate[0]!r}, "
            "so its density belongs to no datum; put it inside"
        )


def _check_complete(densities: SiteDensities) -> None:
    if not densities.observed:
        raise ProgramError(
            "the model observes nothing of the batch: give a sample site `obs=x`, where x is a "
            "field of the data that the model names"
        )
    summed = [name for name in densities.posterior if name not in densities.prior]
    together = {part for name in summed for part in name.split("+")}
    missing = [n for n in densities.prior if n not in densities.posterior and n not in together]
    if missing:
        raise ProgramError(
            f"latent site {missing[0]!r} of the model is not in the guide; its importance weight "
            "needs a guide that samples it (or a model that sums it out)"
        )


def _reduce(site: Site, plate: tuple[str, int], num_particles: int) -> Tensor:
    """A site's log density, unscaled and masked, summed to (K, B), or to (K,) if it is global."""
    log_prob = masked_log_prob(site)
    if not is_local(site, plate):
        return log_prob.sum().expand(num_particles)
    shape = site["fn"].batch_shape
    log_prob = log_prob.broadcast_to(torch.broadcast_shapes(shape, log_prob.shape))
    rows_first = log_prob.movedim(plate[1], 0)
    per_row = rows_first.flatten(1).sum(-1) if rows_first.dim() > 1 else rows_first
    return per_row.unflatten(0, (num_particles, -1))


def _guide_means(
    traces: Traces, plate: tuple[str, int], num_particles: int
) -> Iterator[tuple[str, Tensor]]:
    """Means of the local latents, where the guide's distribution tells them for the datum.

    A ``Delta`` over an auxiliary draw (a flow, an autoguide) has that draw as its mean, which
    says nothing of the mean over draws.
    """
    auxiliary = any(name not in traces.model.nodes for name, _ in sample_sites(traces.guide))
    for name, site in sample_sites(traces.guide):
        fn = site["fn"]
        if name not in traces.model.nodes or not is_local(site, plate):
            continue
        if is_point(traces.model.nodes[name]["fn"]):
            continue  # a function of other latents (a code's vector), and none of its own
        if auxiliary and isinstance(getattr(fn, "base_dist", fn), dist.Delta):
            continue
        mean, axis = known_mean(fn), plate[1] - len(fn.event_shape)
        if mean is None or not mean.dtype.is_floating_point or mean.dim() < -axis:
            continue
        yield name, mean.movedim(axis, 0).unflatten(0, (num_particles, -1))
