"""Decoded frames, kept while memory allows."""

from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from stnet.data.clips.transforms import FrameStack, resize
from stnet.data.index import Frame, Video
from stnet.errors import DataError

# Formats whose decoders are safe to meet untrusted files with (Pillow also knows some that call other
# programs).
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


class FrameReader:
    """Reads frames as uint8 [H, W, 3], keeping the latest used ones, gray frames at a third of the memory.

    `cache_bytes` bounds what is kept; 0 keeps nothing. Not thread-safe; every loader worker has its own.
    """

    def __init__(self, cache_bytes: int):
        if cache_bytes < 0:
            raise ValueError(f"cache_bytes {cache_bytes} is negative")
        self.cache_bytes = cache_bytes
        self.held_bytes = 0
        self._kept: OrderedDict[Path, np.ndarray] = OrderedDict()

    def read(self, frame: Frame) -> np.ndarray:
        """The pixels of a frame, uint8 [H, W, 3]; raises `DataError` naming the file."""
        pixels = self._pixels(frame)
        return pixels if pixels.shape[2] == 3 else np.repeat(pixels, 3, axis=2)

    def read_clip(self, video: Video, frames: tuple[int, ...]) -> FrameStack:
        """The frames of a clip, given as indices into the video; all take the size of the first.

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
        pixels = decode_image(frame.path, frame.height, frame.width)
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


def decode_image(path: Path, height: int, width: int) -> np.ndarray:
    """Decodes an image of the given size: uint8 [H, W, 1] when it is gray, else [H, W, 3].

    Raises `DataError` naming the file.
    """
    with _opened(path) as image:
        if image.size != (width, height):
            raise DataError(
                f"{path}: the image is {image.width}x{image.height} but its annotation says {width}x{height}; "
                "correct the annotation file"
            )
        if image.mode not in _EIGHT_BIT_MODES:
            raise DataError(f"{path}: pixels of mode {image.mode}; convert the image to 8 bits per channel")
        if image.mode == "L":
            return np.array(image)[:, :, None]
        pixels = np.array(image.convert("RGB"))
    gray = pixels[:, :, :1]
    return gray.copy() if (gray == pixels).all() else pixels


def image_size(path: Path) -> tuple[int, int]:
    """The (height, width) an image file declares, without decoding it; raises `DataError`."""
    with _opened(path) as image:
        return image.height, image.width


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image file opened with decoders that are safe; whatever they raise becomes a `DataError`."""
    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            yield image
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; restore the frame") from error
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        # Pillow's decoders raise all of these for damaged files.
        raise DataError(f"{path}: cannot be decoded ({error}); restore the frame") from error
