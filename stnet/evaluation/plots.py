"""Curves of an evaluation as pictures."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stnet.evaluation.calibration import Reliability
from stnet.evaluation.lesion_metrics import FROC_RATES, LesionCurves
from stnet.evaluation.video_metrics import VideoMetrics, VideoResult, lesion_groups, roc_curve
from stnet.figures import legend_label, write_png

# Okabe-Ito colours, told apart by colour-blind readers.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#D55E00", "#56B4E9")
FROC_LIMIT = 4.0  # false positives per frame drawn
BINS = np.linspace(0, 1, 21)


def draw_roc(videos: VideoMetrics, path: Path) -> None:
    """Draw the ROC curves of whole videos: the positive class against the others, lesion against none."""
    with_lesion, is_positive, shares = lesion_groups(videos.videos, videos.positive_class)
    strongest = np.array([max(video.scores.values()) for video in videos.videos])
    lines = (
        (f"{videos.positive_class} against other lesions", roc_curve(shares, is_positive), videos.auc),
        ("lesion against none", roc_curve(strongest, with_lesion), videos.lesion_auc),
    )

    def draw(panel: Axes) -> None:
        for (name, curve, area), colour in zip(lines, COLOURS, strict=False):
            if curve is not None:
                panel.plot(*curve, color=colour, label=legend_label(f"{name}, area {area:.3f}"))
        if not panel.lines:
            _say(panel, "needs videos of both kinds")
            return
        panel.plot((0, 1), (0, 1), color="0.6", linewidth=0.8, linestyle="--")
        if videos.sensitivity is not None and videos.specificity is not None:
            label = legend_label(f"{videos.positive_class} at {videos.threshold:g}")
            panel.plot(1 - videos.specificity, videos.sensitivity, "o", color=COLOURS[0], label=label)
        panel.legend(loc="lower right", fontsize=8)

    _single("Whole videos", "1 - specificity", "sensitivity", draw, path)


def draw_precision_recall(curves: LesionCurves, path: Path) -> None:
    """Draw precision against recall of lesions in frames, at IoU 0.5."""

    def draw(panel: Axes) -> None:
        recall = np.linspace(0, 1, 101)
        for (name, values), colour in zip(curves.precision.items(), COLOURS, strict=False):
            panel.plot(recall, values, color=colour, label=legend_label(f"{name}, AP50 {values.mean():.3f}"))
        if panel.lines:
            panel.legend(loc="lower left", fontsize=8)
        else:
            _say(panel, "no lesions")

    _single("Lesions in frames, IoU 0.5", "recall", "precision", draw, path)


def draw_froc(curves: LesionCurves, path: Path) -> None:
    """Draw the share of lesions found against false positives per frame."""

    def draw(panel: Axes) -> None:
        panel.plot(curves.false_positives, curves.recall, color=COLOURS[0])
        end = min(FROC_LIMIT, max(curves.false_positives[-1], FROC_RATES[-1]))
        for rate in FROC_RATES:
            panel.axvline(rate, color="0.75", linewidth=0.8, linestyle="--")
        panel.set_xlim(0, end)

    _single("Lesions in frames, IoU 0.5, any class", "false positives per frame", "recall", draw, path)


def draw_reliability(raw: dict[str, Reliability], calibrated: dict[str, Reliability], path: Path) -> None:
    """Draw the share of detections that are right against their score, by class; dashed: raw scores."""

    def draw(panel: Axes) -> None:
        panel.plot((0, 1), (0, 1), color="0.6", linewidth=0.8)
        lines = [(found, "-", "") for found in (calibrated.items() or raw.items())]
        lines += [(found, "--", ", raw") for found in raw.items() if calibrated]
        for number, ((name, found), style, suffix) in enumerate(lines):
            if found.error is not None:
                colour = COLOURS[number % len(raw) % len(COLOURS)]
                label = legend_label(f"{name}{suffix}, error {100 * found.error:.1f} %")
                panel.plot(found.scores, found.shares, style, marker="o", markersize=3, color=colour, label=label)
        if len(panel.lines) > 1:
            panel.legend(loc="upper left", fontsize=8)
        else:
            _say(panel, "no detections")

    _single("Reliability of scores", "score", "share of detections that are right", draw, path)


def draw_scores(videos: VideoMetrics, path: Path) -> None:
    """Draw how many videos of each kind have which scores."""
    groups = _by_truth(videos)
    names = list(videos.videos[0].scores)
    figure = Figure(figsize=(4.2 * (len(names) + 1), 3.6), layout="constrained")
    panels = figure.subplots(1, len(names) + 1, sharey=True)
    for panel, name in zip(panels, names, strict=False):
        _histogram(panel, {truth: [video.scores[name] for video in group] for truth, group in groups.items()})
        panel.set(title=f"score for {name}", xlabel="score of the video")
    _histogram(panels[-1], {truth: [video.positive_share for video in group] for truth, group in groups.items()})
    panels[-1].axvline(videos.threshold, color="black", linewidth=1, linestyle="--")
    panels[-1].set(title=f"share of {videos.positive_class} in the scores", xlabel="share; dashed: threshold")
    panels[0].set_ylabel("videos")
    panels[0].yaxis.get_major_locator().set_params(integer=True)
    panels[0].legend(title="marked as", fontsize=8)
    write_png(figure, path)


def _by_truth(videos: VideoMetrics) -> dict[str, list[VideoResult]]:
    groups: dict[str, list[VideoResult]] = {}
    for video in videos.videos:
        groups.setdefault(" and ".join(video.truth) or "no lesion", []).append(video)
    return dict(sorted(groups.items()))


def _histogram(panel: Axes, values: dict[str, Sequence[float]]) -> None:
    colours = [COLOURS[number % len(COLOURS)] for number in range(len(values))]
    panel.hist(list(values.values()), bins=BINS, stacked=True, color=colours, label=list(map(legend_label, values)))
    panel.set_xlim(0, 1)
    panel.set_axisbelow(True)
    panel.grid(alpha=0.3)


def _single(title: str, across: str, up: str, draw: Callable[[Axes], None], path: Path) -> None:
    figure = Figure(figsize=(5, 4.6), layout="constrained")
    panel = figure.subplots()
    panel.set(title=title, xlabel=across, ylabel=up, xlim=(0, 1), ylim=(0, 1.02))
    panel.grid(alpha=0.3)
    draw(panel)
    write_png(figure, path)


def _say(panel: Axes, text: str) -> None:
    panel.text(0.5, 0.5, text, ha="center", va="center", color="0.4", transform=panel.transAxes)
