"""Everything an evaluation on stills tells, as a table for people and as files of one folder.

evaluation.json        all numbers: of all stills, and of every set
stills.csv             one row per still: what is marked, what was found, boxes at every operating point
precision_recall.png   lesions in stills
froc.png               lesions found against false positives per still
reliability.png        scores against the share of detections that are right
"""

import csv
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stnet.choices import OPERATING_POINTS
from stnet.console import printable
from stnet.evaluation.bootstrap import SAMPLES
from stnet.evaluation.calibration import Reliability, calibrated_frames, mean_error, reliability
from stnet.evaluation.coco import CocoMetrics, ScoredFrame, evaluate_frames, merge_classes
from stnet.evaluation.figures_table import Printer, percent, rate, show_figures
from stnet.evaluation.image_metrics import ImageMetrics, evaluate_images
from stnet.evaluation.lesion_metrics import LesionCurves, LesionMetrics, evaluate_lesions
from stnet.evaluation.operating import CrossJudgement, PointResult, cross_judge, judge
from stnet.evaluation.plots import draw_froc, draw_precision_recall, draw_reliability
from stnet.evaluation.report import NUMBERS_FILE, numbers_writer
from stnet.evaluation.scored_stills import ScoredSet
from stnet.model.operating_points import OperatingPoints


@dataclass(frozen=True, kw_only=True, eq=False)
class StillsReport:
    """Figures of all stills and of every set, at calibrated scores where the checkpoint has operating points.

    Attributes:
        metrics: COCO's, with recall and false positives at the score threshold.
        lesions, curves: lesions against false positives, by size.
        images: further figures with intervals, of all stills.
        sets: the same by set.
        points, point_results: operating points of the checkpoint and what they do here; None and empty without any.
        set_results: the same by set.
        raw, calibrated: reliability by class; `calibrated` is empty without operating points.
        halves: calibration and thresholds of one half of these patients judged on the other.
        frames: what all of it was computed from.
    """

    metrics: CocoMetrics
    lesions: LesionMetrics
    curves: LesionCurves
    images: ImageMetrics
    sets: dict[str, ImageMetrics]
    points: OperatingPoints | None
    point_results: dict[str, PointResult]
    set_results: dict[str, dict[str, PointResult]]
    raw: dict[str, Reliability]
    calibrated: dict[str, Reliability]
    halves: CrossJudgement
    frames: Sequence[ScoredFrame]

    def to_dict(self) -> dict:
        """Plain numbers, ready for JSON."""
        return {
            **self.metrics.to_dict(),
            "lesions_in_frames": self.lesions.to_dict(),
            "images": asdict(self.images),
            "sets": {name: asdict(metrics) for name, metrics in self.sets.items()},
            "operating_points": None if self.points is None else asdict(self.points),
            "at_operating_points": {name: asdict(result) for name, result in self.point_results.items()},
            "sets_at_operating_points": {
                name: {point: asdict(result) for point, result in results.items()}
                for name, results in self.set_results.items()
            },
            "calibration_error": {"raw": mean_error(self.raw), "calibrated": mean_error(self.calibrated)},
            "reliability": {name: asdict(found) for name, found in (self.calibrated or self.raw).items()},
            "chosen_on_the_other_half": asdict(self.halves),
        }


def build_stills_report(
    sets: Sequence[ScoredSet],
    class_names: Sequence[str],
    *,
    points: OperatingPoints | None,
    score_threshold: float,
    samples: int = SAMPLES,
) -> StillsReport:
    """Evaluate predictions on stills in every way.

    Args:
        sets: at least one, with at least one still.
        class_names: of labels 1, 2, ...
        points: of the checkpoint, or None.
        score_threshold: see `evaluate_frames`.
        samples: of the bootstrap.

    Raises:
        ValueError: see `evaluate_frames`.
    """
    raw = [frame for scored in sets for frame in scored.frames]
    patients = {video: patient for scored in sets for video, patient in scored.patients.items()}

    def shown(frames: Sequence[ScoredFrame]) -> Sequence[ScoredFrame]:
        return frames if points is None else calibrated_frames(frames, points)

    frames = shown(raw)
    metrics = evaluate_frames(frames, class_names, score_threshold)
    lesions, curves = evaluate_lesions(frames, class_names)
    images = evaluate_images(frames, class_names, patients, samples=samples)
    parts = {
        scored.name: evaluate_images(shown(scored.frames), class_names, scored.patients, samples=samples)
        for scored in sets
    }
    return StillsReport(
        metrics=metrics,
        lesions=lesions,
        curves=curves,
        images=images,
        sets=parts if len(parts) > 1 else dict.fromkeys(parts, images),
        points=points,
        point_results={} if points is None else judge(raw, points, patients, samples=samples),
        set_results={}
        if points is None
        else {part.name: judge(part.frames, points, part.patients, samples=samples) for part in sets},
        raw=reliability(raw, class_names),
        calibrated={} if points is None else reliability(frames, class_names),
        halves=cross_judge(raw, class_names, patients, samples=samples),
        frames=frames,
    )


def stills_files(report: StillsReport, facts: Mapping[str, Any]) -> dict[str, Callable[[Path], Any]]:
    """Return, by file name, what writes that file to a path; `facts` stand first in the JSON file."""
    return {
        NUMBERS_FILE: numbers_writer(facts, report.to_dict()),
        "stills.csv": lambda path: _write_table(report, path),
        "precision_recall.png": lambda path: draw_precision_recall(report.curves, path),
        "froc.png": lambda path: draw_froc(report.curves, path),
        "reliability.png": lambda path: draw_reliability(report.raw, report.calibrated, path),
    }


def show_stills(report: StillsReport, title: str, printer: Printer) -> None:
    """Print figures with their intervals, one column per set, then calibration and operating points."""
    columns = {"all": report.images} if len(report.sets) != 1 else {}
    show_figures({**columns, **report.sets}, title, printer)
    _show_points(report, printer)


def _show_points(report: StillsReport, printer: Printer) -> None:
    rows = [(f"{name}, chosen on the other half", *_cells(result)) for name, result in report.halves.points.items()]
    for name, result in report.point_results.items():
        rows.append((f"{name}, {report.points.threshold(name):.3f} of the checkpoint", *_cells(result)))
        if len(report.set_results) > 1:
            rows += [(f"  {part}", *_cells(results[name])) for part, results in report.set_results.items()]
    if rows:
        header = ("operating point", "recall, %", "false positives an image", "boxes in images without lesion")
        printer.table(None, header, rows)
    errors = [("raw scores", mean_error(report.raw)), ("calibrated", mean_error(report.calibrated))]
    errors.append(("calibrated on the other half", report.halves.error_after))
    texts = [f"{name} {100 * error:.1f} %" for name, error in errors if error is not None]
    if texts:
        printer.message(f"expected calibration error: {', '.join(texts)}")


def _cells(result: PointResult) -> tuple[str, str, str]:
    free = "-" if result.per_lesion_free.value is None else str(result.lesion_free_boxes)
    return percent(result.recall), rate(result.per_image), free


def _write_table(report: StillsReport, path: Path) -> None:
    with path.open("w", newline="", encoding="utf-8") as handle:
        rows = csv.writer(handle, lineterminator="\n")
        points = OPERATING_POINTS if report.points is not None else ()
        names = list(report.raw)
        rows.writerow(["still", "lesions", "marked_as", "best_score", *(f"boxes_{name}" for name in points)])
        for frame in report.frames:
            best = float(frame.scores.max()) if len(frame.scores) else 0.0
            marked = printable(" ".join(names[int(label) - 1] for label in np.unique(frame.true_labels)))
            of_boxes = merge_classes(frame).scores  # a box that is scored for two classes is one box
            counts = [int((of_boxes >= report.points.threshold(name)).sum()) for name in points]
            rows.writerow([printable(frame.video), len(frame.true_boxes), marked, f"{best:.6f}", *counts])
