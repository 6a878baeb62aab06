"""One lesion of a video: where it was found from frame to frame, and what it is."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True, eq=False)
class LesionInFrame:
    """A lesion in one frame.

    Attributes:
        number: which lesion of the video, from 1.
        box: float64 `[4]`, smoothed, x0 y0 x1 y1 in pixels of the original frame.
        found: False where it was missed in this frame, and the box is where it should be.
        row: where its best score stands in the frame's list of detections; -1 where it was missed.
        class_scores: float64 `[classes]` of the lesion: over the whole video, in live mode until this frame.
    """

    number: int
    box: np.ndarray
    found: bool
    row: int
    class_scores: np.ndarray

    def __repr__(self) -> str:
        seen = "found" if self.found else "missed"
        box = ", ".join(f"{value:.1f}" for value in self.box)
        return f"LesionInFrame({self.number}: class {self.label}, score {self.score:.2f}, {seen} at [{box}])"

    @property
    def label(self) -> int:
        """Its class, from 1: the one with the highest score."""
        return int(self.class_scores.argmax()) + 1

    @property
    def score(self) -> float:
        """The score of its class."""
        return float(self.class_scores.max())


@dataclass(frozen=True, kw_only=True, eq=False)
class Lesion:
    """A lesion of a video.

    It has a box in every frame from its first to its last, but for the frames in which it was out of sight.

    Attributes:
        number: which lesion of the video, from 1 in the order they appear.
        frames: int64 `[N]` ascending, the frames in which it has a box.
        times: float64 `[N]` in seconds.
        boxes: float64 `[N, 4]`, smoothed, x0 y0 x1 y1 in pixels of the original frame.
        found: bool `[N]`, False where it was missed in passing and its box is filled in.
        rows: int64 `[N]`, where its best score stands in the frame's list of detections; -1 where it was missed.
        scores: float64 `[N, classes]` as found; 0 where it was missed.
        class_scores: float64 `[classes]` of the lesion as a whole, see `tracking.lesion_scores`.
    """

    number: int
    frames: np.ndarray
    times: np.ndarray
    boxes: np.ndarray
    found: np.ndarray
    rows: np.ndarray
    scores: np.ndarray
    class_scores: np.ndarray

    def __repr__(self) -> str:
        when = f"frames {self.first_frame} to {self.last_frame}, best {self.best_frame}"
        return f"Lesion({self.number}: class {self.label}, score {self.score:.2f}, {when})"

    @property
    def label(self) -> int:
        """Its class, from 1: the one with the highest score."""
        return int(self.class_scores.argmax()) + 1

    @property
    def score(self) -> float:
        """The score of its class."""
        return float(self.class_scores.max())

    @property
    def first_frame(self) -> int:
        """The frame it appears in."""
        return int(self.frames[0])

    @property
    def last_frame(self) -> int:
        """The frame it was last found in."""
        return int(self.frames[-1])

    @property
    def frame_count(self) -> int:
        """In how many frames it was found."""
        return int(self.found.sum())

    @property
    def best(self) -> int:
        """The position in `frames` where its class has the best score, the first of several."""
        return int(self.scores[:, self.label - 1].argmax())

    @property
    def best_frame(self) -> int:
        """The frame it is best seen in."""
        return int(self.frames[self.best])

    def in_frame(self, frame: int) -> LesionInFrame | None:
        """Return the lesion as it is in a frame, None where it is out of sight."""
        position = int(np.searchsorted(self.frames, frame))
        if position == len(self.frames) or self.frames[position] != frame:
            return None
        return LesionInFrame(
            number=self.number,
            box=self.boxes[position],
            found=bool(self.found[position]),
            row=int(self.rows[position]),
            class_scores=self.class_scores,
        )
