"""Losses and metrics of a run as one picture."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from stnet.figures import write_png
from stnet.training.criterion import TERMS

LOSSES = ("loss", *TERMS)
METRICS = ("ap", "ap50", "ap75", "agnostic_ap", "agnostic_ap50", "recall")


def draw_curves(steps: Sequence[dict], epochs: Sequence[dict], path: Path) -> None:
    """Draw the rows of steps.csv and metrics.csv.

    Args:
        steps: rows with `step` and the losses.
        epochs: rows with `step`, `epoch` and, after evaluations, metrics.
        path: PNG to write.
    """
    columns = math.ceil((len(LOSSES) + 2) / 2)
    figure = Figure(figsize=(13 / 3 * columns, 7), layout="constrained")
    *panels, evaluations, rates = figure.subplots(2, columns).flat[: len(LOSSES) + 2]
    for panel, name in zip(panels, LOSSES, strict=True):
        _draw_loss(panel, steps, name)
    for name in METRICS:
        points = [(row["step"], row[name]) for row in epochs if name in row]
        if points:
            evaluations.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
    evaluations.set(title="validation", xlabel="step", ylim=(0, 1))
    if evaluations.lines:
        evaluations.legend(fontsize=8)
    rates.plot([row["step"] for row in steps], [row["learning_rate"] for row in steps])
    rates.set(title="learning rate", xlabel="step")
    for panel in figure.axes:
        panel.grid(alpha=0.3)
    write_png(figure, path)


def _draw_loss(panel, steps: Sequence[dict], name: str) -> None:
    at = np.array([row["step"] for row in steps if name in row])
    values = np.array([row[name] for row in steps if name in row])
    panel.set(title=name, xlabel="step")
    if not len(values):
        return
    panel.plot(at, values, alpha=0.25, linewidth=0.8)
    window = max(1, len(values) // 50)
    smooth = np.convolve(values, np.ones(window) / window, mode="valid")
    panel.plot(at[window - 1 :], smooth, linewidth=1.8)
    if values.min() > 0:
        panel.set_yscale("log")
