"""Latent sites that a program has given up: posterior collapse, and what to say of it."""

from __future__ import annotations

from collections.abc import Mapping

COLLAPSED_RATE = 0.1
"""Nats per datum of a site's rate, KL(q ‖ p), below which it tells next to nothing of a datum."""


def collapsed_sites(rates: Mapping[str, float]) -> dict[str, float]:
    """Those of the sites that have collapsed.

    Args:
        rates: of local latent sites, nats per datum.
    """
    return {name: rate for name, rate in rates.items() if rate < COLLAPSED_RATE}


def collapse_note(collapsed: Mapping[str, float]) -> str | None:
    """What it means, in words; None if no site has collapsed.

    Args:
        collapsed: rates of :func:`collapsed_sites`.
    """
    if not collapsed:
        return None
    named = ", ".join(f"{name} ({rate:.3f})" for name, rate in collapsed.items())
    one = len(collapsed) == 1
    return (
        f"Collapsed: {named}. {'Its rate is' if one else 'Their rates are'} below "
        f"{COLLAPSED_RATE:g} nats per datum: the posterior is all but the prior, so that "
        f"{'this site tells' if one else 'these sites tell'} next to nothing of a datum."
    )
