"""The kind of exploration that looks at codes: what each stands for, and how often it is used.

Shapes: B data, S codes, C H W image, h w grid.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from inference.data import Split
from inference.devices import isolated_rng
from inference.elbo.traces import run_traces, sample_sites
from inference.evaluation import perplexity_of
from inference.explore.choice import pictures
from inference.explore.result import Explorable, Exploration
from inference.plotting.codebook import codebook_figure
from inference.sites import state_counts
from inference.weights import evaluation_mode
from ppl_models.errors import PplError, UnknownNameError
from ppl_models.program import Program

SURROUNDINGS = 3
"""Side of a code's picture, in places of the grid; its own is the middle."""


def codebook(
    run: Explorable, *, split: str = "test", site: str | None = None, seed: int = 0
) -> Exploration:
    """Each code's picture, the mean of the image around the places where it is used, and its use.

    Counted over the whole split.
    """
    part = run.data.split(split)
    with evaluation_mode(run.program), torch.no_grad(), isolated_rng(seed), run.program.scope():
        name = _grid_site(run.program, part, site)
        found = _Codes()
        for batch in part.batches(512):
            traces = run_traces(run.program.run_model, run.program.run_guide, (batch,), {})
            node = traces.model.nodes[name]
            counts = state_counts(node["fn"], node["value"])
            assert counts is not None  # or it would be no grid of codes
            found.add(batch["x"], node["value"], counts)
    perplexity = perplexity_of(found.counts)
    dead = int((found.counts == 0).sum())
    size = len(found.counts)
    title = (
        f"{run.program.name} on {run.data.info.name}, site {name}: {size} codes, perplexity "
        f"{perplexity:.1f}, {dead or 'none'} unused\n"
        "the mean of the image around the places of each code (framed: the place itself)"
    )
    use = found.counts.cpu().double().numpy()
    figure = codebook_figure(pictures(found.means()), use, title, 1 / SURROUNDINGS)
    numbers = {"site": name, "codes": size, "perplexity": perplexity, "dead_codes": dead}
    return Exploration(figure, numbers=numbers | {"data": len(part)})


def _grid_site(program: Program, split: Split, asked: str | None) -> str:
    """The latent whose values are a grid of codes; that of the most places, if none is asked for.

    Raises:
        PplError: the program has none.
        UnknownNameError: none of the name that is asked for.
    """
    batch = next(iter(split.batches(2)))
    traces = run_traces(program.run_model, program.run_guide, (batch,), {})
    grids = {
        name: site["value"][0].numel()
        for name, site in sample_sites(traces.model)
        if not site["is_observed"]
        and site["fn"].event_dim == 2
        and not site["value"].is_floating_point()
        and state_counts(site["fn"], site["value"]) is not None
    }
    if not grids:
        raise PplError(
            f"{program.name} has no grid of codes: no latent whose values are integers (h, w)"
        )
    if asked is not None and asked not in grids:
        raise UnknownNameError("grid of codes", asked, grids)
    return asked or max(grids, key=lambda name: grids[name])


class _Codes:
    """Sums over data: pictures around the places of each code, and how many places."""

    def __init__(self) -> None:
        self.counts = self.sums = torch.zeros(0)

    def add(self, x: Tensor, codes: Tensor, counts: Tensor) -> None:
        """Take in images (B, C, H, W) and their codes (B, h, w).

        Raises:
            PplError: the data are no images.
        """
        if x.dim() != 4:
            raise PplError(f"a code's picture needs images (C, H, W), got {tuple(x.shape[1:])}")
        around = surroundings(x, codes.shape[-2:])  # (B, h, w, C, P, Q)
        if len(self.counts) == 0:
            self.counts = torch.zeros_like(counts)
            self.sums = x.new_zeros(len(counts), *around.shape[3:])
        self.counts = self.counts + counts
        self.sums.index_add_(0, codes.reshape(-1), around.flatten(0, 2))

    def means(self) -> Tensor:
        """The mean picture of each code, (S, C, P, Q)."""
        return self.sums / self.counts.clamp(min=1)[:, None, None, None]


def surroundings(x: Tensor, grid: torch.Size) -> Tensor:
    """The image around every place of a grid, (B, h, w, C, P, Q); its edge goes on outside.

    Args:
        x: images (B, C, H, W).
        grid: (h, w).
    """
    sides = [math.ceil(SURROUNDINGS * full / n) for full, n in zip(x.shape[-2:], grid, strict=True)]
    padded = F.pad(x, [sides[1], sides[1], sides[0], sides[0]], mode="replicate")
    rows, columns = (
        [side + round((i + 0.5) * full / n - side / 2) for i in range(n)]
        for full, n, side in zip(x.shape[-2:], grid, sides, strict=True)
    )
    cut = [
        torch.stack([padded[:, :, r : r + sides[0], c : c + sides[1]] for c in columns], dim=1)
        for r in rows
    ]
    return torch.stack(cut, dim=1)
