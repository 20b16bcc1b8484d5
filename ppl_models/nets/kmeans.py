"""Clusters of points by Lloyd's algorithm, from k-means++ seeds.

Shapes: N points, K clusters, D dimensions.

References:
    Arthur, Vassilvitskii: k-means++: The Advantages of Careful Seeding, SODA 2007.
"""

from __future__ import annotations

import torch
from torch import Tensor


@torch.no_grad()
def kmeans(
    points: Tensor, num_clusters: int, *, iterations: int = 10, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Centres of clusters, and the share of the points that each has.

    A cluster that loses all its points keeps its centre.

    Args:
        points: (N, D), N at least K.
        num_clusters: K.
        iterations: of Lloyd's algorithm.
        generator: of the seeds, on the CPU.

    Returns:
        Centres (K, D) and shares (K,).
    """
    centres = _seeds(points, num_clusters, generator)
    counts = points.new_zeros(num_clusters)
    for turn in range(iterations + 1):
        nearest = nearest_of(points, centres)
        counts = nearest.bincount(minlength=num_clusters).to(points.dtype)
        if turn == iterations:
            break
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        means = sums / counts.clamp(min=1).unsqueeze(-1)
        centres = torch.where(counts.unsqueeze(-1) > 0, means, centres)
    return centres, counts / len(points)


def nearest_of(points: Tensor, centres: Tensor) -> Tensor:
    """Index (N,) of the centre (K, D) next to each point (N, D); the first, of equals."""
    # ‖p − c‖² = ‖p‖² − 2 (p·c − ½‖c‖²), and ‖p‖² is the same for all c.
    return torch.addmm(-0.5 * centres.square().sum(-1), points, centres.T).argmax(-1)


def _seeds(points: Tensor, num: int, generator: torch.Generator) -> Tensor:
    """k-means++: each seed a point drawn in proportion to its squared distance from the others."""
    chosen = [int(torch.randint(len(points), (), generator=generator))]
    gaps = (points - points[chosen[0]]).square().sum(-1)
    for uniform in torch.rand(num - 1, generator=generator).tolist():
        reached = gaps.cumsum(0)
        total = float(reached[-1])
        if total > 0:
            place = int(torch.searchsorted(reached, uniform * total, right=True))
        else:  # fewer distinct points than clusters
            place = int(uniform * len(points))
        chosen.append(min(place, len(points) - 1))
        gaps = torch.minimum(gaps, (points - points[chosen[-1]]).square().sum(-1))
    return points[chosen].clone()
