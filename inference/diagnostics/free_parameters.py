"""A guide whose distributions have parameters of their own for every datum.

Each parameter of a local site's distribution is moved by an offset in unconstrained space, zero at
first; a loc in units of the distribution's scale. A site whose parameters depend on
latents drawn before keeps that dependence, and its offsets are of what is left.

Shapes: S particles, B data.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from pyro.distributions import MaskedDistribution, TransformedDistribution
from pyro.poutine.messenger import Messenger
from torch import Tensor
from torch.distributions import Independent, biject_to, transform_to

from inference.densities import Plate, is_local
from inference.diagnostics.check import CannotTell
from inference.elbo.traces import Site, Traces, sample_sites
from inference.sites import family, is_point

Change = Callable[[str, Tensor, Any, Any], Tensor]
"""Of a parameter's name, value, constraint, and its distribution: the new value."""
SAME = ("covariance_matrix", "precision_matrix", "probs")
"""Parameters that say again what others say."""


def rebuilt(fn: Any, change: Change) -> Any:
    """The same distribution with other parameters.

    Raises:
        CannotTell: its parameters cannot be told.
    """
    if isinstance(fn, Independent):
        return rebuilt(fn.base_dist, change).to_event(fn.reinterpreted_batch_ndims)
    if isinstance(fn, MaskedDistribution):
        return rebuilt(fn.base_dist, change).mask(fn._mask)
    if getattr(fn, "is_wrapper", False):
        twin = copy.copy(fn)
        twin.base_dist = rebuilt(fn.base_dist, change)
        return twin
    constraints = {n: c for n, c in type(fn).arg_constraints.items() if n not in SAME}
    if not constraints and isinstance(fn, TransformedDistribution):
        return TransformedDistribution(rebuilt(fn.base_dist, change), fn.transforms)
    try:
        new = {n: change(n, getattr(fn, n), c, fn) for n, c in constraints.items()}
        if new:
            return type(fn)(**new, validate_args=False)
    except (AttributeError, NotImplementedError, TypeError) as error:
        raise CannotTell(f"the parameters of {family(fn)} cannot be set free: {error}") from error
    raise CannotTell(f"{family(fn)} does not tell its parameters")


def has_transforms(fn: Any) -> bool:
    """Whether a distribution goes through a flow, whose parameters for a datum are not seen."""
    while not isinstance(fn, TransformedDistribution) or type(fn).arg_constraints:
        if not hasattr(fn, "base_dist"):
            return False
        fn = fn.base_dist
    return any(isinstance(transform, torch.nn.Module) for transform in fn.transforms)


class Freed(Messenger):
    """Within, the guide's local sites have parameters of their own for every datum.

    Args:
        traces: of a run on the B data.
        plate: the data plate.

    Raises:
        CannotTell: a site is global, a point, or not reparameterized.
    """

    def __init__(self, traces: Traces, plate: Plate) -> None:
        super().__init__()
        self.plate = plate
        self.num_particles = 1
        self.offsets: dict[tuple[str, int], Tensor] = {}
        """By site and number of the parameter, with gradient."""
        self.sites = {}
        for name, site in sample_sites(traces.guide):
            _check(name, site, plate)
            self.sites[name] = site
            self._start(name, site)

    def _start(self, name: str, site: Site) -> None:
        """Offsets of zero; the distribution must be what it was with them."""

        def note(parameter: str, value: Tensor, constraint: Any, fn: Any) -> Tensor:
            self.offsets[name, self._count] = torch.zeros_like(value, requires_grad=True)
            return self._moved(name, parameter, value, constraint, fn)

        self._count, self._axis = 0, self._row_axis(site["fn"])
        same = rebuilt(site["fn"], note)
        was, now = (fn.log_prob(site["value"]) for fn in (site["fn"], same))
        if was.shape != now.shape or not torch.allclose(was, now, rtol=1e-4, atol=1e-4):
            raise CannotTell(
                f"site {name!r} ({family(site['fn'])}) is not made of its parameters alone, so "
                "they cannot be set free"
            )

    def _row_axis(self, fn: Any) -> int:
        """The data's axis, from the left."""
        return len(fn.batch_shape) + self.plate[1]

    def _moved(self, name: str, parameter: str, value: Tensor, constraint: Any, fn: Any) -> Tensor:
        offset = torch.cat([self.offsets[name, self._count]] * self.num_particles, self._axis)
        self._count += 1
        if parameter == "loc":
            return value + _unit(fn) * offset
        to = _bijection(constraint)
        return to(to.inv(value) + offset)

    def _pyro_sample(self, msg: Any) -> None:
        name = msg["name"]
        if name in self.sites:
            self._count, self._axis = 0, self._row_axis(msg["fn"])
            msg["fn"] = rebuilt(msg["fn"], partial(self._moved, name))


def _unit(fn: Any) -> Tensor:
    """Of a loc: the scale of the family (a log-normal's is of log z), else the standard deviation,
    else one, as where heavy tails have none.
    """
    scale = getattr(fn, "scale", None)
    unit = fn.stddev if scale is None else scale
    return torch.where(unit.isfinite(), unit, 1.0).detach()


def _bijection(constraint: Any) -> Any:
    """From unconstrained space; of some constraints torch has it under the other name alone."""
    try:
        return biject_to(constraint)
    except NotImplementedError:
        return transform_to(constraint)


def _check(name: str, site: Site, plate: Plate) -> None:
    if not is_local(site, plate):
        raise CannotTell(
            f"the latent {name!r} stands outside the data plate: it has no posterior per datum, "
            "and its guide nothing that is amortized"
        )
    if is_point(site["fn"]):
        raise CannotTell(f"the guide is a point at {name!r}, which has no ELBO to refit")
    if not site["fn"].has_rsample:
        raise CannotTell(
            f"the latent {name!r} ({family(site['fn'])}) is not reparameterized, so its parameters "
            "cannot be refitted by gradients"
        )
