"""From the rows of a frame's detections to its findings: each box once, with the scores of all classes.

A detector lists a box once for every class that it may be of, and often several boxes for one lesion. A track needs
one box with one score per class.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DUPLICATE_IOU = 0.5
"""Of two boxes in one frame that overlap by more, the one with the better best score stands for both."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Findings:
    """What was found in one frame.

    Attributes:
        frame: counted from 0.
        time: in seconds from the first frame.
        boxes: float64 `[N, 4]`, x0 y0 x1 y1 in pixels of the original frame, each with an area.
        scores: float64 `[N, classes]` in [0, 1].
        rows: int64 `[N]`, where each finding's best score stands in the frame's list of detections.
    """

    frame: int
    time: float
    boxes: np.ndarray
    scores: np.ndarray
    rows: np.ndarray

    def __post_init__(self) -> None:
        count = len(self.boxes)
        if self.boxes.shape != (count, 4) or self.scores.ndim != 2 or len(self.scores) != count:
            raise ValueError(f"boxes {self.boxes.shape} and scores {self.scores.shape}; expected [N, 4], [N, classes]")
        if self.rows.shape != (count,):
            raise ValueError(f"{count} boxes with rows of shape {self.rows.shape}; expected [{count}]")


def findings_of(
    frame: int,
    time: float,
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    region: Sequence[float],
    least_score: float = 0.0,
) -> Findings:
    """Return the findings in a frame, best first.

    Args:
        frame: counted from 0.
        time: in seconds.
        boxes: `[M, 4]`, x0 y0 x1 y1 in pixels, as predicted; equal ones are one finding.
        scores: `[M]` in [0, 1].
        labels: `[M]`, 1 to `classes`; other rows are left out.
        classes: how many there are.
        region: x0, y0, x1, y1 of what was looked at; boxes are cut at its borders, those beyond are left out.
        least_score: findings whose best score is lower are left out.
    """
    boxes, scores = np.asarray(boxes, dtype=np.float64).reshape(-1, 4), np.asarray(scores, dtype=np.float64)
    labels = np.asarray(labels, dtype=np.int64)
    cut = _cut(boxes, region)
    usable = (labels >= 1) & (labels <= classes) & np.isfinite(scores) & (cut[:, 2:] > cut[:, :2]).all(1)
    rows = np.flatnonzero(usable)
    rows = rows[np.argsort(-scores[rows], kind="stable")]
    distinct, first, which = np.unique(cut[rows], axis=0, return_index=True, return_inverse=True)
    table = np.zeros((len(distinct), classes))
    np.maximum.at(table, (which.reshape(-1), labels[rows] - 1), scores[rows])
    order = np.argsort(first, kind="stable")
    order = order[table[order].max(1, initial=0.0) >= least_score]
    order = order[_without_duplicates(distinct[order])]
    return Findings(frame=frame, time=time, boxes=distinct[order], scores=table[order], rows=rows[first[order]])


def overlap(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return intersection over union of boxes `[N, 4]` and `[M, 4]` with areas, `[N, M]` in [0, 1]."""
    upper = np.maximum(first[:, None, :2], second[None, :, :2])
    lower = np.minimum(first[:, None, 2:], second[None, :, 2:])
    common = np.clip(lower - upper, 0, None).prod(-1)
    areas = (first[:, 2:] - first[:, :2]).prod(-1)[:, None] + (second[:, 2:] - second[:, :2]).prod(-1)
    return common / np.maximum(areas - common, np.finfo(float).tiny)


def _cut(boxes: np.ndarray, region: Sequence[float]) -> np.ndarray:
    """Return boxes inside of a region; those that are no boxes become empty."""
    x0, y0, x1, y1 = region
    ordered = np.concatenate([np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])], axis=1)
    ordered[~np.isfinite(boxes).all(1)] = 0.0
    return np.clip(ordered, [x0, y0, x0, y0], [x1, y1, x1, y1])


def _without_duplicates(boxes: np.ndarray) -> np.ndarray:
    """Return positions of boxes, best first, that no better one that is kept stands for."""
    doubles = overlap(boxes, boxes) > DUPLICATE_IOU
    kept: list[int] = []
    for position in range(len(boxes)):
        if not doubles[position, kept].any():
            kept.append(position)
    return np.array(kept, dtype=np.int64)
