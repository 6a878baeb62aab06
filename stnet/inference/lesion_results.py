"""`lesions.csv`: one row for each lesion of a video."""

import csv
from collections.abc import Sequence

from stnet.files import GrowingFile
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.frame_results import FrameResult
from stnet.inference.sink import RunFacts, Sink, VideoFacts
from stnet.lesions import Lesion
from stnet.lesions.result_rows import COLUMNS, lesion_row


class LesionTable(Sink):
    """Writes `lesions.csv`: the lesions in the order they appear, each with its class, frames, best frame and size."""

    file_name = "lesions.csv"

    def __init__(self, run: RunFacts) -> None:
        self._run = run
        self._video: VideoFacts | None = None
        self._file: GrowingFile | None = None

    def begin(self, video: VideoFacts) -> None:
        """Start the table of a video."""
        self._video = video
        self._file = GrowingFile(video.folder / self.file_name, newline="")
        csv.writer(self._file, lineterminator="\n").writerow(COLUMNS)

    def write(self, result: FrameResult) -> None:
        """Do nothing: lesions are known at the end."""

    def lesions(self, found: Sequence[Lesion]) -> None:
        """Write the rows."""
        rows = csv.writer(self._file, lineterminator="\n")
        rows.writerows(lesion_row(lesion, self._run.class_names, self._video.scale) for lesion in found)

    def end(self, end: VideoEnd) -> None:
        """Complete the table."""
        self._file.close()
        self._file = None

    def abandon(self, error: BaseException) -> None:
        """Leave the partial file."""
        file, self._file = self._file, None
        if file is not None:
            file.abandon()
