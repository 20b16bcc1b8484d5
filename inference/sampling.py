"""Draws from a program: the prior predictive, reconstructions, codes and what they decode to.

Shapes: B data, S draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from inference.data.dataset import Split
from inference.devices import isolated_rng
from inference.drawing import Sharpened
from inference.elbo.traces import Site, run_traces, sample_sites, with_value
from inference.sites import is_discrete, is_partial, known_mean
from inference.summed_out import enumerates, posterior_draw
from inference.weights import evaluation_mode
from ppl_models.errors import PplError, UnknownNameError
from ppl_models.program import Batch, Program, as_program

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
    program: object,
    num: int,
    *,
    draw: str = "mean",
    given: Batch | None = None,
    seed: int = 0,
    sharpened: Sharpened | None = None,
) -> dict[str, Tensor]:
    """Draw from the prior predictive.

    Args:
        program: any object with ``model`` and ``guide``; its model takes ``size``.
        num: S.
        draw: at each field's site, ``mean`` of p(x | z) (the usual picture) or a ``sample``.
        given: fields to hold fixed, (S, ...); images of which a part is seen are completed.
        seed: of the draws; the global random state is left as it was.
        sharpened: temperature of latents and of autoregressive sites, top_k of the latter.

    Returns:
        Every sample site by name, (S, ...): latents as drawn, fields of the data as asked.

    Raises:
        ProgramError: the model takes no ``size``, or has no site for ``sharpened`` to change.
    """
    _check(draw)
    program = as_program(program)
    around = nullcontext() if sharpened is None else sharpened.of(program)
    with evaluation_mode(program), isolated_rng(seed), program.scope(), around:
        trace = _completed(poutine.trace(program.draw_prior).get_trace(num, given))
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
        The observed fields by name, (B, ...); none where nothing is latent.
    """
    _check(draw)
    return {name: _value(site, draw) for name, site in redrawn(program, batch, seed=seed).items()}


@torch.no_grad()
def redrawn(program: object, batch: Batch, *, seed: int = 0) -> dict[str, Site]:
    """The observed sites, with values drawn anew given latents of the guide.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (B, ...).
        seed: of the draws; the global random state is left as it was.

    Returns:
        By field, sites with values (B, ...); none where nothing is latent.
    """
    program = as_program(program)
    with evaluation_mode(program), isolated_rng(seed), program.scope():
        traces = run_traces(program.run_model, program.run_guide, (batch,), {})
        if enumerates(traces):
            traces = posterior_draw(traces, program.run_model, (batch,), {})
        sites = list(sample_sites(traces.model))
        if all(site["is_observed"] for _, site in sites):
            return {}
        return {
            name: with_value(site, site["fn"].sample())
            for name, site in sites
            if site["is_observed"] and name in batch
        }


@torch.no_grad()
def encode(
    program: object, batch: Batch, *, draw: str = "mean", seed: int = 0
) -> dict[str, Tensor]:
    """The guide's latents, (B, ...).

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (B, ...).
        draw: ``mean`` of q(z | x) where it is known (else a draw), or a ``sample``.
        seed: of the draws; the global random state is left as it was.
    """
    _check(draw)
    program = as_program(program)
    with evaluation_mode(program), isolated_rng(seed), program.scope():
        trace = poutine.trace(program.run_guide).get_trace(batch)
    return {name: _value(site, draw) for name, site in sample_sites(trace)}


class _Held(Messenger):
    """Gives sites these values, and other real-valued sites their mean if that is asked."""

    def __init__(self, values: Mapping[str, Tensor], at_mean: bool) -> None:
        super().__init__()
        self.values = values
        self.at_mean = at_mean

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or isinstance(fn, _Subsample):
            return
        if msg["name"] in self.values:
            value, shape = self.values[msg["name"]], fn.batch_shape + fn.event_shape
            if value.shape != shape:
                raise PplError(
                    f"the latent {msg['name']!r} must have shape {tuple(shape)}, got "
                    f"{tuple(value.shape)}"
                )
            msg["value"] = value
        elif self.at_mean and not is_discrete(fn):
            msg["value"] = known_mean(fn)


@torch.no_grad()
def decode(
    program: object,
    latents: Mapping[str, Tensor],
    *,
    given: Batch | None = None,
    field: str = "x",
    draw: str = "mean",
    seed: int = 0,
) -> Tensor:
    """What latents decode to: by default the mean image of p(x | z).

    Args:
        program: any object with ``model`` and ``guide``; its model takes ``size``.
        latents: values of latent sites, (B, ...). Those left out are at the mean of their prior
            given the others (or drawn from it, with ``draw="sample"`` or where there is no mean).
        given: fields that the model conditions on, such as labels ``y`` (B,).
        field: the site that is decoded to.
        draw: ``mean`` of p(x | z), or a ``sample`` of it.
        seed: of the draws; the global random state is left as it was.

    Returns:
        (B, ...), as the data.

    Raises:
        PplError: no latents, of different lengths, of a wrong shape, or a field is missing.
        UnknownNameError: the model has no such site.
        ProgramError: the model takes no ``size``.
    """
    _check(draw)
    program = as_program(program)
    lengths = {name: len(value) for name, value in {**latents, **(given or {})}.items()}
    if not latents or len(set(lengths.values())) > 1:
        raise PplError(f"latents and given fields must have one length, got {lengths or 'none'}")
    trace = prior_trace(
        program, len(next(iter(latents.values()))), given, latents, draw == "mean", seed
    )
    sites = dict(sample_sites(trace))
    for name in (field, *latents):
        if name not in sites:
            raise UnknownNameError("site", name, sites)
    return _value(sites[field], draw)


@torch.no_grad()
def prior_trace(
    program: object,
    size: int,
    given: Batch | None = None,
    held: Mapping[str, Tensor] | None = None,
    at_mean: bool = False,
    seed: int = 0,
) -> poutine.Trace:
    """Run the model without data.

    Args:
        program: any object with ``model`` and ``guide``; its model takes ``size``.
        size: number of draws.
        given: fields that the model conditions on, (size, ...).
        held: values of sites, (size, ...).
        at_mean: other real-valued sites have the mean of their distribution, where it is known.
        seed: of the draws; the global random state is left as it was.

    Raises:
        ProgramError: the model takes no ``size``, or needs a field that is not given.
    """
    program = as_program(program)
    with evaluation_mode(program), isolated_rng(seed), program.scope(), _Held(held or {}, at_mean):
        return _completed(poutine.trace(program.draw_prior).get_trace(size, given))


def _completed(trace: poutine.Trace) -> poutine.Trace:
    """A trace whose given images have their hidden part drawn, in the place of what it was."""
    for _, site in sample_sites(trace):
        if site["is_observed"] and is_partial(site["fn"]):
            site["value"] = site["fn"].sample()
    return trace


def completes(program: Program, given: Batch | None = None, field: str = "x") -> bool:
    """Whether the model completes data: it reads a part of the field that it draws the rest of.

    Args:
        program: its model takes ``size``.
        given: other fields that the model conditions on, one datum or more.
        field: the observed site.
    """
    two = {name: value[:1].expand(2, *value.shape[1:]) for name, value in (given or {}).items()}
    sites = dict(sample_sites(prior_trace(program, 2, two, at_mean=True)))
    return field in sites and is_partial(sites[field]["fn"])


def to_complete(
    program: Program, split: Split, num: int, given: Batch | None = None, field: str = "x"
) -> dict[str, Tensor]:
    """So many data of a split to be completed, under their field's name; of other models, nothing.

    Args:
        program: its model takes ``size``.
        split: the first data of it, and from the start again if they are too few.
        num: how many.
        given: other fields that the model conditions on.
        field: the observed site.
    """
    if not completes(program, given, field):
        return {}
    with isolated_rng(0):  # transforms of the data draw too
        batch = next(iter(split.batches(num, torch.arange(num) % len(split))))
    return {field: batch[field]}
