"""Files of patch priors: safetensors, and the MATLAB files of the literature.

Shapes: P side of a patch, D = P² − 1 dimensions, K components.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from ppl_models.errors import PplError
from ppl_models.patches import dc_free_basis

FORMAT = "ppl-models patch prior 1"
NAMES = ("weights", "eigenvalues", "eigenvectors")
Spectra = tuple[Tensor, Tensor, Tensor]
"""Weights (K,), eigenvalues (K, D), eigenvectors (K, D, D), in float64."""

ROUNDING_VARIANCE = 1 / 255**2 / 12
"""Of bytes: the least variance a covariance of a MATLAB file is given in any direction."""


def read_prior(path: Path) -> Spectra:
    """Read the spectra of a patch prior.

    Raises:
        PplError: there is no such file, it cannot be read, or it holds something else.
    """
    if not path.is_file():
        raise PplError(f"there is no prior {path}")
    return _read_matlab(path) if path.suffix.lower() == ".mat" else _read_safetensors(path)


def write_prior(
    path: Path, weights: Tensor, eigenvalues: Tensor, eigenvectors: Tensor, dtype: torch.dtype
) -> None:
    """Write the spectra of a patch prior, whole or not at all.

    Raises:
        PplError: the file cannot be written.
    """
    tensors = {
        "weights": weights.float(),
        "eigenvalues": eigenvalues.float(),
        "eigenvectors": eigenvectors.to(dtype),
    }
    tensors = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_bytes(save(tensors, {"format": FORMAT}))
        os.replace(temporary, path)
    except OSError as error:
        raise PplError(f"cannot write the prior {path}: {error.strerror or error}") from error


def _read_safetensors(path: Path) -> Spectra:
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("format")
            if found != FORMAT:
                raise PplError(f"{path} is no patch prior (expected format {FORMAT!r}: {found!r})")
            weights, eigenvalues, eigenvectors = (file.get_tensor(n).double() for n in NAMES)
    except (SafetensorError, OSError) as error:
        raise PplError(f"cannot read the prior {path}: {error}") from error
    return weights, eigenvalues, _orthonormal(eigenvectors)


def _orthonormal(vectors: Tensor) -> Tensor:
    """Columns that were rounded, made orthonormal again; the first move least."""
    q, r = torch.linalg.qr(vectors)
    return q * r.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)


def _read_matlab(path: Path) -> Spectra:
    """The struct ``GS`` (nmodels, dim, means, covs, mixweights) of Zoran and Weiss.

    Its covariances are of whole patches and singular along the mean, which is left out here.
    MATLAB lists the pixels of a patch by columns, and this package by rows.
    """
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    unreadable = (MatReadError, NotImplementedError, OSError, UnicodeDecodeError)
    try:
        struct = loadmat(path, squeeze_me=True, struct_as_record=False)["GS"]
        covariances, weights = np.asarray(struct.covs, float), np.asarray(struct.mixweights, float)
    except (KeyError, AttributeError, ValueError, TypeError, *unreadable) as error:
        raise PplError(
            f"{path} holds no mixture of patches: expected a struct GS with fields covs "
            f"(P², P², K) and mixweights (K,), in a MATLAB file before version 7.3 ({error})"
        ) from error
    covariances = covariances.reshape(*covariances.shape[:2], -1)
    weights = np.atleast_1d(weights)
    area, side = covariances.shape[0], math.isqrt(covariances.shape[0])
    if covariances.shape != (area, side**2, len(weights)):
        raise PplError(
            f"{path}: covs must be (P², P², K) and mixweights (K,); got {covariances.shape} "
            f"and {weights.shape}"
        )
    _check_zero_mean(struct, path)
    by_rows = np.arange(area).reshape(side, side).T.flatten()
    pixels = torch.from_numpy(covariances[by_rows][:, by_rows]).movedim(-1, 0)
    basis = dc_free_basis(side)
    eigenvalues, eigenvectors = torch.linalg.eigh(basis.T @ pixels @ basis)
    floored = torch.where(eigenvalues.abs() < ROUNDING_VARIANCE, ROUNDING_VARIANCE, eigenvalues)
    return torch.from_numpy(weights), floored.flip(-1), eigenvectors.flip(-1)


def _check_zero_mean(struct: Any, path: Path) -> None:
    means = np.asarray(getattr(struct, "means", 0.0), float)
    if np.abs(means).max(initial=0.0) > 1e-6:
        raise PplError(f"{path}: the means are not zero; patch priors here have zero means")


def check_spectra(weights: Tensor, eigenvalues: Tensor, eigenvectors: Tensor) -> None:
    """Check that these are the spectra of a patch prior.

    Raises:
        PplError: shapes that do not fit, D + 1 no square, weights or eigenvalues not positive.
    """
    k, dim = len(weights), eigenvalues.shape[-1]
    if eigenvalues.shape != (k, dim) or eigenvectors.shape != (k, dim, dim) or k < 1:
        raise PplError(
            "a patch prior needs weights (K,), eigenvalues (K, D) and eigenvectors (K, D, D); got "
            f"{tuple(weights.shape)}, {tuple(eigenvalues.shape)}, {tuple(eigenvectors.shape)}"
        )
    if math.isqrt(dim + 1) ** 2 != dim + 1:
        raise PplError(f"D must be P² − 1 for patches of P × P without their mean; got {dim}")
    if not bool(eigenvectors.isfinite().all()):
        raise PplError("the eigenvectors of a patch prior hold NaN or infinity")
    if not bool((weights > 0).all() & weights.isfinite().all()):
        raise PplError(
            "mixture weights must be positive and finite; leave out components that have none"
        )
    bad = ~((eigenvalues > 0).all(-1) & eigenvalues.isfinite().all(-1))
    if bool(bad.any()):
        named = bad.nonzero().flatten().tolist()
        raise PplError(
            f"the covariances of components {named[:10]} are not positive definite (least "
            f"eigenvalue {float(eigenvalues.min()):.2g}). Learn from dequantized patches, or add "
            f"the variance of rounding to bytes, {1 / 255**2 / 12:.1e}, to the diagonal."
        )
