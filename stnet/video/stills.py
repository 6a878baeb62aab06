"""Single image files: the one way in which training and inference read them.

What a file states is applied: its orientation (the frame is upright, see `stnet.video.geometry`), whether 0 is white,
its depth (see `stnet.video.depth`). Formats are those whose decoders are safe to meet untrusted files with; Pillow
also knows some that call other programs.
"""

import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, UnidentifiedImageError

from stnet.contents import misnamed
from stnet.errors import VideoError
from stnet.video.depth import DEEP_LEAST, Extremes, GrayScale, choose_scale, on_black
from stnet.video.geometry import Orientation, believable_aspect
from stnet.video.source import check_size
from stnet.video.tiff_pages import tiff_pages

IMAGE_FORMATS = {
    ".png": "PNG",
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".bmp": "BMP",
    ".tif": "TIFF",
    ".tiff": "TIFF",
    ".webp": "WEBP",
    ".ppm": "PPM",
    ".pgm": "PPM",
}
IMAGE_SUFFIXES = frozenset(IMAGE_FORMATS)

EXIF_ORIENTATION = 0x0112
TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS, TIFF_PHOTOMETRIC, TIFF_LARGEST = 256, 257, 258, 262, 281
WHITE_IS_ZERO = 0

PixelKind = Literal["bytes", "deep gray", "deep colour"]

# What Pillow raises for files that are missing, not images, cut or malicious.
UNREADABLE = (
    *(OSError, SyntaxError, ValueError, EOFError, TypeError, KeyError, IndexError, struct.error),
    Image.DecompressionBombError,
)


class UnreadableStill(VideoError):
    """An image file that cannot be decoded; `reason` says why without naming it."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: cannot be decoded ({reason}); restore the file")
        self.reason = reason


@dataclass(frozen=True, kw_only=True)
class StillHeader:
    """What an image file says of itself.

    (height, width) and aspect of the pixels are those of the upright picture, which the orientation makes of what is
    stored; `deep` says whether it has more than 8 bits.
    """

    height: int
    width: int
    pixel_aspect: Fraction
    orientation: Orientation
    deep: bool


def read_still(path: Path, scale: Callable[[], GrayScale | None] | None = None) -> np.ndarray:
    """Return the upright picture in an image file, uint8 `[H, W, 1]` where it is stored as gray, else `[H, W, 3]`.

    Args:
        path: the file.
        scale: gives that of its video (`find_scale`); asked only for pixels of more than 8 bits. By default they take
            that of this file alone.

    Raises:
        VideoError: it cannot be decoded, holds several pictures, or its values are no brightness.
    """
    with open_still(path) as image:
        check_single(path, image)
        return decode_picture(path, image, scale)


def read_still_header(path: Path) -> StillHeader:
    """Return what an image file says of itself, without decoding it.

    Raises:
        VideoError: it cannot be decoded, or holds several pictures.
    """
    with open_still(path) as image:
        check_single(path, image)
        return picture_header(path, image)


def find_scale(paths: Iterable[Path]) -> GrayScale | None:
    """Return the scale for the frames of one video that have more than 8 bits, or None where there are none.

    Files that cannot be decoded are passed over.

    Raises:
        VideoError: their values are no brightness.
    """
    survey = DepthSurvey()
    for path in paths:
        try:
            with open_still(path) as image:
                survey.add(path, image, pixel_kind(image))
        except UnreadableStill:
            continue
    return survey.scale()


def pixel_kind(image: Image.Image) -> PixelKind:
    """Return what the pixels of an image are; to be asked before it is loaded.

    Of colour with 16 bits Pillow keeps the upper bytes, and only before loading it can be told.
    """
    if image.mode.startswith(("I", "F")):
        return "deep gray"
    deep = any(";16" in str(tile[3]) for tile in image.tile)
    if image.format == "PPM" and image.tile and isinstance(image.tile[0][3], tuple):
        deep = image.tile[0][3][-1] > 255  # the largest value, by its header
    return "deep colour" if deep else "bytes"


class DepthSurvey:
    """Looks at the values of all pictures of a video that have more than 8 bits."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._gray: Extremes | None = None
        self._stated: set[int | None] = set()
        self._colour: int | None = None

    def add(self, path: Path, image: Image.Image, kind: PixelKind) -> None:
        """Take the current picture of an open image into account, whose `pixel_kind` is `kind`."""
        if kind == "bytes":
            return
        check_size(str(path), image.height, image.width)
        self._path = self._path or path
        if kind == "deep colour":
            self._colour = max(self._colour or 0, int(np.asarray(image.convert("RGB")).max()))
            return
        found = Extremes.of(_values(image))
        self._gray = found if self._gray is None else self._gray | found
        self._stated.add(_stated_white(image))

    def scale(self) -> GrayScale | None:
        """Return what `find_scale` does."""
        if self._colour is not None and self._colour < DEEP_LEAST:
            raise VideoError(
                f"{self._path}: colour of 16 bits whose brightest value is {self._colour * 256} to "
                f"{self._colour * 256 + 255} of 65535; it holds fewer bits: convert it to 8 bits per channel"
            )
        if self._gray is None:
            return None
        try:
            # Files that state different things state nothing about the video.
            return choose_scale(self._gray, self._stated.pop() if len(self._stated) == 1 else None)
        except ValueError as error:
            raise VideoError(f"{self._path}: {error}") from None


@contextmanager
def open_still(path: Path) -> Iterator[Image.Image]:
    """Give an image file opened with safe decoders; whatever they raise becomes an `UnreadableStill`."""
    try:
        with Image.open(path, formats=tuple(sorted(set(IMAGE_FORMATS.values())))) as image:
            yield image
    except UnidentifiedImageError as error:
        raise UnreadableStill(path, misnamed(path, "an image that is read") or reason(error)) from error
    except UNREADABLE as error:
        raise UnreadableStill(path, reason(error)) from error


def picture_count(image: Image.Image) -> int:
    """Return how many pictures a file holds that are frames of a video, those included that damage hides.

    The second picture of a JPEG is a preview or a depth map of a camera.
    """
    if image.format == "TIFF":
        return tiff_pages(Path(image.filename)).linked
    return getattr(image, "n_frames", 1) if image.format in ("PNG", "WEBP") else 1


def check_single(path: Path, image: Image.Image) -> None:
    """Raise `VideoError` for a file of several pictures, where one frame is wanted."""
    count = picture_count(image)
    if count > 1:
        raise VideoError(f"{path}: holds {count} pictures where one frame is wanted; name it alone, as its own video")


def picture_header(path: Path, image: Image.Image) -> StillHeader:
    """Return what the current picture of an image says of itself, that was not loaded yet."""
    deep = pixel_kind(image) != "bytes"
    orientation = Orientation.from_exif(_exif(path, image).get(EXIF_ORIENTATION, 1))
    width, height = image.size
    check_size(str(path), height, width)
    stored = _aspect(image)
    # Newer versions of Pillow turn the size of a TIFF file themselves.
    turned = image.format == "TIFF" and image.size != (image.tag_v2.get(TIFF_WIDTH), image.tag_v2.get(TIFF_HEIGHT))
    height, width = (height, width) if turned else orientation.size(height, width)
    aspect = orientation.aspect(stored)
    return StillHeader(height=height, width=width, pixel_aspect=aspect, orientation=orientation, deep=deep)


def _exif(path: Path, image: Image.Image) -> Image.Exif:
    """Return the EXIF data of an image without decoding its pixels, as Pillow does for PNG in search of them."""
    if image.format != "PNG" or "exif" in image.info or _follows_pixels(path):
        return image.getexif()
    return Image.Image.getexif(image)


def _follows_pixels(path: Path) -> bool:
    """Return whether EXIF data may follow the pixels of a PNG file, as a chunk of its own or as text."""
    with open(path, "rb") as file:
        position, pixels = 8, False
        while True:
            file.seek(position)
            head = file.read(8)
            if len(head) < 8 or head[4:] == b"IEND":
                return False
            pixels |= head[4:] == b"IDAT"
            if pixels and head[4:] in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                return True
            position += 12 + int.from_bytes(head[:4], "big")


def decode_picture(path: Path, image: Image.Image, scale: Callable[[], GrayScale | None] | None = None) -> np.ndarray:
    """Return the current picture, upright, uint8 `[H, W, 1]` or `[H, W, 3]`; see `read_still`."""
    check_size(str(path), image.height, image.width)
    kind = pixel_kind(image)
    chosen = None
    if kind != "bytes":
        chosen = _own_scale(path, image, kind) if scale is None else scale()
    # Of TIFF only: Pillow leaves deep gray as it is stored.
    inverted = image.format == "TIFF" and image.tag_v2.get(TIFF_PHOTOMETRIC) == WHITE_IS_ZERO
    image.load()
    # After loading: newer versions of Pillow lay TIFF files upright themselves, and then say so here.
    orientation = Orientation.from_exif(image.getexif().get(EXIF_ORIENTATION, 1))
    if kind == "deep gray":
        pixels = chosen(_values(image))[:, :, None]
        pixels = 255 - pixels if inverted else pixels
    elif image.mode in ("L", "1") and not image.has_transparency_data:
        pixels = np.asarray(image.convert("L"))[:, :, None]
    elif image.has_transparency_data:
        pixels = on_black(np.asarray(image.convert("RGBA")))
    else:
        pixels = np.asarray(image.convert("RGB"))
    return orientation.apply(pixels)


def natural_key(path: Path) -> tuple:
    """Return a sort key that puts frame2.png before frame10.png."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path.name))


def images_in(folder: Path) -> list[Path]:
    """Return the image files directly in `folder`, hidden ones left out, in natural order."""
    files = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return sorted((path for path in files if not path.name.startswith(".")), key=natural_key)


def _own_scale(path: Path, image: Image.Image, kind: PixelKind) -> GrayScale | None:
    survey = DepthSurvey()
    survey.add(path, image, kind)
    return survey.scale()


def _values(image: Image.Image) -> np.ndarray:
    values = np.asarray(image)
    if image.format == "PNG" and image.mode == "I":  # older versions of Pillow widen 16 bits
        return values.astype(np.uint16)
    return values


def _stated_white(image: Image.Image) -> int | None:
    """Return the largest value that an image may hold by its own account, or None where it gives none."""
    if image.format == "PPM" and image.mode != "F":
        return 2**16 - 1  # Pillow scales the largest value of the header to this
    if image.format != "TIFF":
        return None
    bits = _first(image.tag_v2.get(TIFF_BITS))
    if isinstance(bits, int) and bits not in (16, 32, 64):
        return 2**bits - 1
    largest = _first(image.tag_v2.get(TIFF_LARGEST))
    # Other numbers are what happens to be the largest in this file.
    usual = isinstance(largest, int) and largest >= 255 and largest & (largest + 1) == 0
    return largest if usual else None


def _aspect(image: Image.Image) -> Fraction:
    """Width over height of an image's stored pixels, from the densities in its header."""
    info = image.info
    density = info.get("aspect") or info.get("jfif_density") or info.get("dpi") or (1, 1)
    if not isinstance(density, Sequence) or len(density) != 2:
        return Fraction(1)
    across, down = density
    # Rounded: densities per metre are whole numbers, so square pixels may differ in the last.
    try:
        if abs(float(across) - float(down)) <= 0.002 * float(down):
            return Fraction(1)
    except (TypeError, ValueError, ZeroDivisionError):
        return Fraction(1)
    return believable_aspect(float(down), float(across))


def _first(value: object) -> object:
    return value[0] if isinstance(value, tuple) and value else value


def reason(error: Exception) -> str:
    """Return in a line what a decoder says of an error, without the name of the file where it knows none."""
    return getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__
