"""Pictures of a comparison of ELBO estimators.

They take what ``compare_estimators`` and ``train_compare`` return. Estimators that are not
applicable are left out, and named below.
"""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import xarray as xr
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

TOTAL = "all"
MARKERS = "ovs^DPX*<>"


def estimator_variance(comparison: xr.Dataset) -> Figure:
    """Variance of the gradient (trace of its covariance), by parameter group.

    Args:
        comparison: of ``compare_estimators``.
    """
    return _by_group(comparison, "variance", "variance of the gradient (trace of the covariance)")


def estimator_snr(comparison: xr.Dataset) -> Figure:
    """Signal-to-noise ratio of the gradient, by parameter group.

    Args:
        comparison: of ``compare_estimators``.
    """
    return _by_group(comparison, "snr", "signal-to-noise ratio ‖E g‖ / sd(g)")


def estimator_bias(comparison: xr.Dataset) -> Figure:
    """Bias of the gradient with two standard errors, by parameter group.

    Args:
        comparison: of ``compare_estimators``; each against the reference of its own target.
    """
    figure, panels, shown = _panels(comparison)
    errors = comparison["bias_se"].values
    positive = errors[np.isfinite(errors) & (errors > 0)]
    # A power of ten: the ticks at either end of the linear part stand apart from zero.
    threshold = 10.0 ** np.ceil(np.log10(np.median(positive))) if positive.size else 1.0
    for axes, table in panels:
        groups, offsets = _dodged(table)
        for group, offset, look in zip(groups, offsets, _looks(len(groups)), strict=True):
            part = table.sel(group=group)
            y = np.arange(len(shown)) + offset
            error = 2 * part["bias_se"].values
            axes.errorbar(
                part["bias"].values, y, xerr=error, label=group, linestyle="", capsize=2, **look
            )
        axes.axvline(0.0, color="0.5", linewidth=0.8)
        for i in np.flatnonzero(table["bias"].isnull().all("group").values):
            _beside(axes, int(i), "no reference")
        axes.set_xscale("symlog", linthresh=threshold)
        axes.set_xlabel("bias of the gradient ± 2 standard errors")
        _list_estimators(axes, shown)
    return _finish(figure, panels[-1][0], comparison)


def cost_frontier(comparison: xr.Dataset) -> Figure:
    """Variance of the whole gradient against seconds; the frontier is what nothing betters.

    Args:
        comparison: of ``compare_estimators``.
    """
    figure, panels, shown = _panels(comparison, height=4.2)
    for axes, table in panels:
        total = table.sel(group=TOTAL)
        seconds, variance = total["seconds"].values * 1e3, total["variance"].values
        for i, (name, look) in enumerate(zip(shown, _looks(len(shown)), strict=True)):
            if variance[i] > 0:
                label = f"{name} ({int(total['num_particles'][i])})"
                axes.plot(seconds[i], variance[i], linestyle="", label=label, **look)
        best = _frontier(seconds, variance)
        axes.plot(seconds[best], variance[best], color="0.6", linewidth=1, zorder=0)
        axes.set_xlabel("milliseconds per gradient (median)")
        if (variance > 0).any():
            axes.set_xscale("log")
            axes.set_yscale("log")
    panels[0][0].set_ylabel("variance of the gradient")
    for axes, _ in panels:  # now that the limits, which they share, are known
        if axes.get_yscale() == "log":
            _equal_cost_lines(axes)
    exact = [
        n for n, v in zip(shown, panels[-1][1]["variance"].sel(group=TOTAL), strict=True) if v == 0
    ]
    extra = f"Without variance, so not on the axes: {', '.join(exact)}." if exact else ""
    return _finish(figure, panels[-1][0], comparison, "estimator (particles)", extra)


def training_curves(training: xr.Dataset) -> Figure:
    """Validation ELBO and training loss against steps and seconds: mean and range over seeds.

    Args:
        training: of ``train_compare``.
    """
    figure = Figure(figsize=(10, 6.4), layout="constrained")
    grid = figure.subplots(2, 2, sharex="col", sharey="row")
    shown = _trained(training)
    looks = _looks(len(shown))
    rows = {"valid_elbo": "validation ELBO", "train_loss": "training loss (own objective)"}
    for (name, label), row in zip(rows.items(), grid, strict=True):
        for estimator, look in zip(shown, looks, strict=True):
            part = training.sel(estimator=estimator)
            curves = part[name].values  # (seeds, epochs)
            alive = np.isfinite(curves).any(0)
            values, seconds = curves[:, alive], part["seconds"].values[:, alive]
            mean = np.nanmean(values, 0)
            for axes, x in zip(
                row, (part["step"].values[alive], np.nanmean(seconds, 0)), strict=True
            ):
                axes.plot(
                    x,
                    mean,
                    label=estimator,
                    markersize=3,
                    color=look["color"],
                    marker=look["marker"],
                )
                low, high = np.nanmin(values, 0), np.nanmax(values, 0)
                axes.fill_between(x, low, high, color=look["color"], alpha=0.15, linewidth=0)
        row[0].set_ylabel(f"{label}\n(nats per datum)")
    grid[1, 0].set_xlabel("steps")
    grid[1, 1].set_xlabel("seconds of training (mean over seeds)")
    grid[1, 0].xaxis.set_major_locator(MaxNLocator(integer=True))
    seeds = len(training["seed"])
    figure.suptitle(f"Mean and range over {seeds} seed{'s' * (seeds > 1)}", fontsize=10)
    return _finish(figure, grid[0, 1], training)


def _by_group(comparison: xr.Dataset, name: str, label: str) -> Figure:
    figure, panels, shown = _panels(comparison)
    for axes, table in panels:
        groups, offsets = _dodged(table)
        values = table[name].values
        drawable = np.isfinite(values) & (values > 0)
        for group, offset, look in zip(groups, offsets, _looks(len(groups)), strict=True):
            part = table.sel(group=group)[name].values
            y = np.arange(len(shown)) + offset
            fits = np.isfinite(part) & (part > 0)
            axes.plot(part[fits], y[fits], linestyle="", label=group, **look)
        if drawable.any():
            axes.set_xscale("log")
        for i, estimator in enumerate(shown):  # without noise, or without any signal found
            value = float(table[name].sel(estimator=estimator, group=TOTAL))
            if value == 0 or np.isinf(value):
                _beside(axes, i, f"{'∞' if value else '0'} (all)")
        axes.set_xlabel(label)
        _list_estimators(axes, shown)
    return _finish(figure, panels[-1][0], comparison)


def _beside(axes: Axes, y: float, text: str) -> None:
    where = (0.99 if text.startswith("∞") else 0.01, y)
    side = "right" if where[0] > 0.5 else "left"
    axes.text(*where, text, transform=axes.get_yaxis_transform(), ha=side, va="center", fontsize=8)


def _panels(
    comparison: xr.Dataset, height: float | None = None
) -> tuple[Figure, list[tuple[Axes, xr.Dataset]], list[str]]:
    """A figure with a panel a checkpoint, each with its table of the applicable estimators."""
    shown = [n for n in comparison["estimator"].values.tolist() if n not in _left_out(comparison)]
    some = comparison.sel(estimator=shown)
    at = some["checkpoint"].values.tolist() if "checkpoint" in some.dims else [None]
    tall = height or 1.6 + len(shown) * max(0.3, 0.12 * len(some["group"]))
    figure = Figure(figsize=(3.2 + 4.0 * len(at), tall), layout="constrained")
    row = figure.subplots(1, len(at), squeeze=False, sharey=True, sharex=True)[0]
    tables = [some if label is None else some.sel(checkpoint=label) for label in at]
    for axes, label in zip(row, at, strict=True):
        if label is not None:
            axes.set_title(str(label), fontsize=10)
    return figure, list(zip(row, tables, strict=True)), shown


def _left_out(data: xr.Dataset) -> list[str]:
    """Estimators without numbers."""
    numbers = data["variance"] if "variance" in data else data["valid_elbo"]
    others = [dim for dim in numbers.dims if dim != "estimator"]
    missing = numbers.isnull().all(others)
    return data["estimator"].values[missing.values].tolist()


def _trained(training: xr.Dataset) -> list[str]:
    return [n for n in training["estimator"].values.tolist() if n not in _left_out(training)]


def _dodged(table: xr.Dataset) -> tuple[list[str], list[float]]:
    """The groups, and how far each stands off its estimator's line."""
    groups = table["group"].values.tolist()
    if len(groups) == 2:  # all parameters are of one group
        groups = [TOTAL]
    return groups, np.linspace(-0.3, 0.3, len(groups)).tolist() if len(groups) > 1 else [0.0]


def _looks(number: int) -> list[dict[str, Any]]:
    """Colour and marker: ten strong colours, then ten light ones."""
    paired = [colormaps["tab20"](i) for i in range(20)]
    colors = [*paired[::2], *paired[1::2]]
    return [
        {"color": colors[i % 20], "marker": MARKERS[(i + i // 10) % len(MARKERS)], "markersize": 5}
        for i in range(number)
    ]


def _list_estimators(axes: Axes, shown: list[str]) -> None:
    axes.set_yticks(range(len(shown)), shown)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    for i in range(len(shown) - 1):
        axes.axhline(i + 0.5, color="0.92", linewidth=0.8, zorder=0)
    axes.grid(axis="x", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def _frontier(seconds: np.ndarray, variance: np.ndarray) -> np.ndarray:
    """Indices, by seconds, of the points that no other betters in both."""
    best, found = np.inf, []
    for i in np.lexsort((variance, seconds)):
        if 0 < variance[i] < best:
            best = variance[i]
            found.append(i)
    return np.array(found, dtype=int)


def _equal_cost_lines(axes: Axes) -> None:
    """Along each dotted line variance x seconds is the same; ticks at 1, 2, 5."""
    left, right = _at_least_fourfold(*axes.get_xlim())
    low, high = _at_least_fourfold(*axes.get_ylim())
    x = np.array([left, right])
    for power in range(
        int(np.floor(np.log10(left * low))), int(np.ceil(np.log10(right * high))) + 1
    ):
        axes.plot(x, 10.0**power / x, color="0.85", linestyle=":", linewidth=0.8, zorder=0)
    axes.set_xlim(left, right)
    axes.set_ylim(low, high)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())


def _at_least_fourfold(low: float, high: float) -> tuple[float, float]:
    """Limits of a logarithmic axis, wide enough not to magnify noise."""
    widen = max(1.0, 2.0 / np.sqrt(high / low))
    return low / widen, high * widen


def _finish(
    figure: Figure, last: Axes, data: xr.Dataset, title: str | None = None, extra: str = ""
) -> Figure:
    """Legend beside the last panel, and a footnote."""
    handles, labels = last.get_legend_handles_labels()
    if handles:
        last.legend(
            handles,
            labels,
            title=title,
            fontsize=8,
            title_fontsize=8,
            loc="upper left",
            bbox_to_anchor=(1.01, 1.0),
            borderaxespad=0.0,
        )
    left_out = _left_out(data)
    notes = [extra] if extra else []
    if left_out:
        notes.append(f"Not applicable, left out: {', '.join(left_out)}.")
    if notes:
        width = int(figure.get_size_inches()[0] * 13)
        text = "\n".join(textwrap.fill(note, width) for note in notes)
        figure.supxlabel(text, fontsize=8, color="0.35", x=0.01, ha="left")
    return figure
