"""Draws from a program: the prior predictive, and reconstructions.

Shapes: B data, S draws.
"""

from __future__ import annotations

from typing import Any

import torch
from pyro import poutine
from torch import Tensor

from inference.devices import isolated_rng
from inference.elbo.traces import run_traces, sample_sites
from inference.sites import known_mean
from inference.summed_out import enumerates, posterior_draw
from inference.weights import evaluation_mode
from ppl_models.errors import PplError
from ppl_models.program import Batch, as_program

DRAWS = ("mean", "sample")


def _value(site: Any, draw: str) -> Tensor:
    """A site's mean where it has one and it was asked for, else its value (of a class, say)."""
    mean = known_mean(site["fn"]) if draw == "mean" else None
    return site["value"] if mean is None or bool(mean.isnan().any()) else mean


def _check(draw: str) -> None:
    if draw not in DRAWS:
        raise PplError(f"draw must be one of {', '.join(DRAWS)}, got {draw!r}")


@torch.no_grad()
def sample(
    program: object, num: int, *, draw: str = "mean", given: Batch | None = None, seed: int = 0
) -> dict[str, Tensor]:
    """Draw from the prior predictive.

    Args:
        program: any object with ``model`` and ``guide``; its model takes ``size``.
        num: S.
        draw: at each field's site, ``mean`` of p(x | z) (the usual picture) or a ``sample``.
        given: fields to hold fixed, (S, ...).
        seed: of the draws; the global random state is left as it was.

    Returns:
        Every sample site by name, (S, ...): latents as drawn, fields of the data as asked.

    Raises:
        ProgramError: the model takes no ``size``.
    """
    _check(draw)
    program = as_program(program)
    with evaluation_mode(program), isolated_rng(seed), program.scope():
        trace = poutine.trace(program.draw_prior).get_trace(num, given)
    return {
        name: _value(site, draw if name in program.fields else "sample")
        for name, site in sample_sites(trace)
    }


@torch.no_grad()
def reconstruct(
    program: object, batch: Batch, *, draw: str = "mean", seed: int = 0
) -> dict[str, Tensor]:
    """Draw latents from the guide and the data from the model given them.

    Latents that the guide leaves out, to be summed out, are drawn from their exact posterior.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (B, ...).
        draw: ``mean`` of p(x | z), or a ``sample`` of it.
        seed: of the draws; the global random state is left as it was.

    Returns:
        The observed fields by name, (B, ...).
    """
    _check(draw)
    program = as_program(program)
    with evaluation_mode(program), isolated_rng(seed), program.scope():
        traces = run_traces(program.run_model, program.run_guide, (batch,), {})
        if enumerates(traces):
            traces = posterior_draw(traces, program.run_model, (batch,), {})
        return {
            name: _value(site | {"value": site["fn"].sample()}, draw)
            for name, site in sample_sites(traces.model)
            if site["is_observed"] and name in batch
        }


@torch.no_grad()
def encode(program: object, batch: Batch) -> dict[str, Tensor]:
    """The guide's latents, (B, ...): their mean where it is known, else a draw.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (B, ...).
    """
    program = as_program(program)
    with evaluation_mode(program), isolated_rng(0), program.scope():
        trace = poutine.trace(program.run_guide).get_trace(batch)
    return {name: _value(site, "mean") for name, site in sample_sites(trace)}
