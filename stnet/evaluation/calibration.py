"""Whether a score of 0.7 is right seven times of ten: reliability of scores, and Platt scaling that mends them.

A detection is right when it finds a lesion of its class with an overlap of 0.5. Scores below `FLOOR` are left out of
the error: every query of every image has one, and nobody looks at them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit, logit

from stnet.evaluation.coco import FALSE_POSITIVE_IOU, ScoredFrame, in_order
from stnet.evaluation.matches import match
from stnet.model.operating_points import OperatingPoints

BINS = 10
FLOOR = 0.05
EDGE = 1e-6
PRIOR = 1e-3
"""Weight that holds slope and offset near 1 and 0 where detections are too few to tell."""


@dataclass(frozen=True, kw_only=True)
class Reliability:
    """One class.

    Attributes:
        error: expected calibration error: mean difference of score and share found right, weighted by detections; None
            without detections above `FLOOR`.
        detections: above `FLOOR`.
        scores, shares, counts: mean score, share right and detections of `BINS` equal bins, where there are any.
    """

    error: float | None
    detections: int
    scores: tuple[float, ...]
    shares: tuple[float, ...]
    counts: tuple[int, ...]


def reliability(frames: Sequence[ScoredFrame], class_names: Sequence[str]) -> dict[str, Reliability]:
    """Measure the scores of every class."""
    return {name: _reliability(*_judged(frames, label)) for label, name in enumerate(class_names, start=1)}


def mean_error(classes: dict[str, Reliability]) -> float | None:
    """Return the calibration error over all classes, weighted by detections; None without detections."""
    known = [found for found in classes.values() if found.error is not None]
    total = sum(found.detections for found in known)
    return sum(found.error * found.detections for found in known) / total if total else None


def fit_platt(frames: Sequence[ScoredFrame], class_names: Sequence[str]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Fit slope and offset of the logit of every class, by maximum likelihood over all its detections."""
    fits = [_fit(*_judged(frames, label)) for label in range(1, len(class_names) + 1)]
    return tuple(slope for slope, _ in fits), tuple(offset for _, offset in fits)


def calibrated_frames(frames: Sequence[ScoredFrame], points: OperatingPoints) -> list[ScoredFrame]:
    """Return frames with calibrated scores, best first."""
    if not frames:
        return []
    counts = np.cumsum([len(frame.scores) for frame in frames])[:-1]
    scores, labels = (np.concatenate([getattr(frame, name) for frame in frames]) for name in ("scores", "labels"))
    calibrated = points.calibrated(torch.from_numpy(scores), torch.from_numpy(labels)).numpy()
    result = []
    for frame, of_frame in zip(frames, np.split(calibrated, counts), strict=True):
        order = np.argsort(-of_frame, kind="stable")
        result.append(replace(frame, boxes=frame.boxes[order], scores=of_frame[order], labels=frame.labels[order]))
    return result


def _judged(frames: Sequence[ScoredFrame], label: int) -> tuple[np.ndarray, np.ndarray]:
    """Scores `[D]` of a class and whether they are right, bool `[D]`."""
    matches = match(in_order(frames), label, ious=(FALSE_POSITIVE_IOU,))
    return matches.scores, matches.hits[0]


def _fit(scores: np.ndarray, right: np.ndarray) -> tuple[float, float]:
    if not right.any() or right.all():
        return 1.0, 0.0
    inputs = logit(np.clip(scores, EDGE, 1 - EDGE))

    def loss(parameters: np.ndarray) -> tuple[float, np.ndarray]:
        slope, offset = np.exp(parameters[0]), parameters[1]  # a slope above 0 keeps the order
        values = slope * inputs + offset
        difference = expit(values) - right
        gradient = np.array([(difference * inputs).mean() * slope, difference.mean()])
        likelihood = (np.logaddexp(0, values) - right * values).mean()
        return likelihood + PRIOR * (parameters**2).sum() / 2, gradient + PRIOR * parameters

    found = minimize(loss, np.zeros(2), jac=True, method="L-BFGS-B", bounds=((-3, 3), (-10, 10))).x
    return float(np.exp(found[0])), float(found[1])


def _reliability(scores: np.ndarray, right: np.ndarray) -> Reliability:
    shown = scores >= FLOOR
    scores, right = scores[shown], right[shown]
    bins = np.minimum((scores * BINS).astype(int), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    filled = counts > 0
    means = np.bincount(bins, scores, minlength=BINS)[filled] / counts[filled]
    shares = np.bincount(bins, right, minlength=BINS)[filled] / counts[filled]
    error = float((counts[filled] * np.abs(means - shares)).sum() / counts.sum()) if len(scores) else None
    return Reliability(
        error=error,
        detections=len(scores),
        scores=tuple(means.tolist()),
        shares=tuple(shares.tolist()),
        counts=tuple(counts[filled].tolist()),
    )
