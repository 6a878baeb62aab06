"""How well a detector tells whole videos apart: the question a radiologist asks, one answer per video."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np

from stnet.evaluation.coco import ScoredFrame
from stnet.evaluation.video_level import frame_maxima, positive_share, video_scores

POSITIVE_CLASS = "malignant"  # sensitivity is about this class; the last class where no class has this name


@dataclass(frozen=True, kw_only=True)
class VideoResult:
    """One video.

    Attributes:
        name: of the video.
        frames, lesions: how many annotated frames were scored, and boxes in them.
        truth: names of the classes among its boxes, in the order of the classes; empty for a video without lesion.
        scores: by class name, see `video_scores`.
        positive_share: share of the positive class in the sum of the scores.
    """

    name: str
    frames: int
    lesions: int
    truth: tuple[str, ...]
    scores: dict[str, float]
    positive_share: float


@dataclass(frozen=True, kw_only=True)
class VideoMetrics:
    """What the scores of videos tell.

    Attributes:
        positive_class: whose detection counts as positive.
        auc: area under the ROC curve of `positive_share` over the videos with a lesion, those with a lesion of the
            positive class against the others; None where either is missing.
        threshold: a video with a lesion is called positive when its `positive_share` is at least this.
        sensitivity: share of the positive videos called positive; None without any.
        specificity: share of the other videos with a lesion called negative; None without any.
        lesion_auc: the same area for videos with a lesion against those without, by the highest class score; None
            where either is missing.
        positives, negatives, lesion_free: how many videos of each kind there are.
        videos: one row per video, by name.
    """

    positive_class: str
    auc: float | None
    threshold: float
    sensitivity: float | None
    specificity: float | None
    lesion_auc: float | None
    positives: int
    negatives: int
    lesion_free: int
    videos: tuple[VideoResult, ...]

    def to_dict(self) -> dict:
        """Plain numbers, ready for JSON."""
        return asdict(self)


def evaluate_videos(frames: Sequence[ScoredFrame], class_names: Sequence[str], threshold: float) -> VideoMetrics:
    """Score every video by its annotated frames, and compare with what was marked in them.

    Args:
        frames: all scored frames, in any order.
        class_names: names of category ids 1, 2, ...
        threshold: operating point of sensitivity and specificity, in [0, 1].
    """
    lowered = [name.lower() for name in class_names]
    positive = lowered.index(POSITIVE_CLASS) if POSITIVE_CLASS in lowered else len(class_names) - 1
    of_video: dict[str, list[ScoredFrame]] = {}
    for frame in frames:
        of_video.setdefault(frame.video, []).append(frame)
    videos = tuple(_video(name, of_video[name], class_names, positive) for name in sorted(of_video))
    with_lesion, is_positive, shares = lesion_groups(videos, class_names[positive])
    called = shares >= threshold
    return VideoMetrics(
        positive_class=class_names[positive],
        auc=rank_auc(shares, is_positive),
        threshold=threshold,
        sensitivity=_share(called[is_positive]),
        specificity=_share(~called[~is_positive]),
        lesion_auc=rank_auc(np.array([max(video.scores.values()) for video in videos]), with_lesion),
        positives=int(is_positive.sum()),
        negatives=int((~is_positive).sum()),
        lesion_free=int((~with_lesion).sum()),
        videos=videos,
    )


def lesion_groups(videos: Sequence[VideoResult], positive_class: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Which of `n` videos have a lesion, bool `[n]`; of those `m`, which are positive, bool `[m]`, and their shares."""
    with_lesion = np.array([bool(video.truth) for video in videos], dtype=bool)
    marked = [video for video in videos if video.truth]
    is_positive = np.array([positive_class in video.truth for video in marked], dtype=bool)
    return with_lesion, is_positive, np.array([video.positive_share for video in marked], dtype=np.float64)


def rank_auc(scores: np.ndarray, positive: np.ndarray) -> float | None:
    """Area under the ROC curve: the chance that a positive scores above a negative, ties counting half.

    Args:
        scores: `[n]`.
        positive: `[n]` bool.

    Returns:
        In [0, 1]; None where positives or negatives are missing.
    """
    positives = int(np.count_nonzero(positive))
    negatives = len(positive) - positives
    if not positives or not negatives:
        return None
    _, level, count = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = np.cumsum(count) - (count - 1) / 2  # the mean rank of equal scores, from 1
    above = ranks[level][positive].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def roc_curve(scores: np.ndarray, positive: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """Return false and true positive rates at all thresholds, from (0, 0) to (1, 1); None where a kind is missing."""
    if positive.all() or not positive.any():
        return None
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)  # of every run of equal scores
    found = np.cumsum(positive[order])[last]
    false = last + 1 - found
    return np.append(0, false / false[-1]), np.append(0, found / found[-1])


def _video(name: str, frames: Sequence[ScoredFrame], class_names: Sequence[str], positive: int) -> VideoResult:
    maxima = np.stack([frame_maxima(frame.scores, frame.labels, len(class_names)) for frame in frames])
    scores = video_scores(maxima)
    labels = {int(label) for frame in frames for label in frame.true_labels}
    return VideoResult(
        name=name,
        frames=len(frames),
        lesions=sum(len(frame.true_labels) for frame in frames),
        truth=tuple(known for label, known in enumerate(class_names, start=1) if label in labels),
        scores=dict(zip(class_names, scores.tolist(), strict=True)),
        positive_share=positive_share(scores, positive),
    )


def _share(flags: np.ndarray) -> float | None:
    return float(flags.mean()) if len(flags) else None
