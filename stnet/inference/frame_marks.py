"""What pictures show of a frame: one mark for each box, with all that is to be told of it."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from stnet.console import printable
from stnet.inference.frame_results import FrameResult, class_name
from stnet.lesions import Lesion, LesionInFrame


@dataclass(frozen=True, kw_only=True)
class Listed:
    """The detections of a frame that are drawn, without the frame and in little memory.

    Attributes:
        frame: counted from 0.
        time: in seconds from the first frame.
        table: float64 `[N, 7]`, best first: x0 y0 x1 y1 in pixels of what was looked at, cut at its borders; score;
            label; row in the frame's list of detections.
        origin: x, y of what was looked at in the original frame.
        size: its height, width.
    """

    frame: int
    time: float
    table: np.ndarray
    origin: tuple[int, int]
    size: tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One box in a picture.

    Attributes:
        box: x0 y0 x1 y1 in pixels of the picture.
        classes: labels and scores, best first; one label without a score where a lesion was missed in passing.
        lesion: its number, None where the box belongs to none.
        sure: whether it was found with at least the score threshold.
    """

    box: tuple[float, float, float, float]
    classes: tuple[tuple[int, float | None], ...]
    lesion: int | None
    sure: bool

    @property
    def label(self) -> int:
        """The class with the best score."""
        return self.classes[0][0]

    @property
    def score(self) -> float | None:
        """The best score, None where the lesion was missed in passing."""
        return self.classes[0][1]

    def texts(self, names: dict[int, str]) -> tuple[str, ...]:
        """Return what a label can say, the shortest at the end."""
        number = "" if self.lesion is None else f"#{self.lesion} "
        told = [
            printable(class_name(names, label)) + ("" if score is None else f" {score:.2f}")
            for label, score in self.classes
        ]
        brief = "" if self.score is None else f"{self.score:.2f}"
        choice = (number + ", ".join(told), number + told[0], (number + brief).strip(), number.strip())
        return tuple(dict.fromkeys(text for text in choice if text))


def listed(result: FrameResult, least_score: float, most: int | None = None) -> Listed:
    """Return the detections of a frame from a score on that have a place in it, at most so many, the best ones."""
    seen = result.visible_in_image
    kept = (seen.scores >= least_score).nonzero().flatten()[:most]
    columns = (seen.boxes[kept], seen.scores[kept, None], seen.labels[kept, None], result.visible_rows[kept, None])
    table = np.concatenate([column.cpu().numpy().astype(np.float64) for column in columns], axis=1)
    return Listed(frame=result.index, time=result.time, table=table, origin=result.origin, size=result.size)


def in_frame(lesions: Iterable[Lesion], frame: int) -> list[LesionInFrame]:
    """Return the lesions in sight in a frame."""
    return [seen for lesion in lesions if (seen := lesion.in_frame(frame)) is not None]


def marks_of(frame: Listed, lesions: Sequence[LesionInFrame] = (), score_threshold: float = 0.0) -> list[Mark]:
    """Return the marks of a frame, the best first.

    A box that is listed for several classes is one mark. A lesion that is not among what is listed, because it was
    missed or its score is low, has a mark of its own, at its smoothed box.

    Args:
        frame: what is listed.
        lesions: in sight.
        score_threshold: from which score on a detection is sure.
    """
    numbers = {lesion.row: lesion.number for lesion in lesions if lesion.found}
    of_box: dict[tuple[float, ...], list[tuple[float, ...]]] = {}
    for *box, score, label, row in frame.table.tolist():
        of_box.setdefault(tuple(box), []).append((score, label, row))
    marks = []
    for box, rows in of_box.items():
        lesion = next((numbers[row] for _, _, row in rows if row in numbers), None)
        classes = tuple((int(label), score) for score, label, _ in rows)
        marks.append(Mark(box=box, classes=classes, lesion=lesion, sure=classes[0][1] >= score_threshold))
    shown = {mark.lesion for mark in marks}
    marks += [
        Mark(box=box, classes=((lesion.label, None),), lesion=lesion.number, sure=False)
        for lesion in lesions
        if lesion.number not in shown and (box := _cut(lesion.box, frame)) is not None
    ]
    return sorted(marks, key=lambda mark: (mark.score is None, -(mark.score or 0.0)))


def _cut(box: np.ndarray, frame: Listed) -> tuple[float, float, float, float] | None:
    """Return a box of the original frame in pixels of what was looked at, None where nothing of it lies there."""
    height, width = frame.size
    corners = np.clip(box - np.tile(frame.origin, 2), 0, [width, height, width, height])
    if corners[2] <= corners[0] or corners[3] <= corners[1]:
        return None
    return tuple(corners.tolist())
