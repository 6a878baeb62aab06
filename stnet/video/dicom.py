"""DICOM files as videos: ultrasound loops, stills and films, read by pydicom (extra `dicom`) one frame at a time.

A file is known by a label that it did not choose, such as `dicom-1`: neither its path, nor its identifiers, nor any
text in it appears in a name, a message or an output. Text that is burned into the pixels is not removed; frames are cut
to the scan regions of the header and black outside of them, which leaves most of it out. Where the header's regions
cannot be right, whole frames have to be asked for.
"""

from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

from stnet.choices import DEFAULT_FPS
from stnet.errors import VideoError
from stnet.video.dicom_coded import CodedFrames
from stnet.video.dicom_film import FILM_SYNTAXES, FilmFrames
from stnet.video.dicom_header import import_pydicom, is_dicom, read_header
from stnet.video.dicom_regions import ScanArea
from stnet.video.geometry import aspect_notes
from stnet.video.source import VideoFrame, VideoSource

__all__ = ["DicomFile", "is_dicom"]

BURNED_IN = "text burned into its frames shows in annotated videos and reports"


class DicomFile(VideoSource):
    """One DICOM file.

    Args:
        path: the file.
        name: what outputs and messages call it.
        fps: frame rate where the header states none.
        full_frame: deliver whole frames, not only their scan region.

    Raises:
        VideoError: it cannot be used.
    """

    def __init__(self, path: Path, name: str, fps: Fraction = DEFAULT_FPS, full_frame: bool = False) -> None:
        super().__init__()
        self.name, self._path = name, path
        self._header = header = read_header(path, name)
        film = str(header.syntax) in FILM_SYNTAXES
        self._frames = FilmFrames(path, header, name) if film else CodedFrames(path, header, name)
        self.fps = header.fps or fps
        self.declared_frames = len(self._frames)
        self.pixel_aspect = header.pixel_aspect or self._frames.pixel_aspect
        self.scale = header.scale
        self.full_height, self.full_width = header.height, header.width
        self._area = ScanArea() if full_frame else header.area
        if self._area.refusal is not None:
            raise VideoError(f"{name}: {self._area.refusal}; ask for whole frames (--full-frame) if all may be seen")
        left, top, right, bottom = self._area.box or (0, 0, header.width, header.height)
        self.origin, self.width, self.height = (left, top), right - left, bottom - top
        self.notes = tuple(self._remarks(full_frame))

    def _remarks(self, full_frame: bool) -> Iterator[str]:
        """Yield what a user should know before the frames are read."""
        if full_frame:
            yield f"whole frames are used; {BURNED_IN}"
        elif self._area.box is None:
            yield f"{self._area.notes[0]}, so the whole frame is used; {BURNED_IN}"
        else:
            yield from self._area.notes
        yield from aspect_notes(self.pixel_aspect)
        yield from self._header.notes
        if self._header.timing_note is not None and self.declared_frames > 1:
            yield f"{self._header.timing_note}: {float(self.fps):g} frames per second are assumed"
        if self._header.volume:
            yield "its frames are the slices of a volume, in the order stored, not a video"
        yield from self._frames.remarks()

    def __iter__(self) -> Iterator[VideoFrame]:
        delivered, failed = 0, 0
        import_pydicom(self.name)
        for position, frame in enumerate(self._frames):
            if frame is None:
                failed += 1
                continue
            image = self._area.cut(frame)
            time = self._time(position)
            yield VideoFrame(index=delivered, time=time, image=image, origin=self.origin, stored=position)
            delivered += 1
        if not delivered:
            raise VideoError(f"{self.name}: none of its {failed} frames can be decoded; the file is damaged")
        short, problems = self._frames.verdict(delivered)
        self._conclude("truncated" if short else "corrupt" if problems else "ok", problems)

    def _time(self, position: int) -> float:
        times = self._header.times
        if position < len(times):
            return times[position]
        if times:
            return times[-1] + float((position - len(times) + 1) / self.fps)
        return float(position / self.fps)
