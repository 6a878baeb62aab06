"""Frame folders, lists of image files and single images as video sources."""

import re
from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from stnet.errors import VideoError
from stnet.video.source import DEFAULT_FPS, Scan, VideoFrame, VideoSource, check_size

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

# What Pillow raises for files that are missing, not images, cut or malicious.
_UNREADABLE = (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError)


def natural_key(path: Path) -> tuple:
    """Sort key that puts frame2.png before frame10.png."""
    return tuple((0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path.name))


def images_in(folder: Path) -> list[Path]:
    """Image files directly in `folder`, hidden ones left out, in natural order."""
    files = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())
    return sorted((path for path in files if not path.name.startswith(".")), key=natural_key)


class ImageSequence(VideoSource):
    """Image files as the frames of one video, in the order given.

    Images of different sizes are refused; an image that cannot be read is skipped and reported.
    """

    def __init__(self, paths: Sequence[Path], name: str, fps: Fraction = DEFAULT_FPS) -> None:
        super().__init__()
        self.paths, self.name, self.fps = tuple(paths), name, fps
        self._bad: dict[Path, str] = {}
        self.height, self.width = self._check_sizes()
        self.declared_frames = len(self.paths) - len(self._bad)

    def __iter__(self) -> Iterator[VideoFrame]:
        index = 0
        for position, path in enumerate(self.paths):
            image = self._read(path)
            if image is None:
                continue
            yield VideoFrame(index=index, time=float(position / self.fps), image=image, name=path.name)
            index += 1
        self._judge()

    def scan(self, keep: Collection[int] = ()) -> Scan:
        """Count the images; only those in `keep` are decoded."""
        kept, index = {}, 0
        for position, path in enumerate(self.paths):
            if path in self._bad:
                continue
            if index in keep:
                image = self._read(path)
                if image is None:
                    continue
                time = float(position / self.fps)
                kept[index] = VideoFrame(index=index, time=time, image=image, name=path.name)
            index += 1
        self._judge()
        return Scan(length=index, frames=kept)

    def _check_sizes(self) -> tuple[int, int]:
        """The common (height, width), from the headers alone."""
        first: tuple[Path, tuple[int, int]] | None = None
        for path in self.paths:
            size = self._header(path)
            if size is None:
                continue
            first = first or (path, size)
            if size != first[1]:
                raise VideoError(
                    f"{path}: is {size[1]} x {size[0]} pixels, {first[0].name} "
                    f"{first[1][1]} x {first[1][0]}; "
                    "frames of one video must be of one size: pass images that are no video one at a time"
                )
        if first is None:
            reasons = "; ".join(f"{path}: {reason}" for path, reason in list(self._bad.items())[:3])
            raise VideoError(f"{self.name}: none of its {len(self.paths)} images can be read ({reasons})")
        return first[1]

    def _header(self, path: Path) -> tuple[int, int] | None:
        try:
            with _open(path) as image:
                width, height = image.size
                orientation = image.getexif().get(0x0112, 1)
        except _UNREADABLE as error:
            self._bad[path] = _reason(error)
            return None
        check_size(str(path), height, width)
        return (width, height) if orientation >= 5 else (height, width)

    def _read(self, path: Path) -> np.ndarray | None:
        if path in self._bad:
            return None
        try:
            with _open(path) as image:
                check_size(str(path), image.height, image.width)
                pixels = _to_rgb(ImageOps.exif_transpose(image))
        except _UNREADABLE as error:
            self._bad[path] = _reason(error)
            return None
        if pixels.shape[:2] != (self.height, self.width):
            self._bad[path] = "changed its size while being read"
            return None
        return pixels

    def _judge(self) -> None:
        problems = [f"{path.name} cannot be read ({reason})" for path, reason in self._bad.items()]
        self._conclude("corrupt" if problems else "ok", problems)


def _open(path: Path) -> Image.Image:
    return Image.open(path, formats=tuple(sorted(set(IMAGE_FORMATS.values()))))


def _to_rgb(image: Image.Image) -> np.ndarray:
    """uint8 RGB `[H, W, 3]`; 16-bit gray keeps its upper eight bits."""
    if image.mode.startswith("I;16") or image.mode == "I":
        gray = (np.clip(np.asarray(image, dtype=np.int64), 0, 65535) >> 8).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    return np.asarray(image.convert("RGB"))


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error).split("\n")[0] or type(error).__name__
