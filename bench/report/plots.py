"""Results as pictures."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np

from bench.report.results import Measurement, Run, grouped
from bench.report.tables import AXES, FEWEST_POINTS, OPERATORS, costs, fit, fractions, frames_per_second

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OWN, OTHER = "#1f6fb4", "#9aa5b1"
DPI = 110
SMALLEST_RESIDUAL = 5.0  # %, what the axis shows at least


def draw_all(run: Run, folder: Path) -> list[Path]:
    """Draw what a run holds into a folder, named by its device; return the files."""
    device = run.machine.get("device", "cpu")
    drawn = [
        _draw_growth(run, folder / f"{device}_growth.png"),
        *(_draw_operator(run, operator, folder / f"{device}_{operator}.png") for operator in OPERATORS),
        _draw_inference(run, folder / f"{device}_inference.png"),
        _draw_limits(run, folder / f"{device}_limits.png"),
    ]
    return [path for path in drawn if path is not None]


def _draw_growth(run: Run, path: Path) -> Path | None:
    """Cost against each axis with the fitted line, and the residuals below."""
    chosen = run.select(suite="growth")
    if not chosen:
        return None
    dtype = chosen[0]["dtype"]
    panels = {axis: run.select(suite="growth", axis=axis, dtype=dtype) for axis in AXES}
    panels = {axis: points for axis, points in panels.items() if len(points) >= FEWEST_POINTS}
    if not panels:
        return None
    figure, axes = plt.subplots(
        2, len(panels), figsize=(3.6 * len(panels), 4.6), height_ratios=(3, 1), squeeze=False, sharex="col"
    )
    for column, (axis, points) in enumerate(panels.items()):
        _draw_fit(axes[0, column], axes[1, column], points)
        axes[1, column].set_xlabel(axis)
    axes[0, 0].set_ylabel("milliseconds")
    axes[1, 0].set_ylabel("residual, %")
    return _finish(figure, path, f"Cost against the size of the problem, {dtype}")


def _draw_fit(above, below, points: Sequence[Measurement]) -> None:
    line = fit(points)
    amounts = np.array([m["amount"] for m in points], dtype=float)
    above.plot(amounts, np.array(costs(points)) * 1e3, "o", color=OWN)
    ends = np.array([0.0, amounts.max()])
    above.plot(ends, (line["slope"] * ends + line["intercept"]) * 1e3, color=OTHER)
    above.set_title(f"R² {line['r2']:.4f}", fontsize=9)
    above.set_ylim(bottom=0)
    below.axhline(0, color=OTHER)
    residuals = 100 * np.array(line["residuals"])
    below.plot(amounts, residuals, "o", color=OWN)
    below.set_ylim(*(np.array([-1.2, 1.2]) * max(SMALLEST_RESIDUAL, np.abs(residuals).max())))


def _draw_operator(run: Run, operator: str, path: Path) -> Path | None:
    """Bars of every implementation, near positions, batch 1, the first dtype measured."""
    chosen = run.select(suite="operators", operator=operator, positions="near", batch=1)
    if not chosen:
        return None
    dtype = chosen[0]["dtype"]
    panels = grouped([m for m in chosen if m["dtype"] == dtype], lambda m: (m["layer"], m["direction"]))
    figure, axes = plt.subplots(1, len(panels), figsize=(4.2 * len(panels), 3.2), squeeze=False)
    for axis, (case, members) in zip(axes[0], panels.items(), strict=True):
        members = sorted(members, key=lambda m: -m.seconds)
        colours = [OWN if m["implementation"].startswith("stnet") else OTHER for m in members]
        bars = axis.barh([m["implementation"] for m in members], [m.seconds * 1e3 for m in members], color=colours)
        axis.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
        axis.margins(x=0.15)
        axis.set_title(" ".join(case), fontsize=9)
        axis.set_xlabel("milliseconds")
        axis.tick_params(axis="y", labelsize=8)
    return _finish(figure, path, f"{OPERATORS[operator]}, {dtype}")


def _draw_inference(run: Run, path: Path) -> Path | None:
    """Frames per second of every mode."""
    chosen = run.select(suite="inference")
    if not chosen:
        return None
    dtype = chosen[0]["dtype"]
    members = sorted((m for m in chosen if m["dtype"] == dtype), key=frames_per_second)
    figure, axis = plt.subplots(figsize=(7.5, 0.8 + 0.34 * len(members)))
    names = [f"{m['mode']}, {m['implementation']}, batch {m['batch']}" for m in members]
    colours = [OWN if m["implementation"] == "stnet" else OTHER for m in members]
    bars = axis.barh(names, [frames_per_second(m) for m in members], color=colours)
    axis.bar_label(bars, fmt="%.3g", padding=2, fontsize=8)
    axis.margins(x=0.12)
    axis.set_xlabel("predicted frames per second")
    return _finish(figure, path, f"Inference, {dtype}")


def _draw_limits(run: Run, path: Path) -> Path | None:
    """Share of each of the machine's limits that our operators reach."""
    chosen = run.select(suite="operators", implementation="stnet", positions="near")
    shares = {
        f"{m['operator']} {m['layer']} {m['direction']} {m['dtype']}, {m['batch']}": fractions(run, m) for m in chosen
    }
    shares = {name: reached for name, reached in shares.items() if reached}
    if not shares:
        return None
    limits = list(next(iter(shares.values())))
    figure, axis = plt.subplots(figsize=(7.5, 0.9 + 0.16 * len(shares) * len(limits)))
    rows = np.arange(len(shares), dtype=float)
    height = 0.8 / len(limits)
    for i, limit in enumerate(limits):
        axis.barh(rows - i * height, [100 * reached[limit] for reached in shares.values()], height, label=limit)
    axis.set_yticks(rows - 0.4 + height / 2, list(shares), fontsize=8)
    axis.set_xlabel("% of the limit: copy rate, gathered bytes over L1 rate, arithmetic over float32 products")
    axis.legend(fontsize=8)
    return _finish(figure, path, "Reached of the machine's limits")


def _finish(figure, path: Path, title: str) -> Path:
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    # Without the version in it a picture changes when its data do.
    figure.savefig(path, dpi=DPI, metadata={"Software": None})
    plt.close(figure)
    return path
