"""Lesions of a feed: each frame answered from what was seen until then."""

from dataclasses import dataclass

import numpy as np

from stnet.lesions.findings import Findings
from stnet.lesions.joining import GATE, distances, ends_of
from stnet.lesions.lesion import LesionInFrame
from stnet.lesions.linking import Linker, LinkSettings, Tracklet

HISTORY = 100
"""Findings that a lesion in sight is remembered by, when it leaves and comes back."""


FRESH = 0.75
"""Share of a new finding's box in what is told of a lesion; the rest is the filter's, which lags."""

PASSING = 1
"""Frames that a lesion is still told for when it is missed: most are missed once, and those that leave stay away."""


@dataclass(kw_only=True, eq=False)
class _Known:
    """A lesion that has a number: its latest tracklet, and sums over all findings that were counted."""

    number: int
    tracklet: Tracklet
    count: int = 0
    scores: np.ndarray

    def count_in(self, scores: np.ndarray) -> None:
        self.count += len(scores)
        self.scores = self.scores + scores.sum(axis=0)


class LiveLinker:
    """Links the findings of a feed into lesions, causally: a number that was given stays.

    A lesion gets its number once it was found in `least_findings` frames. One that comes back after an absence gets
    its former number. Memory does not grow with the length of the feed.

    Args:
        settings: what may be linked.
    """

    def __init__(self, settings: LinkSettings) -> None:
        self._settings = settings
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
        self._known = [known for known in self._known if known.tracklet.last >= away]
        owners = {id(known.tracklet): known for known in self._known}
        for tracklet in self._linker.open:
            if id(tracklet) in owners:
                if id(tracklet) in positions:
                    owners[id(tracklet)].count_in(tracklet.scores[-1][None])
            elif self._linker.sure(tracklet):
                owners[id(tracklet)] = self._named(tracklet)
            tracklet.forget(HISTORY)
        told = [tracklet for tracklet in self._linker.open if findings.frame - tracklet.last <= PASSING]
        seen = [owners[id(tracklet)] for tracklet in told if id(tracklet) in owners]
        return [
            self._answer(known, findings, positions.get(id(known.tracklet)))
            for known in sorted(seen, key=lambda known: known.number)
        ]

    def _named(self, tracklet: Tracklet) -> _Known:
        """Return the lesion that a tracklet belongs to: one that was away, or a new one."""
        still_open = {id(open_one) for open_one in self._linker.open}
        away = [known for known in self._known if id(known.tracklet) not in still_open]
        coming = ends_of([tracklet])
        far = [distances(ends_of([known.tracklet]), 0, coming, slice(1), self._settings)[0] for known in away]
        if far and min(far) < GATE:
            known = away[int(np.argmin(far))]
            known.tracklet = tracklet
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
