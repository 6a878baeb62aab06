"""DICOM files as videos: ultrasound loops and stills, decoded by pydicom (extra `dicom`) one frame at a time.

A file is known by a label that it did not choose, such as `dicom-1`: neither its path, nor its identifiers, nor any
text in it appears in a name, a message or an output. Text that is burned into the pixels is not removed; frames are cut
to the scan regions of the header and black outside of them, which leaves most of it out. Where the header's regions
cannot be right, whole frames have to be asked for.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import numpy as np

from stnet.errors import VideoError
from stnet.video.dicom_frames import FrameMap, check_stated_size
from stnet.video.dicom_header import MAX_FRAMES, hiding_contents, import_pydicom, is_dicom, read_header
from stnet.video.dicom_pixels import FrameDecoder
from stnet.video.dicom_regions import ScanArea
from stnet.video.geometry import SQUARE
from stnet.video.source import DEFAULT_FPS, VideoFrame, VideoSource

__all__ = ["DicomFile", "is_dicom"]

MAX_FAILURES = 1000
"""Frames that may fail to decode before the rest of a file is given up."""

BURNED_IN = "text burned into its frames shows in annotated videos and reports"


class DicomFile(VideoSource):
    """One DICOM file. Raises `VideoError` when it cannot be used.

    Args:
        path: the file.
        name: what outputs and messages call it.
        fps: frame rate where the header states none.
        full_frame: deliver whole frames, not only their scan region.
    """

    def __init__(self, path: Path, name: str, fps: Fraction = DEFAULT_FPS, full_frame: bool = False) -> None:
        super().__init__()
        self.name, self._path = name, path
        self._header = header = read_header(path, name)
        with hiding_contents(name, "its frames cannot be found; the file is damaged"):
            self._decoder = FrameDecoder(header, name)
            self._map = FrameMap(path, header)
        if not self._map.frames:
            raise VideoError(f"{name}: holds no complete frame; the file is cut or damaged")
        self.fps = header.fps or fps
        self.declared_frames = len(self._map.frames)
        self.pixel_aspect = header.pixel_aspect
        self.full_height, self.full_width = header.height, header.width
        self._area = ScanArea() if full_frame else header.area
        if self._area.refusal is not None:
            raise VideoError(f"{name}: {self._area.refusal}; ask for whole frames (--full-frame) if all may be seen")
        left, top, right, bottom = self._area.box or (0, 0, header.width, header.height)
        self.origin, self.width, self.height = (left, top), right - left, bottom - top
        self.notes = tuple(self._remarks(full_frame))

    def _remarks(self, full_frame: bool) -> Iterator[str]:
        """What a user should know before the frames are read."""
        if full_frame:
            yield f"whole frames are used; {BURNED_IN}"
        elif self._area.box is None:
            yield f"{self._area.notes[0]}, so the whole frame is used; {BURNED_IN}"
        else:
            yield from self._area.notes
        if self.pixel_aspect != SQUARE:
            yield f"its pixels are not square: {float(self.pixel_aspect):.3g} times as wide as high"
        if self._decoder.needs_survey:
            remark = self._decoder.survey(self._read(pieces) for pieces in self._map.frames)
            if remark is not None:
                yield remark

    def __iter__(self) -> Iterator[VideoFrame]:
        delivered, failed = 0, 0
        import_pydicom(self.name)
        for position, pieces in enumerate(self._map.frames):
            image = self._decode(pieces)
            if image is None:
                failed += 1
                if failed >= MAX_FAILURES:
                    break
                continue
            image = self._area.cut(image)
            yield VideoFrame(index=delivered, time=self._time(position), image=image, origin=self.origin)
            delivered += 1
        if not delivered:
            raise VideoError(f"{self.name}: none of its {failed} frames can be decoded; the file is damaged")
        self._judge(delivered, failed)

    def _decode(self, pieces: list[tuple[int, int]]) -> np.ndarray | None:
        """The whole frame made of these bytes, or None where they are damaged."""
        try:
            with hiding_contents(self.name, "a frame cannot be decoded"):
                data = self._read(pieces)
                check_stated_size(data, self.name)
                return self._decoder(data)
        except VideoError:
            return None

    def _read(self, pieces: list[tuple[int, int]]) -> bytes:
        parts = []
        with open(self._path, "rb") as file:
            for start, length in pieces:
                file.seek(start)
                parts.append(file.read(length))
        return b"".join(parts)

    def _time(self, position: int) -> float:
        times = self._header.times
        if position < len(times):
            return times[position]
        if times:
            return times[-1] + float((position - len(times) + 1) / self.fps)
        return float(position / self.fps)

    def _judge(self, delivered: int, failed: int) -> None:
        found, stated = len(self._map.frames), self._header.frames
        problems = []
        if self._map.cut:
            problems.append(f"only its first {MAX_FRAMES} frames are read")
        elif found < stated:
            problems.append(f"{found} of {stated} declared frames are in the file")
        short = bool(problems)
        if found > stated:
            problems.append(f"holds {found} frames, {stated} are declared")
        elif not short and not self._map.complete:
            problems.append("its pixel data ends without a mark")
        if failed:
            problems.append(f"{failed} frames cannot be decoded")
        self._conclude("truncated" if short else "corrupt" if problems else "ok", problems)
