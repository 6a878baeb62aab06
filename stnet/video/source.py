"""What every video source offers: frames in order, as often as asked, and a verdict on what was read."""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Literal

import numpy as np

from stnet.errors import VideoError
from stnet.video.geometry import SQUARE, UPRIGHT, Box, Orientation
from stnet.video.scale import PixelScale

Status = Literal["unread", "ok", "truncated", "corrupt"]

MAX_PIXELS = 2**25
"""Largest frame that is decoded, in pixels (an 8K frame, 7680 x 4320, just fits); larger ones are refused."""

FPS_RANGE = (Fraction(1, 10), Fraction(1000))
"""Frame rates that are believed."""


@dataclass(frozen=True, kw_only=True)
class VideoFrame:
    """One decoded frame.

    Attributes:
        index: its place in the video, from 0.
        time: in seconds from the first frame.
        image: uint8 RGB `[H, W, 3]`.
        name: its file name, where the frame is a file of its own.
        origin: x, y of the image's corner in the original frame, where that was cut.
        stored: its position in a DICOM file, beyond the index where frames before cannot be decoded.
    """

    index: int
    time: float
    image: np.ndarray = field(repr=False)
    name: str | None = None
    origin: tuple[int, int] = (0, 0)
    stored: int | None = None


@dataclass(frozen=True, kw_only=True)
class Scan:
    """What one quick pass over a source found: its true length, and the frames that were asked for."""

    length: int
    frames: dict[int, VideoFrame] = field(default_factory=dict)


class VideoSource(ABC):
    """A video that can be read from its beginning any number of times, one frame in memory at a time.

    Damage never raises: what can be decoded is delivered. `VideoError` is raised only by inputs of which nothing can be
    used.

    Attributes:
        name: of the video, for messages and results.
        fps: frames per second, stated or assumed.
        height, width: of the images delivered, in pixels.
        declared_frames: how many the file says there are, None where it does not; `scan` counts.
        origin: x, y of the images' corner in the frame, where they are cut out of larger frames.
        full_height, full_width: of the frames, where images may be cut out of them (DICOM), else None; the words are in
            `stnet.video.geometry`.
        orientation: how all stored frames were laid upright (images state it one by one, `read_still_header`).
        pixel_aspect: width of a pixel over its height.
        scale: the size of pixels, None where it is not stated.
        notes: what a user should know beforehand.
        replays: False for feeds, of which a source tells but gives no frames.
        status: "unread" until an iteration or a scan has reached the end, then "ok", "truncated" (frames are missing at
            the end) or "corrupt" (damage inside).
        problems: what was found then.
    """

    name: str
    fps: Fraction
    height: int
    width: int
    declared_frames: int | None = None
    origin: tuple[int, int] = (0, 0)
    full_height: int | None = None
    full_width: int | None = None
    orientation: Orientation = UPRIGHT
    pixel_aspect: Fraction = SQUARE
    scale: PixelScale | None = None
    notes: tuple[str, ...] = ()
    replays: bool = True

    def __init__(self) -> None:
        self.status: Status = "unread"
        self.problems: tuple[str, ...] = ()

    def __repr__(self) -> str:
        count = "" if self.declared_frames is None else f"{self.declared_frames} frames of "
        size = f"{count}{self.width} x {self.height} pixels, {float(self.fps):.4g} frames/s"
        return f"{type(self).__name__}({self.name}: {size}, {self.status})"

    @property
    def full_size(self) -> tuple[int, int]:
        """Height, width of the original frames, also where the images are cut out of them."""
        return self.full_height or self.height, self.full_width or self.width

    @property
    def region(self) -> Box | None:
        """The part of the original frames that the images are; None where they are all of it."""
        if (self.height, self.width) == self.full_size:
            return None
        x, y = self.origin
        return x, y, x + self.width, y + self.height

    @abstractmethod
    def __iter__(self) -> Iterator[VideoFrame]:
        """Yield the frames in order, starting over at every call."""

    def scan(self, keep: Collection[int] = ()) -> Scan:
        """Count the frames that can be decoded, and return those whose index is in `keep`."""
        kept, length = {}, 0
        for frame in self:
            length += 1
            if frame.index in keep:
                kept[frame.index] = frame
        return Scan(length=length, frames=kept)

    def _conclude(self, status: Status, problems: list[str]) -> None:
        self.status, self.problems = status, tuple(problems)


def check_size(name: str, height: int, width: int) -> None:
    """Require that a frame has pixels, and no more than `MAX_PIXELS`.

    Raises:
        VideoError: naming the video and the size.
    """
    if height < 1 or width < 1:
        raise VideoError(f"{name}: frame size {width} x {height} has no pixels")
    if height * width > MAX_PIXELS:
        raise VideoError(
            f"{name}: frames of {width} x {height} pixels exceed the limit of {MAX_PIXELS}; scale the video down first"
        )
