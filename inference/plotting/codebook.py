"""A codebook to look at: what each code stands for, and how often it is used.

Shapes: S codes, C H W picture of a code.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import LogLocator
from numpy.typing import NDArray

from inference.plotting.images import tile

Array = NDArray[Any]
MOST_SHOWN = 256
CELL = 0.5
"""Inches of a picture with its caption."""


def codebook_figure(
    pictures: Array, use: Array, title: str = "", framed: float | None = None
) -> Figure:
    """Pictures of codes, the most used first, above a diagram of their use.

    Args:
        pictures: (S, C, H, W) in [0, 1]; of codes that are not used, anything.
        use: how often each was used, (S,).
        title: above it.
        framed: put a frame around the middle of each, of this share of its sides.
    """
    order = np.argsort(-use, kind="stable")
    shown = order[:MOST_SHOWN]
    columns = min(len(shown), 16)
    rows = math.ceil(len(shown) / columns)
    width, height = max(4.5, columns * CELL), rows * CELL * 1.25
    figure = Figure(figsize=(width, height + 2.6), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=[height, 2.0])
    _draw_codes(above, pictures[shown], use[shown] / max(1, use.sum()), shown, columns, framed)
    above.set_title(title, fontsize=10)
    _draw_use(below, use[order])
    return figure


def _draw_codes(
    axes: Axes, pictures: Array, share: Array, names: Array, columns: int, framed: float | None
) -> None:
    """Each code's picture with its number and share below; an unused one is crossed out."""
    high, wide = pictures.shape[-2:]
    gap = max(2, round(0.22 * high))  # room for a caption
    padded = np.ones((len(pictures), pictures.shape[1], high + gap, wide))
    padded[:, :, :high] = np.where(share[:, None, None, None] > 0, pictures, 0.85)
    pad = 1
    axes.imshow(tile(padded, columns, pad), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
    axes.set_axis_off()
    for i, (name, part) in enumerate(zip(names, share, strict=True)):
        left = pad + (i % columns) * (wide + pad) - 0.5
        top = pad + (i // columns) * (high + gap + pad) - 0.5
        middle = (left + wide / 2, top + high + 0.5 * gap)
        text = f"{name}: {_percent(part)}"
        axes.text(*middle, text, ha="center", va="center", fontsize=4.5, color="0.25")
        if part == 0:
            axes.plot([left, left + wide], [top, top + high], color="firebrick", lw=0.8)
        elif framed is not None:
            corner = (left + wide * (1 - framed) / 2, top + high * (1 - framed) / 2)
            box = Rectangle(corner, wide * framed, high * framed)
            box.set(fill=False, edgecolor="tab:orange", linewidth=0.5)
            axes.add_patch(box)


def _percent(share: float) -> str:
    digits = 3 if share > 0.1 else 2
    return f"{100 * share:.{digits}g} %"


def _draw_use(axes: Axes, use: Array) -> None:
    """How often each code is used, relative to all being used alike."""
    relative = use * len(use) / max(1, use.sum())
    axes.bar(np.arange(len(use)), relative, width=1.0, color="tab:blue", linewidth=0)
    axes.axhline(1.0, color="0.3", lw=1, ls="--", label="all codes alike")
    lowest = relative[relative > 0].min() if (relative > 0).any() else 0.1
    axes.set_yscale("log")
    axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.yaxis.set_minor_formatter("{x:g}")
    axes.set_ylim(bottom=min(lowest, 1.0) / 2)  # few codes may have all the use: 1 stays in sight
    axes.set_xlim(-0.5, len(use) - 0.5)
    dead = int((use == 0).sum())
    if dead:
        axes.axvspan(len(use) - dead - 0.5, len(use) - 0.5, color="firebrick", alpha=0.15)
        axes.text(len(use) - dead / 2 - 0.5, 1.1, f"{dead} unused", ha="center", fontsize=8)
    axes.set_xlabel("codes, the most used first", fontsize=9)
    axes.set_ylabel("use, relative\nto the mean", fontsize=9)
    axes.tick_params(labelsize=8, which="both")
    axes.legend(fontsize=8, loc="upper right")
