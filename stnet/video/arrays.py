"""Frames that are already in memory, or that arrive from an iterator, as video sources."""

import tempfile
from collections.abc import Collection, Iterable, Iterator
from fractions import Fraction

import numpy as np

from stnet.choices import DEFAULT_FPS
from stnet.errors import VideoError
from stnet.video.source import Scan, VideoFrame, VideoSource, check_size
from stnet.video.value_range import ValueRange, checked_range, to_bytes


class ArraySource(VideoSource):
    """An array of frames: `[N, H, W, 3]` (RGB) or `[N, H, W]` (gray); `[H, W, 3]` is a single frame.

    Args:
        array: uint8, or numbers whose range is stated.
        name: what results and messages call it.
        fps: frames per second.
        value_range: the values of black and white.

    Raises:
        VideoError: frames that cannot be used. Values beyond the range are told when their frame is read.
    """

    def __init__(
        self,
        array: np.ndarray,
        name: str = "array",
        fps: Fraction = DEFAULT_FPS,
        value_range: ValueRange | None = None,
    ) -> None:
        super().__init__()
        if array.ndim == 3 and array.shape[-1] == 3:
            array = array[None]
        if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[-1] not in (1, 3)):
            raise VideoError(
                f"{name}: frames of shape {list(array.shape)}; expected [N, H, W, 3], [N, H, W] or [H, W, 3]"
            )
        if len(array) == 0:
            raise VideoError(f"{name}: holds no frame")
        self._range = checked_range(value_range)
        to_bytes(array[:0], self._range, name)
        self.array, self.name, self.fps = array, name, fps
        self.declared_frames, self.height, self.width = array.shape[:3]
        check_size(name, self.height, self.width)

    def __iter__(self) -> Iterator[VideoFrame]:
        for index in range(len(self.array)):
            yield self._frame(index)
        self._conclude("ok", [])

    def scan(self, keep: Collection[int] = ()) -> Scan:
        """Return the number of frames, and those whose index is in `keep`."""
        return Scan(length=len(self.array), frames={i: self._frame(i) for i in keep if i < len(self.array)})

    def _frame(self, index: int) -> VideoFrame:
        image = as_rgb(self.array[index], f"{self.name}, frame {index}", self._range)
        return VideoFrame(index=index, time=float(index / self.fps), image=image)


class SpooledSource(VideoSource):
    """Frames of a one-shot iterable, kept in a temporary file on disk so that they can be read twice.

    Needed because clips reach over the whole video: nothing is known of it before the iterable has ended.
    Memory stays at one frame; the file takes 3 bytes a pixel and disappears with this object. Frames are
    `[H, W, 3]` or `[H, W]`, all of one size, uint8 or with a stated range. For feeds without an end see the live mode.
    """

    def __init__(
        self,
        frames: Iterable[np.ndarray],
        name: str = "frames",
        fps: Fraction = DEFAULT_FPS,
        value_range: ValueRange | None = None,
    ) -> None:
        super().__init__()
        self.name, self.fps = name, fps
        self._file = tempfile.TemporaryFile(prefix="stnet-")  # noqa: SIM115 (lives as long as the source)
        shape, count, value_range = None, 0, checked_range(value_range)
        for frame in frames:
            image = as_rgb(np.asarray(frame), f"{name}, frame {count}", value_range)
            shape = shape or image.shape
            if image.shape != shape:
                raise VideoError(f"{name}: frame {count} has shape {list(image.shape)}, the first one {list(shape)}")
            self._file.write(np.ascontiguousarray(image).data)
            count += 1
        if shape is None:
            raise VideoError(f"{name}: holds no frame")
        self._shape, self.declared_frames = shape, count
        self.height, self.width = shape[:2]

    def __iter__(self) -> Iterator[VideoFrame]:
        for index in range(self.declared_frames):
            yield self._frame(index)
        self._conclude("ok", [])

    def scan(self, keep: Collection[int] = ()) -> Scan:
        """Return the number of frames, and those whose index is in `keep`."""
        frames = {i: self._frame(i) for i in keep if i < self.declared_frames}
        return Scan(length=self.declared_frames, frames=frames)

    def _frame(self, index: int) -> VideoFrame:
        size = int(np.prod(self._shape))
        self._file.seek(index * size)
        image = np.frombuffer(self._file.read(size), dtype=np.uint8).reshape(self._shape)
        return VideoFrame(index=index, time=float(index / self.fps), image=image)


def as_rgb(image: np.ndarray, name: str, value_range: ValueRange | None = None) -> np.ndarray:
    """Return uint8 RGB `[H, W, 3]`.

    Args:
        image: `[H, W, 3]`, `[H, W, 1]` or `[H, W]`.
        name: what messages call it.
        value_range: the values of black and white; None: the type says it, uint8 alone.

    Raises:
        VideoError: another shape or type, or values beyond the range.
    """
    image = to_bytes(image, value_range, name)
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise VideoError(f"{name}: image of shape {list(image.shape)}; expected [H, W, 3] or [H, W]")
    check_size(name, *image.shape[:2])
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
