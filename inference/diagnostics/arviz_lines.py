"""The one place that knows ArviZ: its lines 0.x (Python 3.11) and 1.x (3.12 and later).

Shapes: S draws, N data.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import xarray as xr


def _arviz() -> tuple[ModuleType, bool]:
    """ArviZ, and whether it is of the line 1.x; imported when first needed, for it is slow."""
    import arviz

    return arviz, not arviz.__version__.startswith("0.")


def psis(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pareto-smoothed importance sampling.

    Args:
        log_weights: (N, S) or (S,), log p − log q up to a constant; the same sign in both lines.
            They are finite, and those of a row differ (of equal ones 1.x raises):
            ``importance.smooth`` takes any.

    Returns:
        The smoothed log weights, normalized over S, and the Pareto k, (N,) or ().

    References:
        Vehtari, Simpson, Gelman, Yao, Gabry: Pareto Smoothed Importance Sampling, JMLR 25, 2024,
        arXiv:1507.02646.
    """
    arviz, newer = _arviz()
    if newer:
        from arviz_stats.base import array_stats

        found: Any = array_stats.psislw(-log_weights)  # this line takes log likelihoods
    else:
        found = arviz.psislw(log_weights)
    return np.asarray(found[0]), np.asarray(found[1])


def container(groups: Mapping[str, xr.Dataset], attrs: Mapping[str, Any]) -> Any:
    """Groups as what ArviZ works on: ``InferenceData`` (0.x) or an xarray ``DataTree`` (1.x).

    Args:
        groups: by name, with the dimensions ``chain`` and ``draw`` where they are of draws.
        attrs: of the whole.
    """
    arviz, newer = _arviz()
    if not newer:
        return arviz.InferenceData(attrs=dict(attrs), **groups)
    tree = xr.DataTree.from_dict({f"/{name}": group for name, group in groups.items()})
    tree.attrs.update(attrs)
    return tree


def open_netcdf(path: Path) -> Any:
    """What ArviZ works on, from a file whose arrays are read when they are used.

    Args:
        path: of a netCDF file of groups.
    """
    arviz, newer = _arviz()
    if newer:
        return xr.open_datatree(path, engine="h5netcdf")
    with arviz.rc_context({"data.load": "lazy"}):
        return arviz.from_netcdf(str(path))
