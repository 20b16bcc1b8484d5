"""Pictures of a training run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def learning_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Training loss and validation ELBO, and rate and distortion, against epochs.

    Args:
        history: rows of ``metrics.csv``; nats per datum.
    """
    epochs = [row["epoch"] for row in history]
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(epochs, [-row["train_loss"] for row in history], label="training (−loss)")
    left.plot(epochs, [row["valid_elbo"] for row in history], label="validation ELBO")
    left.set_ylabel("nats per datum")
    left.set_title("ELBO (higher is better)", fontsize=10)
    if all("valid_rate" in row for row in history):
        right.plot(epochs, [row["valid_distortion"] for row in history], color="C2")
        right.set_ylabel("distortion (nats)", color="C2")
        twin = right.twinx()
        twin.plot(epochs, [row["valid_rate"] for row in history], color="C3")
        twin.set_ylabel("rate (nats)", color="C3")
        right.set_title("Distortion −E log p(x|z), rate KL(q‖p)", fontsize=10)
    else:
        right.set_axis_off()
    for axes in (left, right):
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left.legend(fontsize=8)
    return figure


def mode_search(
    log_joint: Sequence[float],
    quality: Sequence[float],
    quality_label: str,
    levels: Mapping[str, float] | None = None,
) -> Figure:
    """The search for a mode: how likely the values are, and how good.

    Args:
        log_joint: at every step, nats.
        quality: of the values at every step, on a scale of its own.
        quality_label: name and unit of that scale.
        levels: quality of other answers by name, drawn as lines across.
    """
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot(log_joint)
    left.set_ylabel("log joint (nats)")
    right.plot(quality, color="C2")
    right.set_ylabel(quality_label)
    for i, (name, level) in enumerate((levels or {}).items()):
        right.axhline(level, linestyle="--", color=f"C{3 + i}", label=name)
    for axes in (left, right):
        axes.set_xlabel("step")
    if levels:
        right.legend(fontsize=8)
    return figure


def rate_distortion(
    rates: Sequence[float], distortions: Sequence[float], labels: Sequence[str], setting: str
) -> Figure:
    """Distortion against rate, a point a value of a setting, and the line of the best ELBO.

    −ELBO = rate + distortion: all points of one ELBO lie on a line of slope −1; below and to the
    left of the dashed one it would be higher.

    Args:
        rates: KL(q ‖ p), nats per datum.
        distortions: −E log p(x | z), nats per datum.
        labels: values of the setting.
        setting: its name.
    """
    figure = Figure(figsize=(5.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    order = sorted(range(len(rates)), key=lambda i: rates[i])
    axes.plot([rates[i] for i in order], [distortions[i] for i in order], "o-", markersize=5)
    for rate, distortion, label in zip(rates, distortions, labels, strict=True):
        axes.annotate(
            f"{setting} = {label}",
            (rate, distortion),
            textcoords="offset points",
            xytext=(6, 5),
            fontsize=8,
        )
    best = min(r + d for r, d in zip(rates, distortions, strict=True))
    span = max(rates) - min(rates)
    ends = [min(rates) - 0.05 * span, max(rates) + 0.15 * span]
    line = [best - rate for rate in ends]
    axes.plot(ends, line, "--", color="0.5", label=f"ELBO = {-best:.1f}")
    axes.set(xlabel="rate KL(q ‖ p), nats", ylabel="distortion −E log p(x | z), nats")
    axes.legend(fontsize=8, frameon=False)
    return figure
