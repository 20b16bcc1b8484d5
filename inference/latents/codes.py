"""The latents that can be explored: local sites of the model, their priors and codes.

Shapes: B data, N all data of a set.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from inference.data.dataset import Split
from inference.densities import data_plate, is_local
from inference.elbo.traces import sample_sites
from inference.evaluation import as_batches
from inference.sampling import completes, decode, encode, prior_trace
from inference.sites import is_discrete
from ppl_models.errors import PplError, UnknownNameError
from ppl_models.program import Batch, Program, as_program


@dataclass(frozen=True)
class LatentSite:
    """A latent of every datum."""

    name: str
    shape: torch.Size
    """Of one datum's value."""
    prior: Any
    """p(z), or p(z | the latents and fields before it), of as many draws as were asked for."""
    discrete: bool

    @property
    def size(self) -> int:
        """Number of components."""
        return self.shape.numel()

    def check_index(self, index: int) -> None:
        """Refuse a component that does not exist.

        Raises:
            PplError: ``index`` is not in 0 .. size − 1.
        """
        if not 0 <= index < self.size:
            raise PplError(
                f"latent {self.name!r} has {self.size} component(s), 0 to {self.size - 1}; "
                f"there is no component {index}"
            )


def latent_sites(
    program: object, *, size: int = 2, given: Batch | None = None, field: str = "x"
) -> dict[str, LatentSite]:
    """The latent sites in the data plate, as the model meets them without data.

    Args:
        program: any object with ``model`` and ``guide``; its model takes ``size``.
        size: draws that the priors are of.
        given: fields that the model conditions on, (size, ...).
        field: the observed site.

    Raises:
        ProgramError: the model takes no ``size``, or has no data plate.
    """
    program = as_program(program)
    trace = prior_trace(program, size, given, at_mean=True)
    plate = data_plate(trace, size)
    found = {}
    for name, site in sample_sites(trace):
        outermost = site["value"].dim() == -plate[1] + len(site["fn"].event_shape)
        if name in (*program.fields, field) or not is_local(site, plate) or not outermost:
            continue
        shape = site["value"].shape[1:]
        found[name] = LatentSite(name, shape, site["fn"], is_discrete(site["fn"]))
    return found


def choose_site(sites: Mapping[str, LatentSite], name: str | None = None) -> LatentSite:
    """The latent site of this name, or the one with the most components.

    Raises:
        UnknownNameError: there is none of this name.
        PplError: it is discrete, or no site is real-valued.
    """
    if name is not None and name not in sites:
        raise UnknownNameError("latent site", name, sites)
    real = {key: site for key, site in sites.items() if not site.discrete}
    if not real or (name is not None and name not in real):
        which = f"latent {name!r} is" if name else f"the latents ({', '.join(sites) or 'none'}) are"
        raise PplError(
            f"{which} not real-valued, so there is nothing between two values. Samples, "
            "reconstructions and nearest training images can be had of any program"
        )
    return real[name] if name else max(real.values(), key=lambda site: site.size)


def local_codes(
    program: object,
    batch: Batch,
    sites: Mapping[str, LatentSite],
    *,
    draw: str = "mean",
    seed: int = 0,
) -> dict[str, Tensor]:
    """The guide's values of these sites, (B, ...).

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (B, ...).
        sites: of :func:`latent_sites`.
        draw: as in :func:`inference.sampling.encode`.
        seed: likewise.

    Raises:
        PplError: the guide has none of the sites.
    """
    found = encode(program, batch, draw=draw, seed=seed)
    codes = {name: found[name] for name in sites if name in found}
    if not codes:
        raise PplError(
            f"the guide of {as_program(program).name} gives no code of a datum: its sites are "
            f"{', '.join(found) or 'none'}, the model's local latents {', '.join(sites) or 'none'}"
        )
    return codes


def conditions(program: Program, batch: Batch, field: str = "x") -> dict[str, Tensor]:
    """The fields of a batch that the program names and that are not decoded to, such as ``y``.

    Where the model completes data, what it decodes to is also what it reads the seen part of.
    """
    found = {k: v for k, v in batch.items() if k in program.fields and k != field}
    if field in batch and completes(program, found, field):
        found[field] = batch[field]
    return found


def site_for(
    program: object, batch: Batch, name: str | None = None, field: str = "x"
) -> tuple[dict[str, LatentSite], LatentSite]:
    """All local latents and the one that is asked for, of a program under a batch's conditions.

    Args:
        program: any object with ``model`` and ``guide``.
        batch: fields (B, ...), one datum or more.
        name: of the site; the one with the most components when left out.
        field: the observed site.

    Raises:
        UnknownNameError: there is no such latent.
        PplError: it is not real-valued.
    """
    sites = sites_under(as_program(program), batch, field)
    return sites, choose_site(sites, name)


def sites_under(program: Program, batch: Batch, field: str = "x") -> dict[str, LatentSite]:
    """The latent sites under the conditions of a batch's first datum."""
    given = conditions(program, batch, field)
    two = {name: value[:1].expand(2, *value.shape[1:]) for name, value in given.items()}
    return latent_sites(program, given=two, field=field)


@torch.no_grad()
def encode_all(
    program: object,
    batches: Iterable[Batch] | Batch | Split,
    *,
    site: str | None = None,
    num: int | None = None,
    draw: str = "mean",
    field: str = "x",
) -> tuple[Tensor, dict[str, Tensor]]:
    """The codes of a data set at one latent site, and its other fields.

    Args:
        program: any object with ``model`` and ``guide``.
        batches: a split, batches, or one batch.
        site: name; the one with the most components when left out.
        num: the first so many data; all when left out.
        draw: ``mean`` of q(z | x), or a ``sample``.
        field: the observed site.

    Returns:
        Codes (N, ...), and the fields other than ``field`` by name, (N, ...);
        on the CPU.

    Raises:
        PplError: no data, or no such site.
    """
    codes: list[Tensor] = []
    rest: dict[str, list[Tensor]] = {}
    chosen: LatentSite | None = None
    for number, batch in enumerate(as_batches(batches)):
        chosen = chosen or site_for(program, batch, site, field)[1]
        only = {chosen.name: chosen}
        codes.append(local_codes(program, batch, only, draw=draw, seed=number)[chosen.name].cpu())
        for name, value in batch.items():
            if name != field:
                rest.setdefault(name, []).append(value.cpu())
        if num is not None and sum(map(len, codes)) >= num:
            break
    if not codes:
        raise PplError("there are no data to encode")
    return torch.cat(codes)[:num], {name: torch.cat(v)[:num] for name, v in rest.items()}


def resynthesize(program: object, batch: Batch, *, field: str = "x") -> Tensor:
    """Images from their mean codes: what a program makes of images, also such as it never saw.

    Unlike in :func:`inference.sampling.reconstruct`, no code is drawn.

    Args:
        program: any object with ``model`` and ``guide``; its model takes ``size``.
        batch: fields (B, ...).
        field: the observed site.

    Returns:
        Mean images (B, ...).
    """
    program = as_program(program)
    codes = local_codes(program, batch, sites_under(program, batch, field))
    return decode(program, codes, given=conditions(program, batch, field), field=field)
