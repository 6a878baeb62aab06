"""COCO detection metrics over frames, computed by pycocotools.

Every annotated frame counts, those without a lesion included: whatever is detected there is a false positive.
"""

import contextlib
import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

MAX_DETECTIONS = 100  # per frame, the COCO convention
ALL_AREAS = (0.0, 1e10)
FALSE_POSITIVE_IOU = 0.5  # a detection overlapping no free lesion by this much is a false positive


@dataclass(frozen=True, kw_only=True)
class ScoredFrame:
    """One frame's truth and predictions; boxes x0, y0, x1, y1 in pixels of that frame.

    Attributes:
        image_id: the frame's id in its annotation file.
        video: name of its video.
        true_boxes: `[n, 4]` float.
        true_labels: `[n]` category ids, 1 = first class.
        boxes, scores, labels: the detections, `[m, 4]`, `[m]` in [0, 1], `[m]`.
        height, width: of the frame in pixels.
    """

    image_id: int
    video: str
    height: int
    width: int
    true_boxes: np.ndarray
    true_labels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True, kw_only=True)
class Precision:
    """Average precision in [0, 1]: mean over IoU 0.50 to 0.95, at 0.50, at 0.75; None without lesions."""

    ap: float | None
    ap50: float | None
    ap75: float | None


@dataclass(frozen=True, kw_only=True)
class CocoMetrics:
    """What a detector reaches on a set of frames.

    Attributes:
        overall: mean over the classes.
        agnostic: all classes taken as one; of two detections with the same box (one query's two classes)
            the better scored one counts.
        per_class: by class name.
        score_threshold: detections scored at least this enter the next two figures.
        recall: share of lesions found (IoU >= 0.5, any class) at the threshold; None without lesions.
        false_positives_per_frame: detections per frame at the threshold that find no lesion (class-agnostic).
        frames, lesions: how many were evaluated.
    """

    overall: Precision
    agnostic: Precision
    per_class: dict[str, Precision]
    score_threshold: float
    recall: float | None
    false_positives_per_frame: float
    frames: int
    lesions: int

    def to_dict(self) -> dict:
        """Plain numbers, ready for JSON."""
        return asdict(self)


def evaluate_frames(
    frames: Sequence[ScoredFrame], class_names: Sequence[str], score_threshold: float = 0.5
) -> CocoMetrics:
    """Compute all metrics.

    Args:
        frames: all annotated frames to count, with or without lesions, in any order.
        class_names: names of category ids 1, 2, ...; detections of class 0 are ignored.
        score_threshold: operating point of recall and false positives per frame.

    Raises:
        ValueError: without frames, with a non-finite score, or a category id that has no name.
    """
    if not frames:
        raise ValueError("no annotated frame to evaluate")
    _check(frames, len(class_names))
    ordered = in_order(frames)
    by_class = run_coco(ordered, list(range(1, len(class_names) + 1)))
    agnostic = run_coco([merge_classes(frame) for frame in ordered], [1])
    found, false = _operating_point(agnostic, score_threshold)
    lesions = sum(len(frame.true_boxes) for frame in frames)
    return CocoMetrics(
        overall=precision(by_class, slice(None)),
        agnostic=precision(agnostic, slice(None)),
        per_class={name: precision(by_class, slice(i, i + 1)) for i, name in enumerate(class_names)},
        score_threshold=score_threshold,
        recall=found / lesions if lesions else None,
        false_positives_per_frame=false / len(frames),
        frames=len(frames),
        lesions=lesions,
    )


def merge_duplicates(boxes: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return indices of the best scored detection of every distinct box `[m, 4]`, best first."""
    order = np.argsort(-scores, kind="stable")
    _, first = np.unique(boxes[order], axis=0, return_index=True)
    return order[np.sort(first)]


def _check(frames: Sequence[ScoredFrame], classes: int) -> None:
    for frame in frames:
        if not np.isfinite(frame.scores).all() or not np.isfinite(frame.boxes).all():
            raise ValueError(f"image {frame.image_id} of {frame.video} has a score or box that is not finite")
        unnamed = frame.true_labels[(frame.true_labels < 1) | (frame.true_labels > classes)]
        if len(unnamed):
            raise ValueError(
                f"image {frame.image_id} of {frame.video} has category {unnamed[0]}, there are {classes} classes"
            )


def in_order(frames: Sequence[ScoredFrame]) -> list[ScoredFrame]:
    """By video and image: equal scores are ranked by position, which must not depend on who predicted what."""
    return sorted(frames, key=lambda frame: (frame.video, frame.image_id))


def merge_classes(frame: ScoredFrame) -> ScoredFrame:
    """Return the frame with all classes as one, label 1; of detections with the same box the best one is kept."""
    known = np.flatnonzero(frame.labels > 0)
    kept = known[merge_duplicates(frame.boxes[known], frame.scores[known])]
    return replace(
        frame,
        true_labels=np.ones_like(frame.true_labels),
        boxes=frame.boxes[kept],
        scores=frame.scores[kept],
        labels=np.ones_like(frame.labels[kept]),
    )


def run_coco(
    frames: Sequence[ScoredFrame],
    categories: list[int],
    *,
    areas: Sequence[tuple[float, float]] = (ALL_AREAS,),
    ious: Sequence[float] | None = None,
) -> COCOeval:
    """Return an accumulated COCO evaluation.

    Args:
        frames: in the order that decides between equal scores.
        categories: ids that count.
        areas: ranges of the share of the frame that a box covers, each evaluated by itself; without their upper ends.
        ious: thresholds, COCO's 0.50 to 0.95 by default.
    """
    truth, detected = COCO(), COCO()
    images = [{"id": number} for number in range(1, len(frames) + 1)]
    classes = [{"id": category} for category in categories]
    truth.dataset = {"images": images, "categories": classes, "annotations": _truth(frames)}
    detected.dataset = {"images": images, "categories": classes, "annotations": _detections(frames)}
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        detected.createIndex()
        evaluation = COCOeval(truth, detected, "bbox")
        evaluation.params.imgIds = list(range(1, len(frames) + 1))
        evaluation.params.catIds = categories
        # COCO's ranges hold both ends, so that a lesion on a border would be of two sizes.
        evaluation.params.areaRng = [[low, float(np.nextafter(high, 0))] for low, high in areas]
        evaluation.params.areaRngLbl = [str(area) for area in areas]
        evaluation.params.maxDets = [MAX_DETECTIONS]
        if ious is not None:
            evaluation.params.iouThrs = np.array(ious)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation


def _truth(frames: Sequence[ScoredFrame]) -> list[dict]:
    return [
        {
            "id": identifier,
            "image_id": number,
            "category_id": int(label),
            "bbox": _xywh(box),
            "area": area,
            "iscrowd": 0,
        }
        for identifier, (number, box, label, area) in enumerate(_rows(frames, "true_boxes", "true_labels"), start=1)
    ]


def _detections(frames: Sequence[ScoredFrame]) -> list[dict]:
    scores = np.concatenate([frame.scores for frame in frames]).tolist()
    return [
        {
            "id": identifier,
            "image_id": number,
            "category_id": int(label),
            "bbox": _xywh(box),
            "area": area,
            "score": scores[identifier - 1],
            "iscrowd": 0,
        }
        for identifier, (number, box, label, area) in enumerate(_rows(frames, "boxes", "labels"), start=1)
    ]


def _rows(frames: Sequence[ScoredFrame], boxes: str, labels: str):
    """Frame number, box, label and the share of the frame that the box covers."""
    for number, frame in enumerate(frames, start=1):
        for box, label in zip(getattr(frame, boxes), getattr(frame, labels), strict=True):
            area = float((box[2] - box[0]) * (box[3] - box[1])) / (frame.height * frame.width)
            yield number, box, label, area


def _xywh(box: np.ndarray) -> list[float]:
    x0, y0, x1, y1 = (float(value) for value in box)
    return [x0, y0, x1 - x0, y1 - y0]


def precision(evaluation: COCOeval, classes: slice, area: int = 0) -> Precision:
    """Average precision over some classes, for one of the area ranges of `run_coco`."""
    table = evaluation.eval["precision"][:, :, classes, area, 0]  # [IoU, recall, class], -1 without lesions
    thresholds = evaluation.params.iouThrs

    def mean(rows: np.ndarray) -> float | None:
        known = rows[rows > -1]
        return float(known.mean()) if known.size else None

    return Precision(
        ap=mean(table),
        ap50=mean(table[np.isclose(thresholds, 0.5)]),
        ap75=mean(table[np.isclose(thresholds, 0.75)]),
    )


def _operating_point(evaluation: COCOeval, threshold: float) -> tuple[int, int]:
    """Lesions found and false positives among the detections scored at least `threshold`."""
    row = int(np.flatnonzero(np.isclose(evaluation.params.iouThrs, FALSE_POSITIVE_IOU))[0])
    found = false = 0
    for image in evaluation.evalImgs:
        if image is None:
            continue
        above = np.asarray(image["dtScores"]) >= threshold
        matched = np.asarray(image["dtMatches"])[row] > 0
        found += int((above & matched).sum())
        false += int((above & ~matched).sum())
    return found, false
