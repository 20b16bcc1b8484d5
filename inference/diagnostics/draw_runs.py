"""Runs of guide and model that draw from a posterior, as many draws at once as a program allows.

Draws are taken in a plate of their own where the program allows it (a network then reads every
datum once, however many draws there are), else by repeating the data, else, where latents belong
to the data set or the guide has numbers for each datum, one draw a run.

Shapes: K draws, B data.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace

import pyro
import torch
from pyro import poutine
from torch import Tensor

from inference.densities import SiteDensities, data_plate, densities_of, is_local
from inference.devices import isolated_rng
from inference.diagnostics.check import CannotTell
from inference.diagnostics.drawn import Draws, check_same, of_all
from inference.diagnostics.layout import Layout, as_whole, drawn_from
from inference.elbo.base import plate_depth
from inference.elbo.traces import PARTICLES, Site, Traces, run_traces, sample_sites
from inference.summed_out import involved_in_sums, is_summed_out, posterior_draw, run_summed
from inference.vectorize import can_vectorize
from inference.weights import batch_size, evaluation_mode, repeat
from ppl_models.errors import ProgramError
from ppl_models.program import Batch, Program


class Runs:
    """Runs of guide and model, in the widest way that the program allows.

    Args:
        program: that is run.
        batch: fields (B, ...).
        num_data: size of the data set.
        predictive: whether new data are drawn.
    """

    def __init__(
        self, program: Program, batch: Batch, num_data: int | None, predictive: bool
    ) -> None:
        self.program, self.batch, self.predictive = program, dict(batch), predictive
        self.options = {"num_data": num_data}
        self.size = batch_size(batch)
        self.way = ""
        """``plate``, ``repeat`` or ``single``; known from the first draw on."""
        self.plate, self.depth = ("", 0), 0
        """Of the data, and how deep plates are; known from then on too."""

    @contextmanager
    def ready(self, seed: int) -> Iterator[None]:
        """What a run stands in: the program evaluates, with its own parameters and draws."""
        with evaluation_mode(self.program), isolated_rng(seed, "posterior"), self.program.scope():
            yield

    def block(self, count: int) -> Draws:
        """So many draws; the first of all is checked by Pyro, and the others are as it was."""
        if not self.way:
            return self._first()
        with pyro.validation_enabled(False):
            return self._more(count)

    def _more(self, count: int) -> Draws:
        if self.way == "plate":
            return self._in_plate(count)
        if self.way == "repeat":
            try:
                return self._rows(count)
            except Exception:  # a guide with numbers for each datum fits no repeated rows
                self.way = "single"
        singles = [self._rows(1) for _ in range(count)]
        for i, single in enumerate(singles):
            check_same(singles[0], single, i)
        return of_all(singles, torch.cat)

    def _first(self) -> Draws:
        """The first draw, which shows what way is open for the others."""
        traces = run_summed(self.program, self.batch, self.options)
        densities = densities_of(traces, self.size)
        if not densities.kl:
            raise CannotTell(
                f"nothing is latent in {self.program.name}, so there is no posterior to draw from; "
                "its log p(x) is exact: see inference.evaluate"
            )
        self.plate, self.depth = data_plate(traces.model, self.size), plate_depth(traces)
        if self._may_take_a_plate(traces):
            self.way = "plate"
        else:
            self.way = "single" if densities.global_sites else "repeat"
        return self._of_rows(traces, densities, 1)

    def _may_take_a_plate(self, traces: Traces) -> bool:
        if is_summed_out(traces.model) or self.size < 2:  # of one datum, a wrong axis goes unseen
            return False
        return can_vectorize(self.program, self.batch, self.options["num_data"], self.depth)

    def _in_plate(self, count: int) -> Draws:
        over = pyro.plate(PARTICLES, count, dim=-self.depth - 1)
        program = self.program
        traces = run_traces(
            over(program.run_model), over(program.run_guide), (self.batch,), self.options
        )
        layout = Layout(self.plate, count, -self.depth - 1)
        return self._taken(traces, layout)

    def _rows(self, count: int) -> Draws:
        batch = repeat(self.batch, count)
        traces = run_summed(self.program, batch, self.options)
        return self._of_rows(traces, densities_of(traces, count * self.size, count), count)

    def _of_rows(self, traces: Traces, densities: SiteDensities, count: int) -> Draws:
        """K draws of K·B rows, those of what is summed out from its exact posterior."""
        layout = Layout(data_plate(traces.model, count * self.size), count)
        _check_rows(traces, layout, count * self.size)
        if not is_summed_out(traces.model):
            return self._taken(traces, layout)
        summed = [n for n in _latents(traces.model) if n not in dict(sample_sites(traces.guide))]
        batch = repeat(self.batch, count)
        drawn = posterior_draw(traces, self.program.run_model, (batch,), self.options)
        found = self._taken(drawn, layout, [*_latents(traces.guide), *summed])
        likelihood = found.log_likelihood | dict(_marginal(traces, densities, summed))
        log_q = found.log_p - densities.log_weights
        return replace(found, log_q=log_q, log_likelihood=likelihood)

    def _taken(self, traces: Traces, layout: Layout, latents: list[str] | None = None) -> Draws:
        """What is reported of a run in which every latent has one value a draw."""
        latents = _latents(traces.model) if latents is None else latents
        local: dict[str, Tensor] = {}
        shared: dict[str, Tensor] = {}
        likelihood: dict[str, Tensor] = {}
        predictive: dict[str, Tensor] = {}
        observed: dict[str, Tensor] = {}
        dims: dict[str, tuple[str, ...]] = {}
        log_p, log_q = _Sum(layout, self.size), _Sum(layout, self.size)
        for name, site in sample_sites(traces.model):
            if site["infer"].get("is_auxiliary_loss"):
                continue
            log_p.add(site)
            if name in latents:
                table = local if is_local(site, layout.plate) else shared
                table[name] = layout.values(site, as_whole(site["value"], site["fn"]))
            elif site["is_observed"]:
                likelihood[name] = layout.density(site)
                if site["value"].numel() == 0:  # pyro.factor: a density, and no data
                    continue
                observed[name] = as_whole(layout.values(site, site["value"])[0], site["fn"])
                if self.predictive:
                    predictive[name] = layout.values(site, drawn_from(site["fn"]))
            dims[name] = layout.dims(site)
        for _, site in sample_sites(traces.guide):
            log_q.add(site)
        return Draws(
            local_latents=local,
            global_latents=shared,
            log_p=log_p.local,
            log_q=log_q.local,
            global_log_p=log_p.shared,
            global_log_q=log_q.shared,
            log_likelihood=likelihood,
            predictive=predictive,
            observed=observed,
            dims=dims,
            plate=layout.plate[0],
        )


def _latents(trace: poutine.Trace) -> list[str]:
    return [name for name, site in sample_sites(trace) if not site["is_observed"]]


def _check_rows(traces: Traces, layout: Layout, rows: int) -> None:
    """Refuse a guide's draws for fewer rows, which the model would share among its own."""
    name, dim = layout.plate
    for site_name, site in sample_sites(traces.guide):
        if is_local(site, layout.plate) and site["fn"].batch_shape[dim] != rows:
            raise ProgramError(
                f"the guide's site {site_name!r} has {site['fn'].batch_shape[dim]} rows in the "
                f"plate {name!r}, where the batch has {rows}"
            )


def _marginal(
    traces: Traces, densities: SiteDensities, summed: list[str]
) -> Iterator[tuple[str, Tensor]]:
    """The likelihood of the one observed site that depends on what is summed out, (K, B).

    None where a latent of the guide depends on it too, or another observed site does: the sum
    is then not the likelihood of one site.
    """
    involved = [name for name in involved_in_sums(traces.model) if name not in summed]
    if len(involved) == 1 and involved[0] in densities.observed:
        prior = sum((densities.prior[name] for name in summed), torch.zeros(()))
        posterior = densities.posterior["+".join(summed)]
        yield involved[0], densities.observed[involved[0]] + prior - posterior


class _Sum:
    """Log densities of sites, added up for each datum and over what data share.

    Args:
        layout: of the run.
        size: B.
    """

    def __init__(self, layout: Layout, size: int) -> None:
        self.layout = layout
        self.local = torch.zeros(layout.num_draws, size)
        self.shared = torch.zeros(layout.num_draws)

    def add(self, site: Site) -> None:
        """Add a site's."""
        density = self.layout.density(site)
        if is_local(site, self.layout.plate):
            self.local = self.local.to(density) + density
        else:
            self.shared = self.shared.to(density) + density
