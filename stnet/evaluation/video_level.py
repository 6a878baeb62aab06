"""From detections in frames to one score per video and class.

A video's score for a class is the mean of the k highest of its frame maxima, where a frame's maximum is its best
detection of that class and k is a tenth of the frames, at least one. A lesion is in view in part of a video only, so
the mean over all frames would measure how long it was in view, and the single highest frame would let one false alarm
speak for the whole video.
"""

import numpy as np

STRONGEST_SHARE = 0.1  # of a video's frames


def frame_maxima(scores: np.ndarray, labels: np.ndarray, classes: int) -> np.ndarray:
    """Return the best score of every class in one frame.

    Args:
        scores: `[m]` in [0, 1], in any order.
        labels: `[m]` category ids; 1 is the first class, other ids than 1 to `classes` are left out.
        classes: how many classes there are.

    Returns:
        `[classes]`, 0 where nothing was detected.
    """
    maxima = np.zeros(classes)
    known = (labels >= 1) & (labels <= classes)
    np.maximum.at(maxima, np.asarray(labels)[known].astype(np.int64) - 1, np.asarray(scores)[known])
    return maxima


def video_scores(maxima: np.ndarray) -> np.ndarray:
    """One score per class for a video: the mean of the k highest frame maxima, k = max(1, a tenth of the frames).

    Args:
        maxima: `[frames, classes]` of `frame_maxima`.

    Returns:
        `[classes]` in [0, 1].

    Raises:
        ValueError: without a frame.
    """
    if maxima.ndim != 2 or not len(maxima):
        raise ValueError(f"frame maxima of shape {maxima.shape}; expected [frames, classes] with at least one frame")
    strongest = max(1, int(STRONGEST_SHARE * len(maxima)))
    return np.sort(maxima, axis=0)[-strongest:].mean(axis=0)


def positive_share(scores: np.ndarray, positive: int) -> float:
    """How much of a video's class scores speaks for one class, in [0, 1]; 0.5 where there is no score at all.

    It compares the classes, so it does not need calibrated scores. Of two classes found equally well in one video, each
    has a share of 0.5: where lesions of both occur together, look at the class scores as well.

    Args:
        scores: `[classes]` of `video_scores`.
        positive: position of that class in `scores`.
    """
    total = float(scores.sum())
    return float(scores[positive]) / total if total > 0 else 0.5
