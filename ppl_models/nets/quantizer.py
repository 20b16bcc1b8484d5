"""A codebook: vectors that stand for the features of an encoder.

Every feature vector becomes the nearest of K vectors e, and is known by its index, the code. The
gradient of what is made of e[codes] goes to the feature as if nothing had happened
(straight-through), for the choice of a code has none. The vectors are learned in one of two ways:

- ``gradient``: by the loss ‖sg[f] − e[codes]‖² (sg: no gradient), as any parameter;
- ``ema``: as k-means would, each the running average of the features that choose it,

      N_k ← γ N_k + (1 − γ) n_k,    m_k ← γ m_k + (1 − γ) Σ f,    e_k = m_k / N_k,

  with n_k features of the batch at code k, Σ their sum, and N_k smoothed (Laplace) in the last
  line: (N_k + ε) / (N + K ε) · N, with N = Σ_k N_k.

Either way the encoder is drawn to its codes by commitment_cost · ‖f − sg[e[codes]]‖². Codes that
are hardly used are set anew on features of the batch (``restart_below``).

The codebook takes its step first and codes the batch afterwards, so that e[codes] is the same for
all that use the codebook in one step. It learns in train mode where gradients are on, which is a
step of training and no look at the program. All that it knows is in parameters and buffers. Of
several processes the statistics are added up, so that all have the same codebook.

Shapes: B data, D code_dim, K codes, h w grid, N = B·h·w features.

References:
    van den Oord, Vinyals, Kavukcuoglu: Neural Discrete Representation Learning, 2017,
    arXiv:1711.00937, section 3.2 and appendix A.1.
    Dhariwal et al.: Jukebox, 2020, arXiv:2005.00341, section 3.1, for the restarts.
    Yu et al.: Vector-quantized Image Modeling with Improved VQGAN, 2022, arXiv:2110.04627,
    section 3.2, for the cosine distance.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional as F

from ppl_models.errors import ProgramError, UnknownNameError, whole_number
from ppl_models.nets.kmeans import kmeans, nearest_of

DISTANCES = ("euclidean", "cosine")
UPDATES = ("ema", "gradient")


class Quantized(NamedTuple):
    """Features and the codes that they became."""

    codes: Tensor
    """(B, h, w) int64."""
    vectors: Tensor
    """e[codes], (B, D, h, w); its gradient goes to the features."""
    commitment: Tensor
    """commitment_cost · ‖f − sg[e]‖², summed over the grid, (B,)."""
    codebook: Tensor | None
    """‖sg[f] − e‖², summed over the grid, (B,); None where averages take its place."""


class Codebook(nn.Module):
    """K vectors, and how they are learned.

    Args:
        num_codes: K.
        code_dim: D.
        distance: ``euclidean``, or ``cosine``: features and codes are unit vectors.
        update: ``ema`` or ``gradient``.
        commitment_cost: of a squared distance between feature and code.
        decay: γ, of the running averages.
        smoothing: ε.
        restart_below: a code used less often than this share of the mean use is set on a feature
            of the batch; 0: never.

    Raises:
        ProgramError: numbers out of range.
        UnknownNameError: another distance or update.
    """

    vectors: Tensor
    counts: Tensor
    sums: Tensor
    started: Tensor

    def __init__(
        self,
        num_codes: int,
        code_dim: int,
        distance: str = "euclidean",
        update: str = "ema",
        commitment_cost: float = 0.25,
        decay: float = 0.99,
        smoothing: float = 1e-5,
        restart_below: float = 0.0,
    ) -> None:
        super().__init__()
        _check_numbers(num_codes, code_dim, commitment_cost, decay, smoothing, restart_below)
        if distance not in DISTANCES:
            raise UnknownNameError("distance", distance, DISTANCES)
        if update not in UPDATES:
            raise UnknownNameError("codebook update", update, UPDATES)
        self.num_codes, self.code_dim = num_codes, code_dim
        self.cosine, self.update = distance == "cosine", update
        self.commitment_cost, self.decay = commitment_cost, decay
        self.smoothing, self.restart_below = smoothing, restart_below
        start = torch.empty(num_codes, code_dim).uniform_(-1 / num_codes, 1 / num_codes)
        start = F.normalize(start, dim=-1) if self.cosine else start
        if update == "ema":
            self.register_buffer("vectors", start)
            self.register_buffer("sums", start.clone())
        else:
            self.vectors = nn.Parameter(start)
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("started", torch.tensor(False))

    def extra_repr(self) -> str:
        """For the printed network."""
        kind = "cosine" if self.cosine else "euclidean"
        return f"{self.num_codes}, {self.code_dim}, distance={kind}, update={self.update}"

    def e(self) -> Tensor:
        """The K vectors, (K, D); of length one for the cosine distance."""
        return F.normalize(self.vectors, dim=-1) if self.cosine else self.vectors

    def forward(self, features: Tensor) -> Quantized:
        """Quantize features (B, D, h, w); a step of training, where that is on."""
        with torch.autocast(features.device.type, enabled=False):
            return self._quantize(features, self.rows(features))

    def _quantize(self, features: Tensor, rows: Tensor) -> Quantized:
        if self.training and torch.is_grad_enabled():
            self.learn(rows.detach())
        codes = nearest_of(rows.detach(), self.e().detach())
        vectors = F.embedding(codes, self.e())
        gap = rows - vectors.detach()
        places = (len(features), *features.shape[-2:])
        losses = {"commitment": self.commitment_cost * _per_datum(gap, len(features))}
        if self.update == "gradient":
            losses["codebook"] = _per_datum(rows.detach() - vectors, len(features))
        passed: Tensor = _StraightThrough.apply(rows, vectors.detach())
        return Quantized(
            codes.reshape(places),
            passed.reshape(*places, self.code_dim).movedim(-1, 1),
            losses["commitment"],
            losses.get("codebook"),
        )

    def look_up(self, codes: Tensor) -> Tensor:
        """The vectors e[codes] of grids (..., h, w): (..., D, h, w).

        Raises:
            ProgramError: there is no such code.
        """
        try:
            return F.embedding(codes, self.e()).movedim(-1, -3)
        except IndexError as error:
            raise ProgramError(
                f"codes from {int(codes.min())} to {int(codes.max())}, but the codebook has "
                f"{self.num_codes}: 0 to {self.num_codes - 1}"
            ) from error

    def rows(self, features: Tensor) -> Tensor:
        """Features (B, D, h, w) as (N, D), in full precision; unit vectors for the cosine."""
        rows = features.movedim(1, -1).reshape(-1, self.code_dim).to(self.vectors.dtype)
        return F.normalize(rows, dim=-1) if self.cosine else rows

    @torch.no_grad()
    def learn(self, rows: Tensor) -> None:
        """Take a step on features (N, D): averages of codes and use, restarts."""
        chosen = F.one_hot(nearest_of(rows, self.e()), self.num_codes).to(rows.dtype)
        new_counts = _of_all(chosen.sum(0))
        counts = self.decay * self.counts + (1 - self.decay) * new_counts
        usual = counts.mean()
        dead = counts < self.restart_below * usual
        fresh = self._candidates(rows) if self.restart_below else self.vectors
        if self.update == "ema":
            new_sums = _of_all(chosen.T @ rows)
            sums = self.decay * self.sums + (1 - self.decay) * new_sums
            sums = torch.where(dead.unsqueeze(-1), usual * fresh, sums)
            self.sums.copy_(sums)
        self.counts.copy_(torch.where(dead, usual, counts))
        if self.update == "ema":
            total = self.counts.sum()
            smoothed = (self.counts + self.smoothing) / (total + self.num_codes * self.smoothing)
            self.vectors.copy_(self.sums / (smoothed * total).unsqueeze(-1))
        elif self.restart_below:
            self.vectors.copy_(torch.where(dead.unsqueeze(-1), fresh, self.vectors))

    def _candidates(self, rows: Tensor) -> Tensor:
        """A feature of the batch for every code, (K, D), the same in all processes."""
        places = torch.randint(len(rows), (self.num_codes,), device=rows.device)
        found = rows[places]
        if _num_processes() > 1:
            distributed.broadcast(found, 0)
        return found

    @torch.no_grad()
    def start(self, features: Tensor, per_batch: int, generator: torch.Generator) -> None:
        """Put the codes on clusters of features, found by k-means.

        Args:
            features: (B, D, h, w) or (N, D).
            per_batch: features of a batch, for the running counts.
            generator: of the seeds.

        Raises:
            ProgramError: fewer features than codes.
        """
        rows = self.rows(features) if features.dim() == 4 else features
        if len(rows) < self.num_codes:
            raise ProgramError(
                f"a k-means start of {self.num_codes} codes needs as many features, and the data "
                f"have {len(rows)}; give num_codes={len(rows)} at most, more data, or "
                "kmeans_start=False"
            )
        centres, shares = kmeans(rows.double(), self.num_codes, generator=generator)
        if _num_processes() > 1:
            distributed.broadcast(centres, 0)
            distributed.broadcast(shares, 0)
        self.vectors.copy_(F.normalize(centres, dim=-1) if self.cosine else centres)
        # A cluster without points starts as one of a single point would.
        self.counts.copy_((shares * per_batch).clamp(min=1.0))
        if self.update == "ema":
            self.sums.copy_(self.vectors * self.counts.unsqueeze(-1))
        self.started.fill_(True)


class _StraightThrough(torch.autograd.Function):
    """The value of the codes, exactly, with a gradient that goes to the features."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, vectors: Tensor) -> Tensor:
        return vectors.clone()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


def fingerprint_of(codebooks: Sequence[Codebook]) -> str:
    """A short name of the values of codebooks, by which others know them again."""
    digest = hashlib.sha256()
    for codebook in codebooks:
        digest.update(codebook.e().detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def _per_datum(gap: Tensor, size: int) -> Tensor:
    return gap.square().reshape(size, -1).sum(-1)


def _num_processes() -> int:
    there = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if there else 1


def _of_all(statistic: Tensor) -> Tensor:
    """The sum over all processes."""
    if _num_processes() > 1:
        distributed.all_reduce(statistic)
    return statistic


def _check_numbers(
    num_codes: int,
    code_dim: int,
    commitment_cost: float,
    decay: float,
    smoothing: float,
    restart_below: float,
) -> None:
    whole_number("num_codes", num_codes, least=2)
    whole_number("code_dim", code_dim)
    if not commitment_cost >= 0 or not 0 <= decay < 1 or not smoothing >= 0:
        raise ProgramError(
            "expected commitment_cost ≥ 0, 0 ≤ decay < 1 and smoothing ≥ 0, got "
            f"{commitment_cost}, {decay} and {smoothing}"
        )
    if not 0 <= restart_below < 1:
        raise ProgramError(
            f"restart_below is a share of the mean use, from 0 (never) to below 1; got "
            f"{restart_below}"
        )
