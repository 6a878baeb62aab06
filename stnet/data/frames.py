"""Decoded frames, kept while memory allows."""

from collections import OrderedDict
from pathlib import Path

import numpy as np

from stnet.data.clips.transforms import FrameStack, resize
from stnet.data.images import decode_image
from stnet.data.index import Frame, Video


class FrameReader:
    """Reads frames as uint8 `[H, W, 3]`, keeping the latest used ones, gray frames at a third of the memory.

    `cache_bytes` bounds what is kept; 0 keeps nothing. Not thread-safe; every loader worker has its own.
    """

    def __init__(self, cache_bytes: int):
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes {cache_bytes} is negative")
        self.cache_bytes = cache_bytes
        self.held_bytes = 0
        self._kept: OrderedDict[Path, np.ndarray] = OrderedDict()

    def read(self, frame: Frame) -> np.ndarray:
        """Return the pixels of a frame, uint8 `[H, W, 3]`.

        Raises:
            DataError: its file cannot be used; the message names it.
        """
        pixels = self._pixels(frame)
        return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)

    def read_clip(self, video: Video, frames: tuple[int, ...]) -> FrameStack:
        """Return the frames of a clip, given as indices into the video; all take the size of the first.

        One channel where all of them are gray.
        """
        chosen = [video.frames[index] for index in frames]
        height, width = chosen[0].height, chosen[0].width
        images = [resize(self._pixels(frame)[None], height, width)[0] for frame in chosen]
        channels = max(image.shape[2] for image in images)
        pixels = np.empty((len(images), height, width, channels), dtype=np.uint8)
        for image, target in zip(images, pixels, strict=True):
            target[:] = image
        scales = [np.array([width / f.width, height / f.height] * 2, dtype=np.float32) for f in chosen]
        return FrameStack(
            frames=pixels,
            boxes=tuple(frame.boxes * scale for frame, scale in zip(chosen, scales, strict=True)),
            labels=tuple(frame.labels.copy() for frame in chosen),
        )

    def _pixels(self, frame: Frame) -> np.ndarray:
        """[H, W, C], C = 1 for gray."""
        pixels = self._kept.get(frame.path)
        if pixels is not None:
            self._kept.move_to_end(frame.path)
            return pixels
        pixels = decode_image(frame.path, frame.height, frame.width, frame.scale)
        pixels.flags.writeable = False
        self._keep(frame.path, pixels)
        return pixels

    def _keep(self, path: Path, pixels: np.ndarray) -> None:
        if pixels.nbytes > self.cache_bytes:
            return
        self._kept[path] = pixels
        self.held_bytes += pixels.nbytes
        while self.held_bytes > self.cache_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.held_bytes -= dropped.nbytes
