"""Image files of several pictures (TIFF pages, animated PNG and WebP) as video sources."""

import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np
from PIL import Image

from stnet.choices import DEFAULT_FPS
from stnet.errors import VideoError
from stnet.video.geometry import aspect_notes
from stnet.video.rates import frame_rate
from stnet.video.source import VideoFrame, VideoSource
from stnet.video.stills import (
    UNREADABLE,
    DepthSurvey,
    StillHeader,
    UnreadableStill,
    decode_picture,
    open_still,
    picture_count,
    picture_header,
    pixel_kind,
    reason,
)
from stnet.video.tiff_pages import tiff_pages

TIFF_KIND, TIFF_DESCRIPTION = 254, 270
SECONDS = {"s": 1.0, "sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0, "ms": 1e-3, "msec": 1e-3}
"""Units of time in what programs write about stacks."""

MOST_TOLD = 5
"""Damaged pictures that are told by their numbers."""

NOT_A_FRAME = 0b101
"""Bits of a TIFF page's kind: a smaller copy of another page, or a mask of it."""


def is_stack(path: Path) -> bool:
    """Return whether an image file holds several pictures; False where it cannot be read."""
    try:
        with open_still(path) as image:
            return picture_count(image) > 1
    except UnreadableStill:
        return False


class ImageStack(VideoSource):
    """The pictures of one image file as the frames of a video.

    Previews in the file (reduced TIFF pages, the default image of an animated PNG) are left out. Pictures of
    different sizes are refused.

    Args:
        path: the file.
        name: what outputs and messages call it.
        fps: frame rate where the file states none.
    """

    def __init__(self, path: Path, name: str, fps: Fraction = DEFAULT_FPS) -> None:
        super().__init__()
        self.name, self._path = name, path
        survey, header, self._stated, seconds, rate = DepthSurvey(), None, 0, 0.0, None
        with open_still(path) as image:
            self._check_complete(image)
            self._check_channels(image)
            for error in _frames(image):
                self._stated += 1
                if error is not None:
                    continue
                try:
                    kind = pixel_kind(image)
                    found = picture_header(path, image)
                    survey.add(path, image, kind)
                except UNREADABLE:
                    continue
                header = header or found
                self._check_same(found, header)
                seconds += _duration(image)
                rate = rate or _described_rate(image)
        if header is None:
            raise VideoError(f"{path}: none of its pictures can be read; restore the file")
        self._scale = survey.scale()
        self.height, self.width, self.pixel_aspect = header.height, header.width, header.pixel_aspect
        self.declared_frames = self._stated
        self._timed = seconds > 0
        self.fps = rate or (frame_rate(self._stated / seconds) if self._timed else None) or fps
        depth_notes = (self._scale.note,) if self._scale is not None and self._scale.note else ()
        self.notes = depth_notes + aspect_notes(self.pixel_aspect)

    def __iter__(self) -> Iterator[VideoFrame]:
        index, clock, damaged = 0, 0.0, {}  # what is wrong with pictures, by their numbers
        with open_still(self._path) as image:
            alone = image.format == "TIFF"  # pictures of other files build on those before them
            for number, error in enumerate(_frames(image)):
                time = clock if self._timed else float(number / self.fps)
                if damaged and not alone:
                    error = damaged[min(damaged)]
                if error is None:
                    try:
                        pixels = decode_picture(self._path, image, lambda: self._scale)
                        clock += _duration(image)
                    except UNREADABLE as caught:
                        error = caught
                if error is not None:
                    damaged[number] = error
                    continue
                pixels = np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels
                yield VideoFrame(index=index, time=time, image=pixels)
                index += 1
        if not index:
            raise VideoError(f"{self._path}: none of its pictures can be decoded; restore the file")
        self._judge(index, damaged)

    def _judge(self, delivered: int, damaged: dict[int, Exception]) -> None:
        """Tell which pictures are missing: all behind a place where the file breaks off, or some before its end."""
        if not damaged:
            return self._conclude("ok", [])
        first, more = min(damaged), ", ..." if len(damaged) > MOST_TOLD else ""
        cut = first == delivered
        told = ", ".join(str(number + 1) for number in list(damaged)[:MOST_TOLD])
        which = f"from picture {first + 1} on" if cut else f"picture {told}{more}"
        whole = delivered + len(damaged)
        problem = f"{delivered} of its {whole} pictures can be read; missing {which} ({reason(damaged[first])})"
        return self._conclude("truncated" if cut else "corrupt", [problem])

    def _check_complete(self, image: Image.Image) -> None:
        """ImageJ writes stacks of more than 4 GB as one page with all pictures behind it."""
        described = re.search(r"^images=(\d{1,9})\s*$", _description(image), re.MULTILINE)
        if described is None:
            return
        pages = tiff_pages(self._path)
        if pages.found == pages.linked and int(described[1]) > pages.linked:
            raise VideoError(
                f"{self._path}: {pages.linked} of the {described[1]} pictures that ImageJ put into it can be "
                "read; save it as an image sequence"
            )

    def _check_channels(self, image: Image.Image) -> None:
        """ImageJ and OME write the channels of a frame as pages of their own."""
        stated = re.search(r"^channels=(\d{1,9})\s*$", _description(image), re.MULTILINE)
        stated = stated or re.search(r"\bSizeC=\"(\d{1,9})\"", _ome(image))
        if stated and int(stated[1]) > len(image.getbands()):
            raise VideoError(
                f"{self._path}: its pages are {stated[1]} channels of each frame, not frames one after another; save "
                "the channel meant, or all of them as RGB"
            )

    def _check_same(self, found: StillHeader, first: StillHeader) -> None:
        if (found.height, found.width) != (first.height, first.width):
            raise VideoError(
                f"{self._path}: holds pictures of {first.width} x {first.height} and of {found.width} x {found.height} "
                "pixels, so it is no video; save those meant as files of their own"
            )


def _frames(image: Image.Image) -> Iterator[Exception | None]:
    """Put an open file to each of its pictures that is a frame, in order; give what is wrong where that fails."""
    pages = tiff_pages(Path(image.filename)) if image.format == "TIFF" else None
    for position in range(picture_count(image) if pages is None else pages.linked):
        try:
            if pages is not None and position >= pages.found:
                raise EOFError("the file breaks off there")
            image.seek(position)
            if pages is not None:  # else a page that gives no pixels would show those of the one before
                image.im = None
            if image.format == "WEBP":  # tells how long a picture is shown only when it is loaded
                image.load()
            preview = _is_preview(image, position)
        except UNREADABLE as error:
            yield error
            continue
        if not preview:
            yield None


def _is_preview(image: Image.Image, position: int) -> bool:
    if image.format == "PNG":
        return position == 0 and bool(getattr(image, "default_image", False))
    kind = image.tag_v2.get(TIFF_KIND, 0) if image.format == "TIFF" else 0
    return isinstance(kind, int) and bool(kind & NOT_A_FRAME)


def _duration(image: Image.Image) -> float:
    """Seconds for which the current picture is shown; 0 where the file does not say."""
    duration = image.info.get("duration", 0)
    return max(0.0, float(duration) / 1000) if isinstance(duration, int | float | Fraction) else 0.0


def _page_text(image: Image.Image) -> str:
    text = image.tag_v2.get(TIFF_DESCRIPTION, "") if image.format == "TIFF" else ""
    return text if isinstance(text, str) else ""


def _description(image: Image.Image) -> str:
    """Return what ImageJ writes about a stack, line by line; empty where another program wrote it."""
    text = _page_text(image)
    return text if text.startswith("ImageJ=") else ""


def _ome(image: Image.Image) -> str:
    """Return what OME's XML says of the pixels of the first image; empty where the file holds none."""
    found = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", _page_text(image)[:100_000])
    return found[0] if found else ""


def _described_rate(image: Image.Image) -> Fraction | None:
    """Return the frame rate that ImageJ or OME write into their stacks: of the recording, else of the display."""
    text, pixels = _description(image), _ome(image)
    interval = re.search(r"^finterval=([0-9.eE+-]{1,20})\s*$", text, re.MULTILINE)
    unit = re.search(r"^tunit=(.*)$", text, re.MULTILINE)
    if interval is None:
        interval = re.search(r"\bTimeIncrement=\"([0-9.eE+-]{1,20})\"", pixels)
        unit = re.search(r"\bTimeIncrementUnit=\"(.*?)\"", pixels)
    shown = re.search(r"^fps=([0-9.]{1,20})\s*$", text, re.MULTILINE)
    seconds = SECONDS.get(unit[1].strip().lower() if unit else "s")
    try:
        if interval and seconds and float(interval[1]) > 0:
            return frame_rate(1 / (seconds * float(interval[1])))
        return frame_rate(float(shown[1])) if shown else None
    except (ValueError, OverflowError):
        return None
