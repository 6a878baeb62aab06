"""Findings linked frame by frame into tracklets: stretches of one lesion without a long gap.

Every open tracklet predicts where its lesion is (`motion.py`); the assignment with the least sum of distances says
which finding belongs to which. Tracklets that are sure of their lesion choose first, since a finding that is nobody's
starts a tracklet, and most false alarms end as such. Nothing of the future is used.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

import numpy as np
from scipy.optimize import linear_sum_assignment

from stnet.choices import SCORE_THRESHOLD
from stnet.errors import ConfigError
from stnet.lesions.findings import Findings, overlap
from stnet.lesions.motion import Motion, first_motion

GATE = 20.0
"""Largest distance of a finding from a prediction: chi-squared with 4 degrees of freedom stays below in 99.95 %."""

JUMP_IOU = 0.4
"""A box farther away still belongs where it overlaps the predicted one by this: borders are uncertain."""

CLASS_WEIGHT = 6.0
"""Distance of two findings whose class scores share nothing."""

MEMORY = 0.9
"""How much of its class scores a tracklet keeps with each finding, when it is compared with others."""

ALIKE = 1e-3
"""Distance per point of score that a better finding is preferred by, which settles ties."""


KEEP_SHARE = 0.5
"""Default share of that score from which findings continue a lesion."""


@dataclass(frozen=True, kw_only=True)
class LinkSettings:
    """How findings become lesions.

    Attributes:
        start_score: a lesion has a finding of at least this score; lower ones alone are no lesion.
        keep_score: findings of at least this score continue a lesion.
        least_findings: a lesion was found in at least so many frames (or in all of a shorter video).
        brief: frames that a lesion may be missed for in passing; its boxes there are filled in.
        absence: frames that a lesion may be out of sight for and still be the same when it returns.
    """

    start_score: float = SCORE_THRESHOLD
    keep_score: float = KEEP_SHARE * SCORE_THRESHOLD
    least_findings: int = 3
    brief: int = 5
    absence: int = 250

    def __post_init__(self) -> None:
        if not 0 <= self.keep_score <= self.start_score <= 1:
            raise ConfigError(
                f"keep_score {self.keep_score:g} and start_score {self.start_score:g}; expected 0 <= keep_score <= "
                "start_score <= 1"
            )
        for name, least in (("least_findings", 1), ("brief", 0), ("absence", 0)):
            if getattr(self, name) < least:
                raise ConfigError(f"{name} {getattr(self, name)}; expected at least {least}")


def link_settings(score_threshold: float) -> LinkSettings:
    """Return the usual settings for a score from which on detections are told."""
    return LinkSettings(start_score=score_threshold, keep_score=KEEP_SHARE * score_threshold)


@dataclass(kw_only=True, eq=False)
class Tracklet:
    """Findings of one lesion, one frame after the other; it grows while it is open.

    Attributes:
        motion: what is believed after the last finding.
        frames: in which it was found, ascending.
        boxes: `[4]` each, as found.
        scores: `[classes]` each.
        rows: where they stand in their frames' lists of detections.
        classes: `[classes]`, the latest scores, those before with ever less weight.
        best: the best score of any class.
    """

    motion: Motion
    frames: list[int]
    boxes: list[np.ndarray]
    scores: list[np.ndarray]
    rows: list[int]
    classes: np.ndarray
    best: float

    @property
    def last(self) -> int:
        """The last frame it was found in."""
        return self.frames[-1]

    def append(self, findings: Findings, position: int, motion: Motion) -> None:
        """Take in a finding, and what is believed of the lesion's motion after it."""
        scores = findings.scores[position]
        self.motion = motion
        self.frames.append(findings.frame)
        self.boxes.append(findings.boxes[position])
        self.scores.append(scores)
        self.rows.append(int(findings.rows[position]))
        self.classes = MEMORY * self.classes + (1 - MEMORY) * scores
        self.best = max(self.best, float(scores.max()))

    def forget(self, most: int) -> None:
        """Keep the latest findings alone."""
        for column in (self.frames, self.boxes, self.scores, self.rows):
            del column[:-most]


def started(findings: Findings, position: int, motion: Motion | None = None) -> Tracklet:
    """Return a tracklet of one finding, whose motion may be known from elsewhere."""
    box, scores = findings.boxes[position], findings.scores[position]
    return Tracklet(
        motion=motion or first_motion(findings.frame, box),
        frames=[findings.frame],
        boxes=[box],
        scores=[scores],
        rows=[int(findings.rows[position])],
        classes=scores,
        best=float(scores.max()),
    )


def class_difference(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return how different class scores `[..., classes]` are, `[...]`: 0 in proportion, 1 nothing in common."""
    tiny = np.finfo(float).tiny
    shares = [scores / np.maximum(scores.sum(-1, keepdims=True), tiny) for scores in (first, second)]
    return np.abs(shares[0] - shares[1]).sum(-1) / 2


def assigned(costs: np.ndarray, limit: float) -> list[tuple[int, int]]:
    """Return pairs of rows and columns with the least sum of costs, where a pair not made costs `limit`."""
    rows, columns = linear_sum_assignment(np.minimum(costs, limit))
    return [(int(i), int(j)) for i, j in zip(rows, columns, strict=True) if costs[i, j] < limit]


class Linker:
    """Links the findings of one frame after the other.

    Args:
        settings: what may be linked.
        starts: motions by frame and row of a finding, for tracklets that start with it.

    Attributes:
        open: tracklets that the next frame may continue, in the order they began.
    """

    def __init__(self, settings: LinkSettings, starts: Mapping[tuple[int, int], Motion] = MappingProxyType({})) -> None:
        self._settings, self._starts = settings, starts
        self.open: list[Tracklet] = []

    def sure(self, tracklet: Tracklet) -> bool:
        """Return whether a tracklet has what a lesion needs."""
        return len(tracklet.frames) >= self._settings.least_findings and tracklet.best >= self._settings.start_score

    def update(self, findings: Findings) -> tuple[dict[int, Tracklet], list[Tracklet]]:
        """Take in the next frame.

        Returns:
            The tracklet of each finding that has one, by position, and the tracklets that ended before this frame.

        Raises:
            ValueError: for a frame that is not later than those before.
        """
        frame = findings.frame
        if any(tracklet.last >= frame for tracklet in self.open):
            raise ValueError(f"frame {frame} comes after frame {max(tracklet.last for tracklet in self.open)}")
        ended = [tracklet for tracklet in self.open if not self._may_continue(tracklet, frame)]
        self.open = [tracklet for tracklet in self.open if self._may_continue(tracklet, frame)]
        taken: dict[int, Tracklet] = {}
        free = np.flatnonzero(findings.scores.max(1, initial=0.0) >= self._settings.keep_score)
        for sure in (True, False):
            chosen = [tracklet for tracklet in self.open if self.sure(tracklet) is sure]
            taken |= self._continued(chosen, findings, free)
            free = np.array([position for position in free if position not in taken], dtype=np.int64)
        for position in free:
            known = self._starts.get((frame, int(findings.rows[position])))
            taken[int(position)] = started(findings, int(position), known)
            self.open.append(taken[int(position)])
        return taken, ended

    def _may_continue(self, tracklet: Tracklet, frame: int) -> bool:
        missed = frame - tracklet.last - 1
        return missed <= (self._settings.brief if self.sure(tracklet) else min(2, self._settings.brief))

    def _continued(self, tracklets: list[Tracklet], findings: Findings, free: np.ndarray) -> dict[int, Tracklet]:
        """Let tracklets take what is theirs of the findings at positions `free`."""
        if not tracklets or not len(free):
            return {}
        predicted = [tracklet.motion.predicted(findings.frame) for tracklet in tracklets]
        boxes, scores = findings.boxes[free], findings.scores[free]
        distances = np.stack([motion.distances(boxes) for motion in predicted])
        overlaps = overlap(np.stack([motion.box for motion in predicted]), boxes)
        jumps = (distances >= GATE) & (overlaps >= JUMP_IOU)
        costs = np.where(jumps, GATE * (2 - overlaps), distances)
        costs[(distances >= GATE) & ~jumps] = np.inf
        classes = np.stack([tracklet.classes for tracklet in tracklets])
        costs += CLASS_WEIGHT * class_difference(classes[:, None], scores[None]) - ALIKE * scores.max(1)
        taken = {}
        for row, column in assigned(costs, 2 * GATE + CLASS_WEIGHT):
            position = int(free[column])
            tracklets[row].append(findings, position, predicted[row].corrected(findings.boxes[position]))
            taken[position] = tracklets[row]
        return taken


def motions_at_start(video: Iterable[Findings], settings: LinkSettings) -> dict[tuple[int, int], Motion]:
    """Return how the lesions of findings move, as what follows in the video tells; by frame and row.

    Seen once, a lesion may move anywhere, and two that begin close to each other could not be told apart.

    Args:
        video: the findings of its frames, the last frame first.
        settings: what may be linked.
    """
    linker, motions = Linker(settings), {}
    for findings in video:
        taken, _ = linker.update(replace(findings, frame=-findings.frame))
        for position, tracklet in taken.items():
            if linker.sure(tracklet):
                key = findings.frame, int(findings.rows[position])
                motions[key] = first_motion(findings.frame, findings.boxes[position]).moving_as(
                    tracklet.motion.reversed()
                )
    return motions
