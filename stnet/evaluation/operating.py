"""Choosing operating points on validation data, and judging them on data that did not choose them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stnet.choices import OPERATING_POINTS
from stnet.evaluation.bootstrap import SAMPLES, bootstrap_intervals
from stnet.evaluation.calibration import calibrated_frames, fit_platt, mean_error, reliability
from stnet.evaluation.coco import FALSE_POSITIVE_IOU, ScoredFrame, in_order, merge_classes
from stnet.evaluation.image_metrics import Figure, threshold_at_rate
from stnet.evaluation.matches import match
from stnet.model.operating_points import OperatingPoints

ALARM_RATES = {"sensitive": 0.5, "balanced": 0.035, "specific": 0.02}
"""False positives an image that each operating point may make on the data it is chosen on."""


@dataclass(frozen=True, kw_only=True)
class PointResult:
    """What one operating point does on some images, with 95 % intervals by patient.

    Attributes:
        recall: share of the lesions found, overlap 0.5, any class.
        per_image, per_lesion_free: false positives an image; detections an image without lesion.
        lesion_free_boxes: detections in images without lesion.
    """

    recall: Figure
    per_image: Figure
    per_lesion_free: Figure
    lesion_free_boxes: int


@dataclass(frozen=True, kw_only=True)
class CrossJudgement:
    """Calibration and thresholds of one half of the patients judged on the other, both ways, taken together.

    Attributes:
        points: by operating point.
        error_before, error_after: expected calibration error of the raw and of the calibrated scores.
    """

    points: dict[str, PointResult]
    error_before: float | None
    error_after: float | None


def choose(frames: Sequence[ScoredFrame], class_names: Sequence[str], chosen_on: str) -> OperatingPoints:
    """Calibrate raw scores and choose the thresholds that make the `ALARM_RATES`.

    Args:
        frames: of validation, with raw scores.
        class_names: of labels 1, 2, ...
        chosen_on: told to people.
    """
    slopes, offsets = fit_platt(frames, class_names)
    unset = OperatingPoints(
        class_names=tuple(class_names),
        slopes=slopes,
        offsets=offsets,
        sensitive=0.0,
        balanced=0.0,
        specific=0.0,
        chosen_on=chosen_on,
    )
    matches = match(_merged(calibrated_frames(frames, unset)), 1, ious=(FALSE_POSITIVE_IOU,))
    thresholds = {name: min(1.0, threshold_at_rate(matches, rate)) for name, rate in ALARM_RATES.items()}
    return OperatingPoints(
        class_names=tuple(class_names), slopes=slopes, offsets=offsets, chosen_on=chosen_on, **thresholds
    )


def judge(
    frames: Sequence[ScoredFrame], points: OperatingPoints, patients: dict[str, str], *, samples: int = SAMPLES
) -> dict[str, PointResult]:
    """Count what every operating point does.

    Args:
        frames: with raw scores.
        points: of the model.
        patients: by name of the video, where stated.
        samples: of the bootstrap; 0 leaves the intervals out.
    """
    merged = _merged(calibrated_frames(frames, points))
    return {name: _count([(merged, points.threshold(name))], patients, samples) for name in OPERATING_POINTS}


def cross_judge(
    frames: Sequence[ScoredFrame], class_names: Sequence[str], patients: dict[str, str], *, samples: int = SAMPLES
) -> CrossJudgement:
    """Split by patient in two halves, choose on each, judge on the other.

    Args:
        frames: with raw scores.
        class_names: of labels 1, 2, ...
        patients: by name of the video, where stated.
        samples: of the bootstrap; 0 leaves the intervals out.
    """
    halves: tuple[list[ScoredFrame], list[ScoredFrame]] = ([], [])
    for frame in frames:
        halves[_side(patients.get(frame.video, frame.video))].append(frame)
    if not all(halves):
        return CrossJudgement(points={}, error_before=None, error_after=None)
    chosen = [choose(half, class_names, "half") for half in halves]
    judged = [calibrated_frames(half, points) for half, points in zip(halves, reversed(chosen), strict=True)]
    results = {}
    for name in OPERATING_POINTS:
        thresholds = [points.threshold(name) for points in reversed(chosen)]
        merged = [(_merged(half), threshold) for half, threshold in zip(judged, thresholds, strict=True)]
        results[name] = _count(merged, patients, samples)
    return CrossJudgement(
        points=results,
        error_before=mean_error(reliability(frames, class_names)),
        error_after=mean_error(reliability([frame for half in judged for frame in half], class_names)),
    )


def _side(name: str) -> int:
    """Which half: depends on the name alone, whatever else is evaluated."""
    return hashlib.sha256(name.encode(errors="surrogatepass")).digest()[0] % 2


def _merged(frames: Sequence[ScoredFrame]) -> list[ScoredFrame]:
    return [merge_classes(frame) for frame in in_order(frames)]


def _count(parts: Sequence[tuple[list[ScoredFrame], float]], patients: dict[str, str], samples: int) -> PointResult:
    """Found lesions and false positives of several lots of frames, each with its threshold."""
    lots = [_counts(frames, threshold) for frames, threshold in parts]
    lesions, found, false, boxes = (np.concatenate(column) for column in zip(*lots, strict=True))
    free = lesions == 0
    groups = [patients.get(frame.video, f"image {frame.video}") for frames, _ in parts for frame in frames]

    def figures(weights: np.ndarray) -> dict[str, float | None]:
        return {
            "recall": _ratio(weights * found, weights * lesions),
            "per_image": _ratio(weights * false, weights),
            "per_lesion_free": _ratio(weights * free * boxes, weights * free),
        }

    values = figures(np.ones(len(lesions)))
    intervals = bootstrap_intervals(figures, groups, samples=samples) if samples else {}
    shown = {name: Figure(value=value, interval=intervals.get(name)) for name, value in values.items()}
    return PointResult(**shown, lesion_free_boxes=int(boxes[free].sum()))


def _counts(frames: list[ScoredFrame], threshold: float) -> tuple[np.ndarray, ...]:
    """By image: lesions, lesions found, false positives, detections."""
    matches = match(frames, 1, ious=(FALSE_POSITIVE_IOU,))
    above = matches.scores >= threshold
    chosen = (
        matches.lesion_image,
        matches.lesion_image[matches.found_at[0] >= threshold],
        matches.image[above & ~matches.hits[0]],
        matches.image[above],
    )
    return tuple(np.bincount(images, minlength=len(frames)) for images in chosen)


def _ratio(parts: np.ndarray, whole: np.ndarray) -> float | None:
    return float(parts.sum() / whole.sum()) if whole.sum() else None
