"""Everything an evaluation tells: numbers, a table of the videos, and curves, as files of one folder.

evaluation.json        all numbers
videos.csv             one row per video: what was marked, its scores
roc.png                whole videos: sensitivity against 1 - specificity
precision_recall.png   lesions in frames
froc.png               lesions found against false positives per frame
scores.png             histograms of the videos' scores
"""

import csv
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stnet.console import printable
from stnet.evaluation.calibration import calibrated_frames
from stnet.evaluation.coco import CocoMetrics, ScoredFrame, evaluate_frames
from stnet.evaluation.image_metrics import ImageMetrics, evaluate_images
from stnet.evaluation.lesion_metrics import LesionCurves, LesionMetrics, evaluate_lesions
from stnet.evaluation.plots import draw_froc, draw_precision_recall, draw_roc, draw_scores
from stnet.evaluation.video_metrics import VideoMetrics, VideoResult, evaluate_videos
from stnet.model.operating_points import OperatingPoints

NUMBERS_FILE = "evaluation.json"
VIDEO_SAMPLES = 100
"""Bootstrap samples for the frames of videos, which are many more than stills."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """COCO metrics, whole videos, lesions in frames, figures with intervals by video, and the curves of these."""

    metrics: CocoMetrics
    videos: VideoMetrics
    lesions: LesionMetrics
    images: ImageMetrics
    curves: LesionCurves

    def __repr__(self) -> str:
        found = self.metrics
        recall = "" if found.recall is None else f"recall {found.recall:.3f} and "
        ap = "no AP" if found.overall.ap is None else f"AP {found.overall.ap:.3f}, AP50 {found.overall.ap50:.3f}"
        rates = f"{recall}{found.false_positives_per_frame:.2f} false positives a frame"
        counts = f"{found.frames} frames, {found.lesions} lesions"
        return f"Report({counts}: {ap}; {rates} from score {found.score_threshold:.3g})"

    def to_dict(self) -> dict:
        """Plain numbers, ready for JSON."""
        return {
            **self.metrics.to_dict(),
            "lesions_in_frames": self.lesions.to_dict(),
            "images": asdict(self.images),
            "videos": self.videos.to_dict(),
        }


def build_report(
    frames: Sequence[ScoredFrame],
    class_names: Sequence[str],
    *,
    score_threshold: float,
    video_threshold: float,
    metrics: CocoMetrics | None = None,
    points: OperatingPoints | None = None,
    samples: int = VIDEO_SAMPLES,
) -> Report:
    """Evaluate frames in every way.

    Args:
        frames: all scored frames, in any order.
        class_names: names of category ids 1, 2, ...
        score_threshold: see `evaluate_frames`.
        video_threshold: see `evaluate_videos`.
        metrics: what `evaluate_frames` gave for these frames, where that is known already; of no use with `points`.
        points: of the checkpoint; raw scores are calibrated by them, so that a score means here what it means to users.
        samples: of the bootstrap by video.

    Raises:
        ValueError: see `evaluate_frames`.
    """
    if points is not None:
        frames, metrics = calibrated_frames(frames, points), None
    metrics = metrics or evaluate_frames(frames, class_names, score_threshold)
    lesions, curves = evaluate_lesions(frames, class_names)
    videos = evaluate_videos(frames, class_names, video_threshold)
    patients = {frame.video: frame.video for frame in frames}
    images = evaluate_images(frames, class_names, patients, samples=samples)
    return Report(metrics=metrics, videos=videos, lesions=lesions, images=images, curves=curves)


def report_files(report: Report, facts: Mapping[str, Any]) -> dict[str, Callable[[Path], Any]]:
    """By file name, what writes that file to a path; `facts` stand first in the JSON file."""
    return {
        NUMBERS_FILE: numbers_writer(facts, report.to_dict()),
        "videos.csv": lambda path: _write_table(report.videos.videos, path),
        "roc.png": lambda path: draw_roc(report.videos, path),
        "precision_recall.png": lambda path: draw_precision_recall(report.curves, path),
        "froc.png": lambda path: draw_froc(report.curves, path),
        "scores.png": lambda path: draw_scores(report.videos, path),
    }


def numbers_writer(facts: Mapping[str, Any], figures: Mapping[str, Any]) -> Callable[[Path], Any]:
    """Return what writes `NUMBERS_FILE`, facts first.

    Raises:
        ValueError: for a number that is not finite; nothing is written then.
    """
    numbers = json.dumps({**facts, **figures}, indent=2, allow_nan=False) + "\n"
    return lambda path: path.write_text(numbers, encoding="utf-8")


def _write_table(videos: Sequence[VideoResult], path: Path) -> None:
    names = map(printable, videos[0].scores)
    with path.open("w", newline="", encoding="utf-8") as handle:
        rows = csv.writer(handle, lineterminator="\n")
        rows.writerow(
            ["video", "frames", "lesions", "marked_as", *(f"score_{name}" for name in names), "positive_share"]
        )
        for video in videos:
            scores = [f"{value:.6f}" for value in (*video.scores.values(), video.positive_share)]
            marked = printable(" ".join(video.truth))
            rows.writerow([printable(video.name), video.frames, video.lesions, marked, *scores])
