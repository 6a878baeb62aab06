"""Evaluation of a model by all processes together, and how its result is shown."""

from collections.abc import Callable
from dataclasses import dataclass

from stnet.console import Reporter, printable
from stnet.data.index import DatasetIndex
from stnet.evaluation.coco import CocoMetrics, Precision, ScoredFrame, evaluate_frames
from stnet.evaluation.figures_table import show_figures
from stnet.evaluation.lesion_metrics import SIZES
from stnet.evaluation.predict import PredictionOptions, Predictor, predict_frames
from stnet.evaluation.protocol import planned_clips
from stnet.evaluation.report import Report
from stnet.model.backbone import lay_out_for
from stnet.model.detector import Detector
from stnet.training.distributed import World


@dataclass(frozen=True, kw_only=True)
class Validation:
    """Metrics, and the scored frames they come from."""

    metrics: CocoMetrics
    frames: list[ScoredFrame]


def validate(
    model: Detector | Predictor,
    index: DatasetIndex,
    options: PredictionOptions,
    score_threshold: float,
    world: World,
    reporter: Reporter,
    check: Callable[[], None] = lambda: None,
) -> Validation | None:
    """Predict this process's share of the videos, gather all shares, and score them on the first process.

    The metrics do not depend on the number of processes: every video is predicted by itself.

    Args:
        model: on this process's device; put in evaluation mode meanwhile. Or an engine.
        index: the videos.
        options: how clips are predicted.
        score_threshold: operating point of recall and false positives.
        world: the processes that share the videos.
        reporter: where progress goes.
        check: called between batches; may raise to leave.

    Returns:
        The result on the first process, None on the others.
    """
    planned = planned_clips(index, options.protocol, model.config.frames, options.targets)
    share = _shares([sum(len(clip.targets) for clip in clips) for clips in planned], world.size)[world.rank]
    reporter.start("evaluating", sum(len(clip.targets) for number in share for clip in planned[number]))

    def advance(count: int) -> None:
        reporter.advance(count)
        check()

    training = isinstance(model, Detector) and model.training
    if isinstance(model, Detector):  # an engine has the format already
        lay_out_for(model.backbone, world.device)
    if training:
        model.eval()
    try:
        scored = predict_frames(model, index, options, videos=share, advance=advance)
    finally:
        if training:
            model.train()
        reporter.stop()
    shares = world.gather(scored)
    if not world.is_first:
        return None
    frames = sorted((frame for part in shares for frame in part), key=lambda frame: frame.image_id)
    metrics = evaluate_frames(frames, index.class_names, score_threshold)
    return Validation(metrics=metrics, frames=frames)


def flat(metrics: CocoMetrics | None, class_names: tuple[str, ...]) -> dict[str, float | None]:
    """Metrics as named columns; all None without metrics."""
    names = ("ap", "ap50", "ap75")
    columns: dict[str, float | None] = {}
    groups: list[tuple[str, str, Precision | None]] = [
        ("", "", metrics and metrics.overall),
        ("agnostic_", "", metrics and metrics.agnostic),
        *(("", f"_{printable(name)}", metrics and metrics.per_class[name]) for name in class_names),
    ]
    for before, after, precision in groups:
        columns |= {before + name + after: precision and getattr(precision, name) for name in names}
    columns["recall"] = metrics and metrics.recall
    columns["false_positives_per_frame"] = metrics and metrics.false_positives_per_frame
    return columns


def show(metrics: CocoMetrics, title: str, reporter: Reporter) -> None:
    """Print metrics as a table."""
    rows = [("all classes", metrics.overall), ("class-agnostic", metrics.agnostic), *metrics.per_class.items()]
    reporter.table(
        title,
        ("", "AP", "AP50", "AP75"),
        [(name, *(_percent(value) for value in (p.ap, p.ap50, p.ap75))) for name, p in rows],
    )
    reporter.message(
        f"{metrics.frames} frames, {metrics.lesions} lesions; at score {metrics.score_threshold:g}: recall "
        f"{_percent(metrics.recall)} %, {metrics.false_positives_per_frame:.3f} false positives per frame"
    )


def show_report(report: Report, reporter: Reporter) -> None:
    """Print what `show` leaves out: whole videos, lesions against false positives, precision by size."""
    lesions, videos = report.lesions, report.videos
    reporter.table(
        "lesions by size, class-agnostic",
        ("share of the frame", "lesions", "AP", "AP50"),
        [
            (f"{name} {_range(*SIZES[name])}", str(lesions.lesions_by_size[name]), _percent(p.ap), _percent(p.ap50))
            for name, p in lesions.by_size.items()
        ],
    )
    show_figures({"frames": report.images}, "lesions in frames, intervals by video", reporter, groups="videos")
    rates = ", ".join(f"{_percent(recall)} % at {rate:g}" for rate, recall in lesions.recall_at.items())
    reporter.message(f"lesions found by false positives per frame: {rates}")
    positive = videos.positive_class
    reporter.message(
        f"{len(videos.videos)} videos: {videos.positives} {positive}, {videos.negatives} with other lesions, "
        f"{videos.lesion_free} without; lesion against none: AUC {_figure(videos.lesion_auc)}"
    )
    reporter.message(
        f"{positive} against other lesions: AUC {_figure(videos.auc)}; at {videos.threshold:g}: sensitivity "
        f"{_percent(videos.sensitivity)} %, specificity {_percent(videos.specificity)} %"
    )


def _range(low: float, high: float) -> str:
    if low == 0:
        return f"< {100 * high:g} %"
    return f">= {100 * low:g} %" if high > 1 else f"{100 * low:g} to {100 * high:g} %"


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _shares(sizes: list[int], count: int) -> list[list[int]]:
    """Split items so that the sums of their sizes are alike; each share in ascending order."""
    shares: list[list[int]] = [[] for _ in range(count)]
    loads = [0] * count
    for item in sorted(range(len(sizes)), key=lambda item: -sizes[item]):
        lightest = loads.index(min(loads))
        shares[lightest].append(item)
        loads[lightest] += sizes[item]
    return [sorted(share) for share in shares]
