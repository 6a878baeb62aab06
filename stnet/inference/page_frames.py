"""Frames of one video for the report page: as JPEG, few and small enough for a budget of bytes."""

import base64
import io
from dataclasses import dataclass

import numpy as np
from PIL import Image

MOST_FRAMES = 300
"""Frames of one video that the page can show; of longer videos every n-th is taken."""

LEAST_ALLOWANCE = 4000
"""Characters that a frame may always take: runs of many videos show fewer frames of each, from all of its length."""

STRONGEST = 6
"""Frames listed as the strongest of a video."""

LADDER = (
    *((960, 80), (800, 80), (640, 78), (640, 68), (560, 65), (480, 62), (400, 60), (320, 55)),
    *((256, 50), (192, 45), (128, 35), (96, 25)),
)
"""Longest side in pixels and JPEG quality, tried in this order until a frame fits."""


class FrameSpool:
    """Chooses and compresses frames so that all of them together take at most `budget` characters of base64.

    Args:
        length: frames that the video is expected to have; more may come.
        budget: characters for all frames.
    """

    def __init__(self, length: int, budget: int) -> None:
        most = max(1, min(MOST_FRAMES, budget // LEAST_ALLOWANCE))
        self.stride = max(1, -(-length // most))
        self._allowance = budget // max(1, -(-length // self.stride))
        self._left, self._step = budget, 0
        self.size: tuple[int, int] | None = None

    def take(self, number: int, image: np.ndarray) -> str | None:
        """Base64 of the `number`-th frame, uint8 `[H, W, 3]`, or None where it is not among those shown."""
        if number % self.stride or self._left < self._allowance:
            return None
        text = self.encode(image)
        self._left -= len(text)
        return text

    def encode(self, image: np.ndarray) -> str:
        """Base64 of a JPEG within the allowance of one frame. Later frames are never larger than earlier ones."""
        while True:
            longest, quality = LADDER[self._step]
            text, size = _jpeg(image, longest, quality)
            if len(text) <= self._allowance or self._step == len(LADDER) - 1:
                self.size = size
                return text
            self._step += 1


@dataclass(frozen=True, kw_only=True)
class StrongFrame:
    """A frame with a high score, kept whole as base64 of a JPEG."""

    number: int
    score: float
    image: str


class StrongestFrames:
    """The frames with the highest scores, at least a `gap` of frames apart, with only those few in memory."""

    def __init__(self, length: int) -> None:
        self._gap = max(1, length // (2 * STRONGEST))
        self._frames: list[StrongFrame] = []

    def wants(self, number: int, score: float) -> bool:
        """Return whether this frame, later than all before, belongs to the strongest so far."""
        if score <= 0:
            return False
        near = [frame for frame in self._frames if number - frame.number < self._gap]
        if near:
            return score > max(frame.score for frame in near)
        return len(self._frames) < STRONGEST or score > min(frame.score for frame in self._frames)

    def add(self, frame: StrongFrame) -> None:
        """Take in a frame that is wanted."""
        apart = [other for other in self._frames if frame.number - other.number >= self._gap]
        self._frames = sorted([*apart, frame], key=lambda other: -other.score)[:STRONGEST]
        self._frames.sort(key=lambda other: other.number)

    def best_first(self) -> list[StrongFrame]:
        """Those found, the highest score first."""
        return sorted(self._frames, key=lambda frame: -frame.score)


def _jpeg(image: np.ndarray, longest: int, quality: int) -> tuple[str, tuple[int, int]]:
    """Base64 of a JPEG whose longer side has at most `longest` pixels, and its (width, height)."""
    picture = Image.fromarray(image)
    # Shrinks by whole steps first, and never enlarges.
    picture.thumbnail((longest, longest), Image.Resampling.BILINEAR)
    buffer = io.BytesIO()
    picture.save(buffer, format="JPEG", quality=quality)
    return base64.b64encode(buffer.getvalue()).decode("ascii"), picture.size
