"""The lesions of a video, with the whole video in sight."""

from collections.abc import Iterable, Sequence

import numpy as np

from stnet.lesions.findings import Findings
from stnet.lesions.joining import joined
from stnet.lesions.lesion import Lesion
from stnet.lesions.linking import Linker, LinkSettings, Tracklet
from stnet.lesions.motion import smoothed

LEAST_WEIGHT = 0.1
"""A box of score 0 pulls on the smoothed path like a tenth of one of score 1."""


def find_lesions(video: Iterable[Findings], settings: LinkSettings) -> list[Lesion]:
    """Return the lesions of a video in the order they appear.

    Findings are linked frame by frame, the stretches of one lesion are joined over its absences, what was found too
    rarely or with too low scores is left out, and the boxes of each lesion are smoothed.

    Args:
        video: the findings of its frames, in order; frames may be missing.
        settings: what may be linked.
    """
    linker, tracklets, times = Linker(settings), [], {}
    for findings in video:
        times[findings.frame] = findings.time
        tracklets += linker.update(findings)[1]
    tracklets += linker.open
    needed = min(settings.least_findings, len(times))
    lasting = [tracklet for tracklet in tracklets if len(tracklet.frames) >= min(2, needed)]
    groups = [
        group
        for group in joined(lasting, settings)
        if sum(len(part.frames) for part in group) >= needed
        and max(part.best for part in group) >= settings.start_score
    ]
    return [_lesion(number, group, settings.brief, times) for number, group in enumerate(groups, start=1)]


def lesion_scores(scores: np.ndarray) -> np.ndarray:
    """Return one score per class of a lesion.

    Args:
        scores: `[N, classes]` of its N findings.

    Returns:
        `[classes]` in [0, 1]: the mean over findings.
    """
    return scores.mean(axis=0)


def _lesion(number: int, group: Sequence[Tracklet], brief: int, times: dict[int, float]) -> Lesion:
    frames = np.array([frame for part in group for frame in part.frames])
    boxes = np.array([box for part in group for box in part.boxes])
    scores = np.array([row for part in group for row in part.scores])
    rows = np.array([row for part in group for row in part.rows])
    weights = LEAST_WEIGHT + (1 - LEAST_WEIGHT) * scores.max(1)
    breaks = np.flatnonzero(np.diff(frames) - 1 > brief) + 1
    stretches = [
        smoothed(frames[stretch], boxes[stretch], weights[stretch])
        for stretch in np.split(np.arange(len(frames)), breaks)
    ]
    every = np.concatenate([stretch[0] for stretch in stretches])
    path = np.concatenate([stretch[1] for stretch in stretches])
    known = np.array([frame in times for frame in every])  # frames that the video skips have no results at all
    every, path = every[known], path[known]
    found = np.isin(every, frames)
    table, places = np.zeros((len(every), scores.shape[1])), np.full(len(every), -1)
    table[found], places[found] = scores, rows
    return Lesion(
        number=number,
        frames=every,
        times=np.array([times[frame] for frame in every.tolist()]),
        boxes=path,
        found=found,
        rows=places,
        scores=table,
        class_scores=lesion_scores(scores),
    )
