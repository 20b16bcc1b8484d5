"""The score function with the costs that a site can have caused, and no others."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from inference.elbo.score import ScoreFunction, total_cost
from inference.elbo.terms import Terms


class RaoBlackwellized(ScoreFunction):
    """The score function, where a site's cost is what lies downstream of it.

    What cannot depend on a site's draw adds zero in expectation to its gradient. Left out are the
    log q of what the guide drew before it; the log p of sites of the model that, with all that
    the model drew before them, were drawn before it in the guide; and other turns of a
    sequential plate. Other data of a plate are left out by every estimator here.

    References:
        Ranganath, Gerrish, Blei: Black Box Variational Inference, 2014, arXiv:1401.0118, 3.1.
        Schulman, Heess, Weber, Abbeel: Gradient Estimation Using Stochastic Computation Graphs,
        2015, arXiv:1506.05254.
    """

    name: ClassVar[str] = "rao_blackwellized"
    reference: ClassVar[str] = "Ranganath et al. 2014, arXiv:1401.0118, section 3.1"

    def cost(self, terms: Terms, site: str) -> Tensor:
        """The terms downstream of the site, (K, the site's plates), detached."""
        model, guide = downstream(terms, site)
        return total_cost(terms, site, model, guide)


def downstream(terms: Terms, site: str) -> tuple[list[str], list[str]]:
    """Sites of model and guide whose log density may depend on a guide site's draw.

    Args:
        terms: of the guide and the model, in the order of drawing.
        site: the guide's site.
    """
    order = [*terms.guide]
    drawn_before = set(order[: order.index(site)])
    own = terms.own_slices(site)
    model, needed = [], set()  # needed: latents that the model has drawn so far
    for name, term in terms.model.items():
        if not term.observed:
            needed.add(name)
        if not needed <= drawn_before and not term.of_another_turn(own):
            model.append(name)
    guide = [n for n in order if n not in drawn_before and not terms.guide[n].of_another_turn(own)]
    return model, guide
