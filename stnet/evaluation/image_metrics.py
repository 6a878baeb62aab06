"""What a detector reaches on images: figures that clinicians and the newer papers ask for, with intervals by patient.

All figures but `two_class_ap50` take the classes as one, and a lesion is found by a box that overlaps it by 0.5.
Precision and false positives at fixed recall, and the recall of 16 detections, follow UltraDet (MICCAI 2023).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from stnet.evaluation.bootstrap import SAMPLES, bootstrap_intervals
from stnet.evaluation.coco import FALSE_POSITIVE_IOU, ScoredFrame, in_order, merge_classes
from stnet.evaluation.matches import Matches, average_precision, match
from stnet.evaluation.video_metrics import POSITIVE_CLASS, rank_auc

RECALLS = (0.8, 0.9)
RATES = (0.1, 0.5)
"""False positives per image at which recall is told."""

DETECTIONS = 16
SMALL = 0.02
"""A lesion is small that covers less than this share of its image."""

OVERLAPS = tuple(np.arange(0.5, 0.96, 0.05).round(2).tolist())


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A figure and its interval; None where there is nothing to compute it from."""

    value: float | None
    interval: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True)
class ImageMetrics:
    """Figures of one set of images.

    Attributes:
        images, lesions, lesion_free, small, several: how many images, lesions, images without lesion, small lesions,
            and images with several lesions there are.
        patients: groups that the intervals are drawn from; patients, or images where no patient is stated.
        figures: by name; what they mean is in `FIGURES`.
        malignancy_auc: of the lesions found at all: those of the positive class against the others, by its share in
            the scores of the finding box; None where either is missing.
    """

    images: int
    lesions: int
    lesion_free: int
    small: int
    several: int
    patients: int
    figures: dict[str, Figure]
    malignancy_auc: float | None


FIGURES = {
    "ap": "average precision, mean over IoU 0.50 to 0.95",
    "ap50": "average precision at IoU 0.5",
    "ap75": "average precision at IoU 0.75",
    "two_class_ap50": "average precision at IoU 0.5, mean over the classes",
    **{f"recall_at_{rate:g}_fp": f"recall at {rate:g} false positives an image" for rate in RATES},
    **{f"found_videos_at_{rate:g}_fp": f"videos whose lesion is found at {rate:g} false positives" for rate in RATES},
    **{f"precision_at_recall_{recall:g}": f"precision at recall {recall:g}" for recall in RECALLS},
    **{f"fp_at_recall_{recall:g}": f"false positives an image at recall {recall:g}" for recall in RECALLS},
    f"recall_of_{DETECTIONS}": f"recall of the {DETECTIONS} best detections of every image",
    **{
        f"lesion_free_fp_at_recall_{recall:g}": f"false positives an image without lesion at recall {recall:g}"
        for recall in RECALLS
    },
    "small_ap50": f"average precision at IoU 0.5 of lesions below {100 * SMALL:g} % of the image",
    **{f"small_recall_at_{rate:g}_fp": f"recall of these at {rate:g} false positives an image" for rate in RATES},
    "several_ap50": "average precision at IoU 0.5 of images with several lesions",
    **{f"several_recall_at_{rate:g}_fp": f"recall in these at {rate:g} false positives an image" for rate in RATES},
}
"""What every figure is, in the order they are shown."""


def evaluate_images(
    frames: Sequence[ScoredFrame],
    class_names: Sequence[str],
    patients: dict[str, str],
    *,
    samples: int = SAMPLES,
) -> ImageMetrics:
    """Compute all figures.

    Args:
        frames: stills (each of them a video of its own) or frames of videos, in any order.
        class_names: of category ids 1, 2, ...
        patients: by name of the video, where stated.
        samples: of the bootstrap; 0 leaves the intervals out.
    """
    ordered = in_order(frames)
    tables = _Tables(ordered, len(class_names))
    groups = [patients.get(frame.video, f"image {frame.video}") for frame in ordered]
    figures = tables.figures(np.ones(len(ordered)))
    intervals = bootstrap_intervals(tables.figures, groups, samples=samples) if samples else {}
    counts = np.array([len(frame.true_boxes) for frame in ordered])
    return ImageMetrics(
        images=len(ordered),
        lesions=int(counts.sum()),
        lesion_free=int((counts == 0).sum()),
        small=len(tables.small.lesion_image),
        several=int((counts > 1).sum()),
        patients=len(set(groups)),
        figures={name: Figure(value=figures[name], interval=intervals.get(name)) for name in FIGURES},
        malignancy_auc=_malignancy_auc(ordered, tables.one_class, class_names),
    )


class _Tables:
    """Matches of every kind, computed once; figures follow for any weights of the images."""

    def __init__(self, ordered: Sequence[ScoredFrame], classes: int):
        merged = [merge_classes(frame) for frame in ordered]
        self.one_class = match(merged, 1, ious=OVERLAPS)
        self.small = match(merged, 1, ious=(FALSE_POSITIVE_IOU,), area=(0.0, SMALL))
        self.by_class = [match(ordered, label, ious=(FALSE_POSITIVE_IOU,)) for label in range(1, classes + 1)]
        lesions = np.array([len(frame.true_boxes) for frame in ordered])
        self.several, self.lesion_free = lesions > 1, lesions == 0
        names = [frame.video for frame in ordered]
        _, self.first, self.video = np.unique(names, return_index=True, return_inverse=True)
        self.is_small = small_lesions(ordered)

    def figures(self, weights: np.ndarray) -> dict[str, float | None]:
        every = self.one_class
        precisions = [average_precision(every, row, weights) for row in range(len(OVERLAPS))]
        per_class = [average_precision(table, 0, weights) for table in self.by_class]
        known = [value for value in per_class if value is not None]
        several = weights * self.several
        result = {
            "ap": None if precisions[0] is None else float(np.mean(precisions)),
            "ap50": precisions[0],
            "ap75": precisions[OVERLAPS.index(0.75)],
            "two_class_ap50": float(np.mean(known)) if known else None,
            "small_ap50": average_precision(self.small, 0, weights),
            "several_ap50": average_precision(every, 0, several),
        }
        return result | self._at_rates(weights, several) | self._at_recalls(weights)

    def _at_rates(self, weights: np.ndarray, several: np.ndarray) -> dict[str, float | None]:
        result: dict[str, float | None] = {}
        for rate in RATES:
            threshold = threshold_at_rate(self.one_class, rate, weights)
            for name, kept in (("", weights), ("several_", several)):
                result[f"{name}recall_at_{rate:g}_fp"] = recall(self.one_class, threshold, kept)
            result[f"found_videos_at_{rate:g}_fp"] = self._found_videos(threshold, weights)
            result[f"small_recall_at_{rate:g}_fp"] = recall(self.one_class, threshold, weights, self.is_small)
        return result

    def _found_videos(self, threshold: float, weights: np.ndarray) -> float | None:
        """Share of the videos with a lesion in which one is found at least once."""
        every = self.one_class
        videos = self.video[every.lesion_image]
        with_lesion, found = np.zeros(len(self.first)), np.zeros(len(self.first))
        with_lesion[videos] = 1
        found[videos[every.found_at[0] >= threshold]] = 1
        weight = weights[self.first] * with_lesion
        return float((weight * found).sum() / weight.sum()) if weight.sum() else None

    def _at_recalls(self, weights: np.ndarray) -> dict[str, float | None]:
        every, images = self.one_class, max(weights.sum(), 1e-12)
        weight, hit = weights[every.image], every.hits[0]
        lesions = weights[every.lesion_image].sum()
        last = _last_of_equal(every.scores)
        found, false = np.cumsum(weight * hit)[last], np.cumsum(weight * ~hit)[last]
        best = (weight * hit)[every.rank < DETECTIONS].sum()
        result: dict[str, float | None] = {f"recall_of_{DETECTIONS}": float(best / lesions) if lesions else None}
        free = weights * self.lesion_free
        for wanted in RECALLS:
            at = int(np.searchsorted(found, wanted * lesions - 1e-9)) if lesions else len(found)
            reached = at < len(found)
            result[f"precision_at_recall_{wanted:g}"] = float(found[at] / (found[at] + false[at])) if reached else None
            result[f"fp_at_recall_{wanted:g}"] = float(false[at] / images) if reached else None
            alarms = free[every.image[: last[at] + 1]].sum() / free.sum() if reached and free.sum() else None
            result[f"lesion_free_fp_at_recall_{wanted:g}"] = None if alarms is None else float(alarms)
        return result


def threshold_at_rate(matches: Matches, rate: float, weights: np.ndarray | None = None) -> float:
    """Return the lowest score that makes at most `rate` false positives an image; above every score where none does."""
    weights = np.ones(matches.images) if weights is None else weights
    false = np.cumsum(weights[matches.image] * ~matches.hits[0])
    last = _last_of_equal(matches.scores)
    allowed = last[false[last] <= rate * weights.sum() + 1e-9]
    return float(matches.scores[allowed[-1]]) if len(allowed) else np.inf


def recall(
    matches: Matches, threshold: float, weights: np.ndarray | None = None, lesions: np.ndarray | None = None
) -> float | None:
    """Return the share of (some of the) lesions found at a threshold; None without any."""
    weights = np.ones(matches.images) if weights is None else weights
    weight = weights[matches.lesion_image] * (1 if lesions is None else lesions)
    return float((weight * (matches.found_at[0] >= threshold)).sum() / weight.sum()) if weight.sum() else None


def small_lesions(frames: Sequence[ScoredFrame]) -> np.ndarray:
    """Return which lesions of all frames together are small, bool `[lesions]`."""
    return np.concatenate([np.zeros(0), *(_shares(frame) for frame in frames)]) < SMALL


def _last_of_equal(scores: np.ndarray) -> np.ndarray:
    """Positions where the next score `[D]`, best first, is another: a threshold takes equal scores all or none."""
    return np.flatnonzero(np.append(scores[1:] < scores[:-1], True)[: len(scores)])


def _shares(frame: ScoredFrame) -> np.ndarray:
    sides = frame.true_boxes[:, 2:] - frame.true_boxes[:, :2]
    return sides.prod(axis=1) / (frame.height * frame.width)


def _malignancy_auc(ordered: Sequence[ScoredFrame], matches: Matches, class_names: Sequence[str]) -> float | None:
    lowered = [name.lower() for name in class_names]
    positive = 1 + (lowered.index(POSITIVE_CLASS) if POSITIVE_CLASS in lowered else len(lowered) - 1)
    labels = np.concatenate([np.zeros(0), *(frame.true_labels for frame in ordered)])
    shares, truth = [], []
    for lesion in np.flatnonzero(matches.found_at[0] > 0):
        frame = ordered[matches.lesion_image[lesion]]
        finding = merge_classes(frame).boxes[matches.found_by[0, lesion]]
        same = (frame.boxes == finding).all(axis=1)
        scores = frame.scores[same]
        shares.append(scores[frame.labels[same] == positive].sum() / max(scores.sum(), 1e-12))
        truth.append(labels[lesion] == positive)
    return rank_auc(np.array(shares), np.array(truth, dtype=bool))
