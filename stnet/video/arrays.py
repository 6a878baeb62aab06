"""Frames that are already in memory, or that arrive from an iterator, as video sources."""

import tempfile
from collections.abc import Collection, Iterable, Iterator
from fractions import Fraction

import numpy as np

from stnet.choices import DEFAULT_FPS
from stnet.errors import VideoError
from stnet.video.source import Scan, VideoFrame, VideoSource, check_size


class ArraySource(VideoSource):
    """An array of frames: uint8 `[N, H, W, 3]` (RGB) or `[N, H, W]` (gray); `[H, W, 3]` is a single frame."""

    def __init__(self, array: np.ndarray, name: str = "array", fps: Fraction = DEFAULT_FPS) -> None:
        super().__init__()
        if array.ndim == 3 and array.shape[-1] == 3:
            array = array[None]
        if array.ndim not in (3, 4) or (array.ndim == 4 and array.shape[-1] not in (1, 3)):
            raise VideoError(
                f"{name}: frames of shape {list(array.shape)}; expected [N, H, W, 3], [N, H, W] or [H, W, 3]"
            )
        if array.dtype != np.uint8:
            raise VideoError(f"{name}: frames of type {array.dtype}; expected uint8 with values 0 to 255")
        if len(array) == 0:
            raise VideoError(f"{name}: holds no frame")
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
        return VideoFrame(index=index, time=float(index / self.fps), image=as_rgb(self.array[index], self.name))


class SpooledSource(VideoSource):
    """Frames of a one-shot iterable, kept in a temporary file on disk so that they can be read twice.

    Needed because clips reach over the whole video: nothing is known of it before the iterable has ended.
    Memory stays at one frame; the file takes 3 bytes a pixel and disappears with this object. Frames are
    uint8 `[H, W, 3]` or `[H, W]`, all of one size. For feeds without an end see the live mode.
    """

    def __init__(self, frames: Iterable[np.ndarray], name: str = "frames", fps: Fraction = DEFAULT_FPS) -> None:
        super().__init__()
        self.name, self.fps = name, fps
        self._file = tempfile.TemporaryFile(prefix="stnet-")  # noqa: SIM115 (lives as long as the source)
        shape, count = None, 0
        for frame in frames:
            image = as_rgb(np.asarray(frame), f"{name}, frame {count}")
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


def as_rgb(image: np.ndarray, name: str) -> np.ndarray:
    """uint8 RGB `[H, W, 3]` of an image `[H, W, 3]`, `[H, W, 1]` or `[H, W]`; others raise `VideoError`."""
    if image.dtype != np.uint8:
        raise VideoError(f"{name}: image of type {image.dtype}; expected uint8 with values 0 to 255")
    if image.ndim == 2:
        image = image[:, :, None]
    if image.ndim != 3 or image.shape[2] not in (1, 3):
        raise VideoError(f"{name}: image of shape {list(image.shape)}; expected [H, W, 3] or [H, W]")
    check_size(name, *image.shape[:2])
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image
