"""Effect handlers that change how sites are drawn."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Mapping
from typing import Any

from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import OneHotCategorical

from inference.elbo.wrapped import Wrapped
from inference.sites import innermost, is_point
from ppl_models.errors import PplError, UnknownNameError


class ScoreSampled(Wrapped):
    """A distribution whose draws carry no gradient, so that its score function is needed.

    Unlike ``fn.has_rsample_(False)`` it survives ``expand`` and ``to_event``, so it works in
    plates and with vectorized particles.
    """

    has_rsample = False


class ScoreFunctionMessenger(Messenger):
    """Makes latent sites score-function sites: their draws carry no gradient.

    Point masses stay as they are: their gradient is that of their value.

    Args:
        sites: which; all when left out.
    """

    def __init__(self, sites: Collection[str] | None = None) -> None:
        super().__init__()
        self.sites = sites
        self.found: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        fn = msg["fn"]
        if msg["is_observed"] or isinstance(fn, _Subsample):
            return
        self.found.add(msg["name"])
        chosen = self.sites is None or msg["name"] in self.sites
        draws = fn.has_rsample and not is_point(fn)
        if (chosen and draws) or isinstance(innermost(fn), OneHotCategorical):
            msg["fn"] = ScoreSampled(fn)


def score_function(
    guide: Callable[..., Any], sites: Collection[str] | str | None = None
) -> Callable[..., Any]:
    """A guide whose sites are drawn without a reparameterized gradient.

    Estimators then use the score function (REINFORCE) there: those of this package and stock
    Pyro's, with particles vectorized or not.

    Args:
        guide: any guide.
        sites: names of the sites; all but point masses (``Delta``) when left out.

    Returns:
        The guide, with the same arguments.

    Raises:
        PplError: ``guide`` is not callable.
        UnknownNameError: when it runs, if the guide has no site of such a name.

    Example:
        >>> from pyro.infer import SVI, Trace_ELBO
        >>> svi = SVI(model, score_function(guide, sites=["z"]), optim, Trace_ELBO())
    """
    if not callable(guide):
        raise PplError(f"score_function takes a guide, which is callable; got {guide!r}")
    wanted = [sites] if isinstance(sites, str) else sites

    @functools.wraps(guide, updated=())
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        with ScoreFunctionMessenger(wanted) as messenger:
            result = guide(*args, **kwargs)
        for name in wanted or ():
            if name not in messenger.found:
                raise UnknownNameError("guide site", name, messenger.found)
        return result

    return wrapped


class FixedValues(Messenger):
    """Gives latent sites these values; they stay latent.

    Args:
        values: by site.
    """

    def __init__(self, values: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.values = values

    def _pyro_sample(self, msg: Any) -> None:
        if msg["name"] in self.values and not msg["is_observed"]:
            msg["value"] = self.values[msg["name"]]
            msg["done"] = True
