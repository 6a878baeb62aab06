"""Frame folders and lists of image files as video sources."""

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np

from stnet.choices import DEFAULT_FPS
from stnet.errors import VideoError
from stnet.video.geometry import aspect_notes
from stnet.video.source import Scan, VideoFrame, VideoSource
from stnet.video.stills import (
    DepthSurvey,
    StillHeader,
    UnreadableStill,
    check_single,
    open_still,
    picture_header,
    pixel_kind,
    read_still,
)


class ImageSequence(VideoSource):
    """Image files as the frames of one video, in the order given.

    Images of different sizes are refused; an image that cannot be read is skipped and reported.
    """

    def __init__(self, paths: Sequence[Path], name: str, fps: Fraction = DEFAULT_FPS) -> None:
        super().__init__()
        self.paths, self.name, self.fps = tuple(paths), name, fps
        self._bad: dict[Path, str] = {}
        survey = DepthSurvey()
        header = self._common_header(survey)
        self._scale = survey.scale()
        self.height, self.width, self.pixel_aspect = header.height, header.width, header.pixel_aspect
        self.declared_frames = len(self.paths) - len(self._bad)
        depth_notes = (self._scale.note,) if self._scale is not None and self._scale.note else ()
        self.notes = depth_notes + aspect_notes(self.pixel_aspect) + self._doubles()

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

    def _doubles(self) -> tuple[str, ...]:
        """Return a note where two files have one name but for its ending: rarely two frames."""
        stems = Counter((path.parent, path.stem) for path in self.paths)
        double = next((stem for (_, stem), count in stems.items() if count > 1), None)
        number = sum(count - 1 for count in stems.values())
        return () if double is None else (f"{number} of its images are named as others but for the ending ({double})",)

    def _common_header(self, survey: DepthSurvey) -> StillHeader:
        """Return what the headers of all images have in common; only deep pixels are decoded, for `survey`."""
        first: tuple[Path, StillHeader] | None = None
        for path in self.paths:
            header = self._header(path, survey)
            if header is None:
                continue
            first = first or (path, header)
            size, expected = (header.width, header.height), (first[1].width, first[1].height)
            if size != expected:
                raise VideoError(
                    f"{path}: is {size[0]} x {size[1]} pixels, {first[0].name} {expected[0]} x {expected[1]}; "
                    "frames of one video must be of one size; --stills reads images that are no video, each for itself"
                )
        if first is None:
            reasons = "; ".join(f"{path}: {reason}" for path, reason in list(self._bad.items())[:3])
            raise VideoError(f"{self.name}: none of its {len(self.paths)} images can be read ({reasons})")
        return first[1]

    def _header(self, path: Path, survey: DepthSurvey) -> StillHeader | None:
        try:
            with open_still(path) as image:
                kind = pixel_kind(image)
                check_single(path, image)
                header = picture_header(path, image)
                survey.add(path, image, kind)
        except UnreadableStill as error:
            self._bad[path] = error.reason
            return None
        return header

    def _read(self, path: Path) -> np.ndarray | None:
        if path in self._bad:
            return None
        try:
            pixels = read_still(path, lambda: self._scale)
        except UnreadableStill as error:
            self._bad[path] = error.reason
            return None
        if pixels.shape[:2] != (self.height, self.width):
            self._bad[path] = "changed its size while being read"
            return None
        return np.repeat(pixels, 3, axis=2) if pixels.shape[2] == 1 else pixels

    def _judge(self) -> None:
        problems = [f"{path.name} cannot be read ({reason})" for path, reason in self._bad.items()]
        self._conclude("corrupt" if problems else "ok", problems)
