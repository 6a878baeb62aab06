"""Lesions for annotation tools: a folder for each format, as `stnet.data.convert` reads it back."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from stnet.data.formats.writing import EXPORTS
from stnet.files import PARTIAL
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.frame_results import FrameResult
from stnet.inference.sink import RunFacts, Sink, VideoFacts
from stnet.lesions import Lesion
from stnet.lesions.result_rows import annotations


class AnnotationFiles(Sink):
    """Writes the tracks of the lesions in the format of an annotation tool, into a folder that appears whole.

    Attributes:
        format_name: of `stnet.data.formats.writing.EXPORTS`.
    """

    format_name: ClassVar[str]

    def __init__(self, run: RunFacts) -> None:
        self._run = run
        self._video: VideoFacts | None = None
        self._lesions: Sequence[Lesion] = ()
        self._frames = 0

    def begin(self, video: VideoFacts) -> None:
        """Start a video."""
        self._video, self._lesions, self._frames = video, (), 0
        shutil.rmtree(self._partial, ignore_errors=True)

    def write(self, result: FrameResult) -> None:
        """Count the frames."""
        self._frames = result.index + 1

    def lesions(self, found: Sequence[Lesion]) -> None:
        """Take in the lesions."""
        self._lesions = found

    def end(self, end: VideoEnd) -> None:
        """Write the folder."""
        video = self._video
        boxes = annotations(self._lesions, self._run.class_names, video.name, video.source, video.origin, self._frames)
        for name, text in EXPORTS[self.format_name](boxes).items():
            path = self._partial / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
        self._partial.replace(video.folder / self.file_name)
        self._video = None

    def abandon(self, error: BaseException) -> None:
        """Leave what there is of the folder."""
        self._video = None

    @property
    def _partial(self) -> Path:
        return self._video.folder / f"{self.file_name}{PARTIAL}"


class CocoFiles(AnnotationFiles):
    """Writes COCO-VID."""

    format_name, file_name = "coco-vid", "export-coco-vid"


class CvatFiles(AnnotationFiles):
    """Writes CVAT for video, XML."""

    format_name, file_name = "cvat", "export-cvat"


class LabelStudioFiles(AnnotationFiles):
    """Writes Label Studio, video JSON."""

    format_name, file_name = "label-studio", "export-label-studio"


class YoloFiles(AnnotationFiles):
    """Writes YOLO, a text file per frame."""

    format_name, file_name = "yolo", "export-yolo"
