"""Directions in a latent space: attribute vectors from labels, and analogies.

Shapes: N data, B images, S strengths.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from inference.latents.codes import conditions, local_codes, site_for
from inference.sampling import decode
from inference.weights import batch_size
from ppl_models.errors import PplError
from ppl_models.program import Batch, as_program


def attribute_vector(codes: Tensor, has: Tensor, *, balance: Tensor | None = None) -> Tensor:
    """The way from data without an attribute to data with it: the difference of their mean codes.

    Where attributes go together in the data (smiles and women, say), that difference has some of
    both. Balanced, it is taken within every group of data that agree in the other attributes,
    and the mean over groups is returned: what goes along with the group drops out.

    Args:
        codes: (N, ...).
        has: whether each datum has the attribute, (N,) bool.
        balance: the other attributes, integers (N,) or (N, M). A group in which all, or none,
            have the attribute says nothing and is left out.

    Returns:
        The vector, of one code's shape.

    Raises:
        PplError: all have the attribute, or none, in every group.

    References:
        White: Sampling Generative Networks, 2016, arXiv:1609.04468, section 3.2.
    """
    if has.shape != codes.shape[:1]:
        raise PplError(f"has must tell one thing a code, ({len(codes)},); got {tuple(has.shape)}")
    has = has.bool()
    groups = [torch.ones_like(has)]
    if balance is not None:
        number = balance.reshape(len(has), -1).unique(dim=0, return_inverse=True)[1]
        groups = [number == k for k in range(int(number.max()) + 1)]
    differences = [
        codes[group & has].mean(0) - codes[group & ~has].mean(0)
        for group in groups
        if bool((group & has).any()) and bool((group & ~has).any())
    ]
    if not differences:
        raise PplError(
            f"{int(has.sum())} of {len(has)} data have the attribute"
            + (", and no group of the balance has both" if balance is not None else "")
            + "; its vector needs data with it and data without"
        )
    return torch.stack(differences).mean(0)


def add_attribute(
    program: object,
    batch: Batch,
    vector: Tensor,
    strengths: Sequence[float] = (-1.0, -0.5, 0.0, 0.5, 1.0),
    *,
    site: str | None = None,
    field: str = "x",
) -> Tensor:
    """Images with an attribute added (or, by a negative strength, taken away).

    Args:
        program: any object with ``model`` and ``guide``; its model takes ``size``.
        batch: fields (B, ...).
        vector: of :func:`attribute_vector`, of one code's shape.
        strengths: multiples of the vector, S.
        site: the latent; the one with the most components when left out.
        field: the observed site.

    Returns:
        Mean images (B, S, ...); strength 0 is the reconstruction.

    Raises:
        PplError: the vector is not of the code's shape, or there are no strengths.
    """
    if not len(strengths):
        raise PplError("an attribute is added in at least one strength (--steps 1), got none")
    program = as_program(program)
    sites, chosen = site_for(program, batch, site, field)
    if vector.shape != chosen.shape:
        raise PplError(
            f"the attribute's vector has shape {tuple(vector.shape)}, a code of latent "
            f"{chosen.name!r} {tuple(chosen.shape)}"
        )
    codes = local_codes(program, batch, sites)
    at = codes[chosen.name].unsqueeze(1)  # (B, 1, ...)
    steps = torch.tensor(strengths, dtype=at.dtype, device=at.device)
    moved = at + steps.reshape(-1, *[1] * len(chosen.shape)) * vector.to(at)  # (B, S, ...)
    latents = {name: value.repeat_interleave(len(steps), 0) for name, value in codes.items()}
    latents[chosen.name] = moved.flatten(0, 1)
    given = conditions(program, batch, field)
    given = {name: value.repeat_interleave(len(steps), 0) for name, value in given.items()}
    images = decode(program, latents, given=given, field=field)
    return images.unflatten(0, (batch_size(batch), len(steps)))


def analogy(
    program: object,
    a: Batch,
    b: Batch,
    c: Batch,
    *,
    site: str | None = None,
    field: str = "x",
) -> Tensor:
    """The analogy of a to b and c to what: the image of z(c) + z(b) − z(a).

    Args:
        program: any object with ``model`` and ``guide``; its model takes ``size``.
        a: fields (B, ...).
        b: as many data.
        c: as many data; what is held fixed, and fields that condition, are its.
        site: the latent; all real-valued ones move when left out.
        field: the observed site.

    Returns:
        Mean images (B, ...).

    Raises:
        PplError: different numbers of data.
    """
    lengths = [batch_size(batch) for batch in (a, b, c)]
    if len(set(lengths)) > 1:
        raise PplError(f"a, b and c of an analogy must be as many, got {lengths}")
    program = as_program(program)
    sites, _ = site_for(program, c, site, field)
    from_a, to_b, codes = (local_codes(program, batch, sites) for batch in (a, b, c))
    for name, z in codes.items():
        if not sites[name].discrete and site in (None, name):
            codes[name] = z + to_b[name] - from_a[name]
    return decode(program, codes, given=conditions(program, c, field), field=field)
