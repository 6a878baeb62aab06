"""The lesions of a video, with the whole video in sight."""

from collections.abc import Iterable, Sequence

import numpy as np

from stnet.lesions.findings import Findings
from stnet.lesions.joining import joined
from stnet.lesions.lesion import Lesion
from stnet.lesions.linking import Linker, LinkSettings, Tracklet, motions_at_start
from stnet.lesions.motion import smoothed

LEAST_WEIGHT = 0.1
"""A box of score 0 pulls on the smoothed path like a tenth of one of score 1."""


class LesionFinder:
    """Finds the lesions of a video: its frames one after the other, then the lesions.

    Findings are linked frame by frame, after a pass backwards that tells how lesions move where they begin. The
    stretches of one lesion are joined over its absences, what was found too rarely or with too low scores is left out,
    and the boxes of each lesion are smoothed.

    Args:
        settings: what may be linked.
    """

    def __init__(self, settings: LinkSettings) -> None:
        self._settings = settings
        self._video: list[Findings] = []

    def update(self, findings: Findings) -> None:
        """Take in the next frame; frames may be missing between.

        Raises:
            ValueError: for a frame that is not later than those before.
        """
        if self._video and findings.frame <= self._video[-1].frame:
            raise ValueError(f"frame {findings.frame} comes after frame {self._video[-1].frame}")
        self._video.append(findings)

    def lesions(self) -> list[Lesion]:
        """Return the lesions in the order they appear."""
        settings, times = self._settings, {findings.frame: findings.time for findings in self._video}
        needed = min(settings.least_findings, len(times))
        linker = Linker(settings, motions_at_start(reversed(self._video), settings))
        ended = [tracklet for findings in self._video for tracklet in linker.update(findings)[1]]
        # Findings of a tracklet that may be part of a lesion: single ones are most often false alarms.
        least = min(2, needed)
        tracklets = [tracklet for tracklet in ended + linker.open if len(tracklet.frames) >= least]
        groups = [
            group
            for group in joined(tracklets, settings)
            if sum(len(part.frames) for part in group) >= needed
            and max(part.best for part in group) >= settings.start_score
        ]
        return [_lesion(number, group, settings.brief, times) for number, group in enumerate(groups, start=1)]


def find_lesions(video: Iterable[Findings], settings: LinkSettings) -> list[Lesion]:
    """Return the lesions of a video in the order they appear.

    Args:
        video: the findings of its frames, in order.
        settings: what may be linked.
    """
    finder = LesionFinder(settings)
    for findings in video:
        finder.update(findings)
    return finder.lesions()


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
