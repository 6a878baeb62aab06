"""Lesions of a feed: each frame answered from what was seen until then."""

from dataclasses import dataclass

import numpy as np

from stnet.lesions.findings import Findings
from stnet.lesions.joining import GATE, distances, ends_of
from stnet.lesions.lesion import LesionInFrame
from stnet.lesions.linking import Linker, LinkSettings, Tracklet

HISTORY = 100
"""Findings that a lesion in sight is remembered by, when it leaves and comes back."""


FRESH = 0.9
"""Share of a new finding's box in what is told of a lesion; the rest is the filter's, which lags."""

PASSING = 1
"""Frames that a lesion is still told for when it is missed, if it came back from a miss before: what is found in every
frame and then is not has left, but a lesion that the detector misses in passing is missed again."""

EARLY = 2
"""Findings that are enough for a number where their scores are worth as much as those that are needed."""


@dataclass(kw_only=True, eq=False)
class _Known:
    """A lesion that has a number: its latest tracklet, and sums over all findings that were counted."""

    number: int
    tracklet: Tracklet
    scores: np.ndarray
    count: int = 0
    missed: int = 0  # frames in a row, of those that were looked at
    came_back: bool = False  # after it was missed in passing

    def count_in(self, scores: np.ndarray) -> None:
        self.count += len(scores)
        self.scores = self.scores + scores.sum(axis=0)
        self.came_back |= self.missed > 0
        self.missed = 0

    @property
    def in_sight(self) -> bool:
        """Whether it is told in this frame."""
        return not self.missed or (self.came_back and self.missed <= PASSING)


class LiveLinker:
    """Links the findings of a feed into lesions, causally: a number that was given stays.

    A lesion gets its number once it was found in `least_findings` frames; with high scores already in the second one,
    where no lesion is away, whose number it might have. One that comes back after an absence gets its former number.
    Memory does not grow with the length of the feed.

    Args:
        settings: what may be linked.
    """

    def __init__(self, settings: LinkSettings) -> None:
        self._settings, self._history = settings, max(HISTORY, settings.least_findings)
        self._linker = Linker(settings)
        self._known: list[_Known] = []  # in sight, or away not longer than an absence
        self._numbers = 0

    def update(self, findings: Findings) -> list[LesionInFrame]:
        """Take in the next frame; return the lesions in sight, in the order of their numbers.

        Raises:
            ValueError: for a frame that is not later than those before.
        """
        taken, _ = self._linker.update(findings)
        positions = {id(tracklet): position for position, tracklet in taken.items()}
        away = findings.frame - self._settings.absence - 1
        # A lesion that is missed in passing is not away, however short an absence may be.
        still_open = {id(tracklet) for tracklet in self._linker.open}
        self._known = [
            known for known in self._known if known.tracklet.last >= away or id(known.tracklet) in still_open
        ]
        owners = {id(known.tracklet): known for known in self._known}
        for tracklet in self._linker.open:
            known, found = owners.get(id(tracklet)), id(tracklet) in positions
            if known is None and found and self._earned(tracklet):
                owners[id(tracklet)] = self._named(tracklet)
            elif known is not None and found:
                known.count_in(tracklet.scores[-1][None])
            elif known is not None:
                known.missed += 1
            tracklet.forget(self._history)
        seen = [owners[id(tracklet)] for tracklet in self._linker.open if id(tracklet) in owners]
        return [
            self._answer(known, findings, positions.get(id(known.tracklet)))
            for known in sorted(seen, key=lambda known: known.number)
            if known.in_sight
        ]

    def _earned(self, tracklet: Tracklet) -> bool:
        """Return whether a tracklet has what a lesion's number needs."""
        if self._linker.sure(tracklet):
            return True
        needed, least = self._settings.start_score, self._settings.least_findings
        worth = sum(float(scores.max()) for scores in tracklet.scores)
        early = len(tracklet.frames) >= EARLY and tracklet.best >= needed and worth >= least * needed
        return early and not self._away()

    def _away(self) -> list[_Known]:
        """Return the lesions out of sight that may come back."""
        still_open = {id(tracklet) for tracklet in self._linker.open}
        return [known for known in self._known if id(known.tracklet) not in still_open]

    def _named(self, tracklet: Tracklet) -> _Known:
        """Return the lesion that a tracklet belongs to: one that was away, or a new one."""
        away = self._away()
        coming = ends_of([tracklet])
        far = [distances(ends_of([known.tracklet]), 0, coming, slice(1), self._settings)[0] for known in away]
        if far and min(far) < GATE:
            known = away[int(np.argmin(far))]
            known.tracklet, known.missed = tracklet, 0
        else:
            self._numbers += 1
            known = _Known(
                number=self._numbers,
                tracklet=tracklet,
                scores=np.zeros_like(tracklet.classes),
            )
            self._known.append(known)
        known.count_in(np.array(tracklet.scores))
        return known

    @staticmethod
    def _answer(known: _Known, findings: Findings, position: int | None) -> LesionInFrame:
        box = known.tracklet.motion.predicted(findings.frame).box
        if position is not None:
            box = FRESH * findings.boxes[position] + (1 - FRESH) * box
        return LesionInFrame(
            number=known.number,
            box=box,
            found=position is not None,
            row=-1 if position is None else int(findings.rows[position]),
            class_scores=known.scores / known.count,
        )
