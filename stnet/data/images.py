"""Image files as frames of a data set, read as inference reads them."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from stnet.errors import DataError, VideoError
from stnet.video.depth import GrayScale
from stnet.video.stills import StillHeader, find_scale, read_still, read_still_header


def decode_image(path: Path, height: int, width: int, scale: GrayScale | None = None) -> np.ndarray:
    """Return an image of the given size, upright: uint8 `[H, W, 1]` when it is gray, else `[H, W, 3]`.

    Args:
        path: the file.
        height: what its annotation says of the upright image.
        width: likewise.
        scale: the brightness of gray of more than 8 bits in its video; by default that of this file alone.

    Raises:
        DataError: it cannot be decoded, or has another size.
    """
    with _reported(path):
        pixels = read_still(path, scale and (lambda: scale))
    if pixels.shape[:2] != (height, width):
        raise DataError(
            f"{path}: the image is {pixels.shape[1]}x{pixels.shape[0]} but its annotation says {width}x{height}; "
            "correct the annotation file (sizes and boxes are those of the image as viewers show it, upright)"
        )
    if pixels.shape[2] == 1:
        return pixels
    red, green, blue = (pixels[:, :, channel] for channel in range(3))
    # Channel by channel: a comparison along the last axis of three takes four times as long.
    gray = np.array_equal(red, green) and np.array_equal(red, blue)
    return red[:, :, None].copy() if gray else pixels


def image_header(path: Path) -> StillHeader:
    """Return what an image file says of itself, without decoding it.

    Raises:
        DataError: it is no image.
    """
    with _reported(path):
        return read_still_header(path)


def image_size(path: Path) -> tuple[int, int]:
    """Return the upright (height, width) that an image file states.

    Raises:
        DataError: it is no image.
    """
    header = image_header(path)
    return header.height, header.width


def video_scale(deep: Iterable[Path]) -> GrayScale | None:
    """Return the brightness of the frames of a video that have more than 8 bits, alike in all of them; None for none.

    Raises:
        DataError: their values are no brightness.
    """
    try:
        return find_scale(deep)
    except VideoError as error:
        raise DataError(str(error)) from error


@contextmanager
def _reported(path: Path) -> Iterator[None]:
    """Whatever is wrong with an image file becomes a `DataError`."""
    if not path.exists():
        raise DataError(f"{path}: no such file; restore the frame")
    try:
        yield
    except VideoError as error:
        raise DataError(str(error)) from error
