"""`dicom/`: lesions for an archive, as a Structured Report and as annotated frames, both of the source's patient."""

import shutil
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from stnet.errors import StnetError, VideoError
from stnet.files import PARTIAL
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.dicom_capture import SecondaryCapture
from stnet.inference.dicom_report import LesionReport, import_highdicom
from stnet.inference.dicom_source import read_reference
from stnet.inference.draw import draw_marks, readable_scale
from stnet.inference.frame_marks import Listed, in_frame, listed, marks_of
from stnet.inference.frame_results import FrameResult
from stnet.inference.sink import RunFacts, Sink, VideoFacts
from stnet.lesions import Lesion
from stnet.video.dicom_header import import_pydicom

REPORT, CAPTURE = "lesions.dcm", "annotated.dcm"


class DicomResults(Sink):
    """Writes both files of each DICOM video into a folder that appears whole; for other videos it says that it cannot.

    Raises:
        ConfigError: highdicom is not installed.
    """

    file_name = "dicom"

    def __init__(self, run: RunFacts) -> None:
        import_highdicom()
        self._run = run
        self._video: VideoFacts | None = None
        self._reference: Any = None
        self._frames: dict[int, Listed] = {}
        self._lesions: Sequence[Lesion] = ()

    def begin(self, video: VideoFacts) -> None:
        """Start a video, so that a file that nothing can refer to is known beforehand."""
        self._frames, self._lesions, self._video = {}, (), None
        if video.dicom is None:
            warnings.warn(f"{video.name} is no DICOM file; no DICOM results are written of it", stacklevel=2)
            return
        self._reference = read_reference(video.dicom, video.name)
        self._video = video
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir()

    def write(self, result: FrameResult) -> None:
        """Note what was found in one frame."""
        if self._video is not None:
            self._frames[result.index] = listed(result, self._run.score_threshold)

    def lesions(self, found: Sequence[Lesion]) -> None:
        """Take in the lesions."""
        self._lesions = found

    def end(self, end: VideoEnd) -> None:
        """Write the folder."""
        if self._video is None:
            return
        video, run = self._video, self._run
        import_pydicom(end.name)  # which keeps it quiet
        with _without_contents(end.name):
            numbers = self._draw(end.name)
            report = LesionReport(self._reference, run.class_names, run.model, video.scale, video.source.full_size)
            report.write(self._partial / REPORT, self._lesions, numbers)
        self._partial.replace(video.folder / self.file_name)
        self._video = self._reference = None

    def abandon(self, error: BaseException) -> None:
        """Leave what there is of the folder."""
        self._video = self._reference = None

    def _draw(self, name: str) -> dict[int, int]:
        """Write the annotated frames; return the numbers of frames in the file by their index in the video."""
        source, run = self._video.source, self._run
        scale = readable_scale(source.height, source.width)
        numbers = {}
        with closing(SecondaryCapture(self._reference, self._partial)) as capture, closing(iter(source)) as frames:
            for frame in frames:
                found = self._frames.get(frame.index)
                if found is None:  # a frame that a live run dropped
                    continue
                numbers[frame.index] = frame.stored + 1
                marks = marks_of(found, in_frame(self._lesions, frame.index), run.score_threshold)
                image = draw_marks(frame.image, marks, run.class_names, scale)
                capture.add(image, found.time, numbers[frame.index])
            if len(numbers) != len(self._frames):
                missing = len(self._frames) - len(numbers)
                raise VideoError(f"{name}: {missing} of its frames could not be read again to draw them")
            capture.write(self._partial / CAPTURE)
        return numbers

    @property
    def _partial(self) -> Path:
        return self._video.folder / f"{self.file_name}{PARTIAL}"


@contextmanager
def _without_contents(name: str) -> Iterator[None]:
    """Replace what a library says of a data set, which may quote it, by a message without a word of the file."""
    try:
        yield
    except (OSError, StnetError):
        raise
    except Exception as error:  # whatever a patient's data that break the standard bring about
        raise VideoError(f"{name}: its DICOM results cannot be written ({type(error).__name__})") from None
