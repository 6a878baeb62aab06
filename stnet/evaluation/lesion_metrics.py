"""Lesions found against false alarms, and precision by size of the lesion; every box of every frame is a lesion here.

Classes are taken as one: the question is where a lesion is, not what it is.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from pycocotools.cocoeval import COCOeval

from stnet.evaluation.coco import (
    ALL_AREAS,
    FALSE_POSITIVE_IOU,
    Precision,
    ScoredFrame,
    in_order,
    merge_classes,
    precision,
    run_coco,
)

FROC_RATES = (0.1, 0.25, 0.5, 1.0)  # false positives per frame
# Ranges of the share of the frame that a box covers. COCO's 32 and 96 pixels are made for photographs of one size;
# frames of ultrasound have many sizes, and the borders chosen here part lesions of public breast images in thirds.
SIZES = {"small": (0.0, 0.04), "medium": (0.04, 0.15), "large": (0.15, 1e10)}


@dataclass(frozen=True, kw_only=True)
class LesionMetrics:
    """Finding lesions in frames.

    Attributes:
        recall_at: by false positives per frame: the highest share of lesions found (IoU >= 0.5) at a score threshold
            that makes at most so many; None without lesions.
        by_size: precision by the share of its frame that a box covers, see SIZES.
        lesions_by_size: how many lesions there are of each size.
    """

    recall_at: dict[float, float | None]
    by_size: dict[str, Precision]
    lesions_by_size: dict[str, int]

    def to_dict(self) -> dict:
        """Plain numbers, ready for JSON; the borders of the sizes included."""
        return {**asdict(self), "size_borders": [SIZES["medium"][0], SIZES["large"][0]]}


@dataclass(frozen=True, kw_only=True, eq=False)
class LesionCurves:
    """What is drawn.

    Attributes:
        false_positives: `[n]` per frame, ascending, at the distinct scores from the highest to the lowest; begins at 0.
        recall: `[n]` in [0, 1] at the same scores.
        precision: by name ("any class" and each class with lesions): `[101]` at recall 0, 0.01, ... 1 and IoU 0.5.
    """

    false_positives: np.ndarray
    recall: np.ndarray
    precision: dict[str, np.ndarray]


def evaluate_lesions(frames: Sequence[ScoredFrame], class_names: Sequence[str]) -> tuple[LesionMetrics, LesionCurves]:
    """Metrics and curves of the same frames, in any order, that `evaluate_frames` accepts."""
    ordered = in_order(frames)
    one_class = run_coco([merge_classes(frame) for frame in ordered], [1], areas=(ALL_AREAS, *SIZES.values()))
    by_class = run_coco(ordered, list(range(1, len(class_names) + 1)), ious=(FALSE_POSITIVE_IOU,))
    lesions = sum(len(frame.true_boxes) for frame in frames)
    false_positives, recall = _froc(one_class, len(frames), lesions)
    row = _iou_row(one_class)
    tables = {"any class": one_class.eval["precision"][row, :, 0, 0, 0]}
    tables |= {name: by_class.eval["precision"][0, :, i, 0, 0] for i, name in enumerate(class_names)}
    curves = LesionCurves(
        false_positives=false_positives,
        recall=recall,
        precision={name: table for name, table in tables.items() if table.min() > -1},
    )
    return _metrics(one_class, curves, lesions, _areas(frames)), curves


def _metrics(evaluation: COCOeval, curves: LesionCurves, lesions: int, areas: np.ndarray) -> LesionMetrics:
    def recall_at(rate: float) -> float | None:
        return float(curves.recall[curves.false_positives <= rate].max()) if lesions else None

    return LesionMetrics(
        recall_at={rate: recall_at(rate) for rate in FROC_RATES},
        by_size={name: precision(evaluation, slice(None), area) for area, name in enumerate(SIZES, start=1)},
        lesions_by_size={name: int(((low <= areas) & (areas < high)).sum()) for name, (low, high) in SIZES.items()},
    )


def _froc(evaluation: COCOeval, frames: int, lesions: int) -> tuple[np.ndarray, np.ndarray]:
    """Return false positives per frame and recall at all distinct scores."""
    row = _iou_row(evaluation)
    images = [image for image in evaluation.evalImgs[:frames] if image is not None]  # the first range is all areas
    scores = np.concatenate([np.zeros(0), *(np.asarray(image["dtScores"], dtype=float) for image in images)])
    hits = np.concatenate([np.zeros(0), *(np.asarray(image["dtMatches"])[row] for image in images)]) > 0
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1) if len(scores) else np.zeros(0, int)
    found = np.cumsum(hits[order])[last]
    false = np.cumsum(~hits[order])[last]
    return np.append(0.0, false / frames), np.append(0.0, found / max(lesions, 1))


def _iou_row(evaluation: COCOeval) -> int:
    return int(np.flatnonzero(np.isclose(evaluation.params.iouThrs, FALSE_POSITIVE_IOU))[0])


def _areas(frames: Sequence[ScoredFrame]) -> np.ndarray:
    """Shares of their frames that all lesions cover."""
    shares = [
        (frame.true_boxes[:, 2] - frame.true_boxes[:, 0])
        * (frame.true_boxes[:, 3] - frame.true_boxes[:, 1])
        / (frame.height * frame.width)
        for frame in frames
    ]
    return np.concatenate(shares) if shares else np.zeros(0)
