"""Ways through a latent space: straight and spherical lines, walks between images, traversals.

Shapes: B images, D latent, T steps of a walk, I components.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from inference.latents.codes import LatentSite, conditions, local_codes, site_for
from inference.sampling import decode
from inference.sites import known_mean
from inference.weights import batch_size
from ppl_models.errors import PplError, UnknownNameError
from ppl_models.program import Batch, as_program


def lerp(start: Tensor, end: Tensor, t: Tensor | float) -> Tensor:
    """Linear interpolation, (1 − t) start + t end.

    Args:
        start: (..., D).
        end: (..., D).
        t: from 0 (start) to 1 (end): a number, or (T,).

    Returns:
        (..., D), or (T, ..., D).
    """
    at = _steps(t, start)
    return (1 - at) * start + at * end


def slerp(start: Tensor, end: Tensor, t: Tensor | float) -> Tensor:
    """Spherical interpolation: along the great circle, at equal speed.

    A draw of a wide normal lies near a sphere of radius √D; the straight line between two such
    leaves it (by a factor √2 in the middle), this one does not. Direction and norm go separately:
    the direction turns by the angle between both, the norm changes linearly. For vectors of one
    norm that is White's formula, sin((1−t)Ω)/sin Ω · start + sin(tΩ)/sin Ω · end, which for others
    grows without bound as they become opposite. Parallel vectors are joined by a straight line.
    Between opposite ones there are many great circles; one is taken, always the same. A zero vector
    has no direction, and numbers (D = 1) have no circle: these go straight.

    Args:
        start: (..., D).
        end: (..., D).
        t: from 0 (start) to 1 (end): a number, or (T,).

    Returns:
        (..., D), or (T, ..., D).

    References:
        White: Sampling Generative Networks, 2016, arXiv:1609.04468.
        Shoemake: Animating rotation with quaternion curves, 1985.
    """
    start, end = torch.broadcast_tensors(start, end)
    at = _steps(t, start)
    norms = [v.norm(dim=-1, keepdim=True) for v in (start, end)]
    tiny = torch.finfo(start.dtype).tiny
    p, q = (v / norm.clamp_min(tiny) for v, norm in zip((start, end), norms, strict=True))
    # The angle by the half-chord: exact near 0 and π, where the arc cosine is not.
    angle = 2 * torch.atan2((q - p).norm(dim=-1, keepdim=True), (q + p).norm(dim=-1, keepdim=True))
    turned = torch.cos(at * angle) * p + torch.sin(at * angle) * _perpendicular(p, q)
    path = lerp(norms[0], norms[1], t) * turned
    straight = (norms[0] == 0) | (norms[1] == 0) | (start.shape[-1] == 1)
    return torch.where(straight, lerp(start, end, t), path)


def _perpendicular(p: Tensor, q: Tensor) -> Tensor:
    """A unit vector at right angles to p (..., D), in the plane of p and q if they span one."""
    rest = q - (q * p).sum(-1, keepdim=True) * p
    axis = torch.nn.functional.one_hot(p.abs().argmin(-1), p.shape[-1]).to(p)
    other = axis - (axis * p).sum(-1, keepdim=True) * p
    length = rest.norm(dim=-1, keepdim=True)
    spans = length > 10 * torch.finfo(p.dtype).eps
    chosen = torch.where(spans, rest, other)
    return chosen / chosen.norm(dim=-1, keepdim=True).clamp_min(torch.finfo(p.dtype).tiny)


def _steps(t: Tensor | float, like: Tensor) -> Tensor:
    """The steps as () or (T, 1, ..., 1), to stand before a tensor (..., D)."""
    at = torch.as_tensor(t, dtype=like.dtype, device=like.device)
    return at if at.dim() == 0 else at.reshape(-1, *[1] * like.dim())


METHODS: dict[str, Callable[[Tensor, Tensor, Tensor | float], Tensor]] = {
    "slerp": slerp,
    "lerp": lerp,
}
"""Ways between two codes."""


def interpolate(
    program: object,
    batch: Batch,
    *,
    num_steps: int = 9,
    method: str = "slerp",
    site: str | None = None,
    given: Batch | None = None,
    field: str = "x",
) -> Tensor:
    """Walks between images: from each to the next, through the codes of both.

    Args:
        program: any object with ``model`` and ``guide``; its model takes ``size``.
        batch: two images or more, in the order of the walk, fields (B, ...).
        num_steps: T, both ends included.
        method: ``slerp`` or ``lerp``, on the whole code of an image as one vector.
        site: the latent that moves, all others stay as at the start; all real-valued ones move
            when left out.
        given: fields that the model conditions on, (1, ...), held all the way. Those left out are
            at both ends of a walk the images' own: numbers go straight from one to the other,
            labels change in the middle.
        field: the observed site.

    Returns:
        Mean images (B − 1, T, ...); the first and last of a walk are reconstructions, unless
        ``given`` says otherwise.

    Raises:
        PplError: fewer than two images or steps.
        UnknownNameError: no such method or latent, or the program has no such condition.
    """
    if method not in METHODS:
        raise UnknownNameError("method of interpolation", method, METHODS)
    if batch_size(batch) < 2 or num_steps < 2:
        raise PplError(
            "interpolation needs at least two images and two steps, got "
            f"{batch_size(batch)} image(s) and {num_steps} step(s)"
        )
    program = as_program(program)
    sites, _ = site_for(program, batch, site, field)
    codes = local_codes(program, batch, sites)
    moving = [n for n in codes if not sites[n].discrete and site in (None, n)]
    t = torch.linspace(0, 1, num_steps)
    legs = batch_size(batch) - 1

    def walk(name: str, code: Tensor) -> Tensor:
        rows = code.reshape(len(code), -1)  # (B, D)
        start, end = rows[:-1], rows[1:]
        path = METHODS[method](start, end, t) if name in moving else start.expand(len(t), -1, -1)
        return path.transpose(0, 1).reshape(legs * num_steps, *code.shape[1:])

    latents = {name: walk(name, code) for name, code in codes.items()}
    along = _conditions_along(conditions(program, batch, field), given or {}, t)
    images = decode(program, latents, given=along, field=field)
    return images.unflatten(0, (legs, num_steps))


def _conditions_along(own: Batch, held: Batch, t: Tensor) -> dict[str, Tensor]:
    """Fields that condition, (B, ...) or held (1, ...), along all walks: ((B − 1)·T, ...)."""
    for name in held:
        if name not in own:
            raise UnknownNameError("condition", name, own)
    found = {}
    for name, value in own.items():
        start, end = value[:-1], value[1:]
        if name in held:
            path = held[name].expand(len(t), *start.shape)
        elif value.is_floating_point():
            path = lerp(start, end, t)
        else:
            path = torch.where(_steps(t, start.double()) < 0.5, start, end)
        found[name] = path.transpose(0, 1).flatten(0, 1)
    return found


def traverse(
    program: object,
    indices: Sequence[int] | None = None,
    *,
    batch: Batch | None = None,
    given: Batch | None = None,
    site: str | None = None,
    values: Sequence[float] | None = None,
    num_steps: int = 9,
    field: str = "x",
) -> Tensor:
    """Traversals: one component of a latent runs through values, all others stay.

    Args:
        program: any object with ``model`` and ``guide``; its model takes ``size``.
        indices: components I, counted through the flattened latent; all when left out.
        batch: one datum, fields (1, ...), from whose code the traversal starts; from the mean of
            the prior when left out.
        given: without ``batch``, fields that the model conditions on, (1, ...).
        site: the latent; the one with the most components when left out.
        values: of the component; when left out, from three standard deviations of its prior
            below the mean to three above.
        num_steps: T, when ``values`` are left out.
        field: the observed site.

    Returns:
        Mean images (I, T, ...).

    Raises:
        PplError: no such component, fewer than two steps, or ``batch`` is not one datum.
        UnknownNameError: no such latent.

    References:
        Higgins et al.: beta-VAE, 2017 (figures of one traversal a latent).
    """
    program = as_program(program)
    if batch is not None and batch_size(batch) != 1:
        raise PplError(f"a traversal starts from one datum, got {batch_size(batch)}")
    if num_steps < 2 and values is None:
        raise PplError(f"a traversal needs at least two steps, got {num_steps}")
    held = conditions(program, batch if batch is not None else given or {}, field)
    sites, chosen = site_for(program, held, site, field)
    indices = range(chosen.size) if indices is None else indices
    for index in indices:
        chosen.check_index(index)
    codes = {} if batch is None else local_codes(program, batch, sites)
    start = codes.get(chosen.name)
    loc, scale = _moments(chosen)  # (D,) each
    base = (loc if start is None else start.flatten()).clone()
    runs = [
        torch.as_tensor(values).to(base)
        if values is not None
        else loc[i] + scale[i] * torch.linspace(-3, 3, num_steps).to(base)
        for i in indices
    ]
    rows = torch.stack([_moved(base, i, run) for i, run in zip(indices, runs, strict=True)])
    rows = rows.flatten(0, 1)  # (I·T, D)
    latents = {n: v.expand(len(rows), *v.shape[1:]) for n, v in codes.items()}
    latents[chosen.name] = rows.unflatten(-1, chosen.shape) if chosen.shape else rows.squeeze(-1)
    held = {name: v.expand(len(rows), *v.shape[1:]) for name, v in held.items()}
    images = decode(program, latents, given=held, field=field)
    return images.unflatten(0, (len(runs), -1))


def _moved(base: Tensor, index: int, values: Tensor) -> Tensor:
    """The code with a component at each value, (T, D)."""
    rows = base.repeat(len(values), 1)
    rows[:, index] = values
    return rows


def _moments(site: LatentSite) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a site's prior (D,); 0 and 1 where it tells none."""
    loc = known_mean(site.prior)
    if loc is None:
        return torch.zeros(site.size), torch.ones(site.size)
    try:
        scale = site.prior.stddev
    except NotImplementedError:
        scale = torch.ones_like(loc)
    return loc[0].flatten(), scale[0].flatten()
