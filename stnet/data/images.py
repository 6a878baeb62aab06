"""Image files as frames of a data set."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

from stnet.errors import DataError

# Formats whose decoders are safe to meet untrusted files with (Pillow also knows some that call other
# programs).
IMAGE_FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
_EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


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
