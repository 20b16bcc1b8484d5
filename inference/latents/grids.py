"""Grids through a latent space: the manifold of two components, classes against latents.

Shapes: S side of the manifold, Y values of a condition, N draws of the latents.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from inference.elbo.traces import sample_sites
from inference.latents.codes import LatentSite, choose_site, latent_sites
from inference.sampling import decode, prior_trace
from inference.sites import innermost
from ppl_models.errors import PplError
from ppl_models.program import Batch, Program, as_program


def manifold(
    program: object,
    *,
    side: int = 20,
    dims: Sequence[int] | None = None,
    site: str | None = None,
    given: Batch | None = None,
    field: str = "x",
) -> Tensor:
    """Mean images over the plane of two latent components, even in the prior's probability.

    Each component runs through the quantiles (i + ½) / S of its prior, so that every image stands
    for the same share of the prior. The first goes to the right, the second upwards.

    Args:
        program: any object with ``model`` and ``guide``; its model takes ``size``.
        side: S.
        dims: the two components; both of a latent that has two when left out. All others are
            at the median of the prior.
        site: the latent; the one with the most components when left out.
        given: fields that the model conditions on, (1, ...).
        field: the observed site.

    Returns:
        (S, S, ...), the uppermost row first.

    Raises:
        PplError: the latent has not two components and ``dims`` are left out, there are no such
            components, or the prior's quantiles are not known.

    References:
        Kingma, Welling: Auto-Encoding Variational Bayes, 2014, arXiv:1312.6114, figure 4.
    """
    program = as_program(program)
    if side < 2:
        raise PplError(f"a manifold needs a side of at least 2 images, got {side}")
    size = side * side
    held = {name: v.expand(size, *v.shape[1:]) for name, v in (given or {}).items()}
    chosen = choose_site(latent_sites(program, size=size, given=held, field=field), site)
    across, up = _two_dims(chosen, dims)
    quantiles = (torch.arange(side) + 0.5) / side
    u = torch.full((size, chosen.size), 0.5)
    u[:, across] = quantiles.repeat(side)
    u[:, up] = quantiles.flip(0).repeat_interleave(side)
    z = _quantile(chosen, u.reshape(size, *chosen.shape))
    images = decode(program, {chosen.name: z}, given=held, field=field)
    return images.unflatten(0, (side, side))


def _two_dims(site: LatentSite, dims: Sequence[int] | None) -> tuple[int, int]:
    if dims is None and site.size == 2:
        return 0, 1
    if dims is None or len(set(dims)) != 2:
        asked = "" if dims is None else f", and dims must be two of them, got {list(dims)}"
        raise PplError(
            f"a manifold is the plane of 2 components, and latent {site.name!r} has {site.size}"
            f"{asked}. Name two (dims 0 and 1, others at the prior's median), draw a traversal of "
            "one component at a time or an interpolation between images, or train with "
            "latent_dim 2"
        )
    for index in dims:
        site.check_index(index)
    return dims[0], dims[1]


def _quantile(site: LatentSite, u: Tensor) -> Tensor:
    """The prior's inverse distribution function, element by element."""
    base: Any = innermost(site.prior)
    try:
        return base.icdf(u.to(site.prior.mean))
    except (NotImplementedError, AttributeError) as error:
        raise PplError(
            f"the prior of latent {site.name!r} ({type(base).__name__}) knows no quantiles, so "
            "there is no manifold even in its probability. Draw a traversal of one component at "
            "a time, or an interpolation between images"
        ) from error


def vary_latent(
    program: object,
    values: Tensor,
    num: int = 10,
    *,
    condition: str = "y",
    field: str = "x",
    seed: int = 0,
) -> Tensor:
    """Samples with a fixed condition: each row one value of y, and in it draws of z ~ p(z | y).

    Args:
        program: a conditional program: its model names the field ``condition``.
        values: of the condition, (Y, ...).
        num: N, draws a row.
        condition: name of the field.
        field: the observed site.
        seed: of the draws; the global random state is left as it was.

    Returns:
        Mean images (Y, N, ...).

    Raises:
        PplError: the program takes no such field.
    """
    program = _conditional(program, condition, num, field)
    given = {condition: values.repeat_interleave(num, 0)}
    images = decode(program, _draw(program, given, field, seed), given=given, field=field)
    return images.unflatten(0, (len(values), num))


def vary_condition(
    program: object,
    values: Tensor,
    num: int = 10,
    *,
    condition: str = "y",
    field: str = "x",
    seed: int = 0,
) -> Tensor:
    """Samples with a fixed latent: each row one z, and in it every value of y.

    What the rows keep (stroke, slant) is what z holds beside y. Where the prior of z depends on
    y, a row is one place in it: every z of the row comes of the same random numbers.

    Args:
        program: as in :func:`vary_latent`.
        values: of the condition, (Y, ...).
        num: N, rows.
        condition: name of the field.
        field: the observed site.
        seed: of the draws; the global random state is left as it was.

    Returns:
        Mean images (N, Y, ...).

    Raises:
        PplError: the program takes no such field.
    """
    program = _conditional(program, condition, num, field)
    columns = []
    for value in values.split(1):
        given = {condition: value.expand(num, *values.shape[1:])}
        latents = _draw(program, given, field, seed)
        columns.append(decode(program, latents, given=given, field=field))
    return torch.stack(columns, dim=1)


def _conditional(program: object, condition: str, num: int, field: str) -> Program:
    found = as_program(program)
    if num < 1:
        raise PplError(f"a grid needs at least one draw, got {num}")
    if condition not in found.fields or condition == field:
        raise PplError(
            f"{found.name} is not conditional: its model and guide name the fields "
            f"{', '.join(map(repr, found.fields))}, not {condition!r}. Train a program that takes "
            "labels; or, of this one, draw the attribute vector of a label, or samples"
        )
    return found


def _draw(program: Program, given: Batch, field: str, seed: int) -> dict[str, Tensor]:
    """Draws of the latents in the data plate, as many as there are given fields."""
    size = len(next(iter(given.values())))
    local = latent_sites(program, size=size, given=given, field=field)
    trace = prior_trace(program, size, given, seed=seed)
    return {name: site["value"] for name, site in sample_sites(trace) if name in local}
