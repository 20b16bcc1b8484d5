"""The states of discrete sites, those of several dimensions jointly."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import torch
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor

from inference.elbo.checks import check_unmasked
from inference.elbo.traces import Site, Traces, sample_sites
from inference.elbo.wrapped import Wrapped
from inference.sites import family, innermost
from ppl_models.errors import ProgramError

MAX_STATES = 4096
"""Joint states of one site that are still enumerated."""


class JointStates(Wrapped):
    """A distribution of independent discrete elements, enumerated over their joint states.

    Pyro passes over ``Bernoulli(...).to_event(1)`` where it enumerates, and draws instead.

    Args:
        base_dist: a discrete distribution under ``to_event``.
    """

    has_enumerate_support = True

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """(states, batch..., event...), where the batch is of size one unless expanded."""
        element = innermost(self.base_dist)
        states = element.enumerate_support(expand=False)
        own = len(element.event_shape)  # of a one-hot vector
        states = states.reshape(len(states), *element.event_shape)
        count = self.event_shape[: len(self.event_shape) - own].numel()
        each = torch.arange(len(states), device=states.device)
        joint = states[torch.cartesian_prod(*[each] * count).reshape(-1, count)]
        joint = joint.reshape(-1, *[1] * len(self.batch_shape), *self.event_shape)
        return joint.expand(-1, *self.batch_shape, *self.event_shape) if expand else joint


class EnumerateLatents(Messenger):
    """Marks latent sites without ``rsample`` for parallel enumeration.

    Args:
        given: sites whose values come from elsewhere.
    """

    def __init__(self, given: Container[str] = ()) -> None:
        super().__init__()
        self.given = given

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        drawn = msg["is_observed"] or isinstance(fn, _Subsample) or msg["name"] in self.given
        if drawn or fn.has_rsample:
            return
        msg["infer"] = msg["infer"] | {"enumerate": "parallel"}
        if not fn.has_enumerate_support:
            msg["fn"] = JointStates(fn)


def num_states(site: Site) -> int | None:
    """How many joint values a site has, or None: no finite number that is known."""
    element = innermost(site["fn"])
    if not getattr(element, "has_enumerate_support", False):
        return None
    try:
        states = len(element.enumerate_support(expand=False))
    except NotImplementedError:  # such as a Binomial of varying counts
        return None
    shape = site["fn"].event_shape
    return int(states ** shape[: len(shape) - len(element.event_shape)].numel())


def check_enumerable(traces: Traces, estimator: str) -> None:
    """Refuse latents that can be neither summed out nor reparameterized.

    Raises:
        ProgramError: naming the site, why, and what to use instead.
    """
    guide = dict(sample_sites(traces.guide))
    absent = {n: s for n, s in sample_sites(traces.model) if not s["is_observed"]}
    discrete = [n for n, s in (absent | guide).items() if not s["fn"].has_rsample]
    check_unmasked(traces, discrete, estimator)
    for name, site in (absent | guide).items():
        if name not in discrete:
            if name not in guide:
                raise ProgramError(
                    f"latent site {name!r} of the model is not in the guide, and no sum over it is "
                    f"possible: it is {family(site['fn'])}. Sample it in the guide."
                )
            continue
        states = num_states(site)
        if states is None or states > MAX_STATES:
            many = (
                "has no finite set of states"
                if states is None
                else f"has more than {MAX_STATES:,} joint states"
            )
            raise ProgramError(
                f"estimator {estimator!r} sums over the states of discrete sites, but site "
                f"{name!r} ({family(site['fn'])}) {many}; use 'leave_one_out'"
            )
    if not discrete:
        raise ProgramError(
            f"estimator {estimator!r} sums over discrete latents, and the program has none; use "
            "'analytic_kl' or 'pathwise'"
        )
