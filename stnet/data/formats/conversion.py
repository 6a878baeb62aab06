"""One video and its marks on their way into a data set."""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from stnet.data.formats.account import Account
from stnet.data.formats.assigning import Owned, Rules
from stnet.data.formats.classes import Classes
from stnet.data.formats.fitting import Fit, Picture, fit, fit_shares
from stnet.data.formats.marks import Box, FrameMarks, Mark, Size, VideoMarks
from stnet.data.formats.placing import place
from stnet.data.layout import BOX_DECIMALS, VideoRecord, write_frames
from stnet.errors import DataError, VideoError
from stnet.video import VideoFile, VideoInput, VideoSource
from stnet.video.geometry import UPRIGHT, Orientation
from stnet.video.stills import read_still_header


class VideoConversion:
    """One video on its way into the data set; `full_frame` writes whole frames of DICOM files."""

    def __init__(self, video: VideoInput, out: Path, classes: Classes, account: Account, full_frame: bool = False):
        self.video, self.out, self.classes, self.account = video, out, classes, account
        self.full_frame = full_frame
        self.labels = [name.lower() for name in classes.names]
        self._files = {path.name: path for path in video.paths}
        self._instances: dict[int | str, int] = {}
        self._fits: dict[tuple[bool, Size | None, Orientation], Fit] = {}

    def write(self, owned: Owned, rules: Rules, empty_unknown: bool) -> VideoRecord:
        """Write its frames; return its annotations."""
        source = self.video.open(full_frame=self.full_frame)
        self._region = self._scan_region(source)
        names: list[str | None] = []
        written = write_frames(self.out, self.video.name, self._pixels(source, names))
        self._check(source)
        self._check_pace(owned.video, source)
        self._check_sizes(owned, source, names)
        placed = place(owned, self.video.name, names, rules, self.account)
        boxes, labels, instances, annotated = [], [], [], []
        for name, marks in zip(names, placed, strict=True):
            kept, seen = self._marks(marks, source, name)
            boxes.append(np.array([mark.box for mark in kept], dtype=np.float64).reshape(-1, 4))
            labels.append(np.array([self.labels.index(mark.label.lower()) + 1 for mark in kept], dtype=np.int64))
            instances.append(np.array([self._instance(mark) for mark in kept], dtype=np.int64))
            annotated.append(bool(kept) or (seen and not empty_unknown))
        return VideoRecord(
            name=self.video.name,
            height=source.height,
            width=source.width,
            files=written,
            boxes=tuple(boxes),
            labels=tuple(labels),
            instances=tuple(instances),
            annotated=tuple(annotated),
        )

    def _pixels(self, source: VideoSource, names: list[str | None]) -> Iterator[np.ndarray]:
        """Yield the frames to write, gray ones with one channel; their own names go to `names`."""
        for frame in source:
            names.append(frame.name)
            gray = frame.image[..., :1]
            yield frame.image[..., 0] if (gray == frame.image).all() else frame.image

    def _check(self, source: VideoSource) -> None:
        origin = self.video.origin
        for note in source.notes:
            self.account.notes[f"{origin}: {note}"] += 1
        if source.status == "corrupt":
            raise DataError(f"{origin}: damaged inside ({'; '.join(source.problems)}); its frames cannot be counted")
        if source.status != "ok":
            problems = "; ".join(source.problems)
            self.account.notes[f"{origin}: {source.status} ({problems}): what was decoded is kept"] += 1

    def _check_pace(self, marks: VideoMarks | None, source: VideoSource) -> None:
        """Tools that take another frame rate than the video's number its frames by time."""
        if marks is None or marks.pace is None or not isinstance(source, VideoFile):
            return
        frames, seconds = marks.pace
        if abs(frames - seconds * source.fps) > 1.5 + 0.02 * frames:
            raise DataError(
                f"{marks.where}: its marks count {frames / seconds:g} frames per second, the video has "
                f"{float(source.fps):g}; set the frame rate of the annotation tool (frameRate) to the video's"
            )

    def _check_sizes(self, owned: Owned, source: VideoSource, names: list[str | None]) -> None:
        """Require that what is said of the video's size fits the frames, as what is said of theirs does."""
        for stated in owned.stated():
            if stated.size is not None:
                orientation = self._orientation(source, next(iter(names), None))
                fit(stated.size, self._picture(source, orientation), stated.where)

    def _marks(self, frame: FrameMarks | None, source: VideoSource, name: str | None) -> tuple[list[Mark], bool]:
        """Return the marks of a frame as they are written, and whether somebody looked at all of it."""
        if frame is None:
            return [], False
        if frame.unseen:
            if frame.marks:
                self.account.leave_out(frame.unseen, frame)
            return [], False
        marks = [mark for mark in frame.marks if mark.label.strip().lower() not in self.classes.ignored]
        if len(marks) < len(frame.marks):
            self.account.notes["marks of ignored classes are passed over"] += len(frame.marks) - len(marks)
        without_box = [mark for mark in marks if mark.box is None]
        if without_box:
            self.account.notes[
                f"frames with a {without_box[0].shape}, which gives no box of a lesion, count as not annotated"
            ] += 1
            return [], False
        moved = self._fit(frame, source, name)
        kept = [found for mark in marks if (found := self._moved(mark, frame, moved, source)) is not None]
        return kept, bool(kept) or not marks

    def _moved(self, mark: Mark, frame: FrameMarks, moved: Fit, source: VideoSource) -> Mark | None:
        """Return a mark on the written frame, None where it covers nothing of it."""
        box = moved(mark.box)
        x0, y0, x1, y1 = (round(value, BOX_DECIMALS) for value in box)  # less than that is nothing once it is written
        if min(x1, source.width) <= max(x0, 0) or min(y1, source.height) <= max(y0, 0):
            self.account.lose_box("covers nothing of its frame", frame.where)
            return None
        if mark.shape != "box":
            self.account.notes[f"each {mark.shape} became the box around it"] += 1
        label = self.classes.renamed.get(mark.label.strip().lower(), mark.label.strip())
        return Mark(label=label, box=_rounded(box), shape=mark.shape, instance=mark.instance)

    def _fit(self, frame: FrameMarks, source: VideoSource, name: str | None) -> Fit:
        whole = source.full_size[::-1]
        orientation = UPRIGHT if frame.size in (None, whole) else self._orientation(source, name)
        key = frame.relative, frame.size, orientation
        if key not in self._fits:
            picture = self._picture(source, orientation)
            self._fits[key] = fit_shares(picture) if frame.relative else fit(frame.size, picture, frame.where)
        found = self._fits[key]
        if found.note and frame.marks:
            self.account.notes[f"{self.video.name}: {found.note}"] += 1
        return found

    def _picture(self, source: VideoSource, orientation: Orientation) -> Picture:
        size, origin = self._region
        return Picture(
            size=size,
            whole=source.full_size[::-1],
            origin=origin,
            uncut=self.full_frame,
            pixel_aspect=source.pixel_aspect,
            orientation=orientation,
        )

    def _scan_region(self, source: VideoSource) -> tuple[Size, tuple[int, int]]:
        """Return the size and the corner of what frames are cut to, or would be if whole ones were not asked for."""
        if self.full_frame and self.video.dicom:
            with suppress(VideoError):  # the region cannot be trusted
                source = self.video.open()
        return (source.width, source.height), source.origin

    def _orientation(self, source: VideoSource, name: str | None) -> Orientation:
        """How a frame was laid upright: as its own file says, else as its video does."""
        if name not in self._files:
            return source.orientation
        return read_still_header(self._files[name]).orientation

    def _instance(self, mark: Mark) -> int:
        """Return the number of a lesion; marks that no file connects are lesions of their own."""
        key = object() if mark.instance is None else mark.instance
        return self._instances.setdefault(key, len(self._instances))


def _rounded(box: Box) -> Box:
    return tuple(round(value, 6) for value in box)
