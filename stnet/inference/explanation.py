"""Where the model looked for a lesion: points in the frames of a clip, with their weights."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from stnet.lesions import Lesion
from stnet.video import VideoSource


@dataclass(frozen=True, kw_only=True, eq=False)
class LookedAt:
    """What was sampled in one frame of the clip.

    Weights are shares of the whole clip's: over all frames they add up to 1, but for samples outside of the frames.

    Attributes:
        frame: of the video, counted from 0.
        image: uint8 RGB `[H, W, 3]`.
        own: whether it is the frame of the detection.
        box: x0 y0 x1 y1 of the lesion in pixels of the image, None where it is out of sight.
        decoder: float32 `[K, 3]`, x, y in pixels of the image and weight, of the detection's query.
        encoder: float32 `[K, 3]`, the same of the positions under the box, near ones taken together.
    """

    frame: int
    image: np.ndarray
    own: bool
    box: tuple[float, float, float, float] | None
    decoder: np.ndarray
    encoder: np.ndarray


@dataclass(frozen=True, kw_only=True, eq=False)
class Explanation:
    """Where the model looked for a lesion in its best frame.

    Attributes:
        lesion: its number.
        frame: its best frame, counted from 0.
        time: in seconds.
        label: its class.
        score: of the detection.
        frames: of the clip, the frame of the detection first, then the others in their order.
    """

    lesion: int
    frame: int
    time: float
    label: int
    score: float
    frames: tuple[LookedAt, ...]


Explain = Callable[[VideoSource, int, Sequence[Lesion]], list[Explanation]]
"""Explains lesions of a video, which is read once more: its source, its number of frames, all its lesions."""
