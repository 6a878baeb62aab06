"""`detections.csv`: a table of what reaches the score threshold."""

import csv
from typing import Any

from stnet.console import printable
from stnet.files import GrowingFile
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.frame_results import FrameResult, class_name
from stnet.inference.sink import RunFacts, Sink, VideoFacts
from stnet.lesions.result_rows import size_cells
from stnet.lesions.sizes import sizes_of
from stnet.video.scale import PixelScale

COLUMNS = ("frame", "time", "x0", "y0", "x1", "y1", "score", "class", "width_mm", "depth_mm", "top_mm")


class CsvResults(Sink):
    """Writes `detections.csv`: one row for each detection of at least the score threshold, as it is drawn.

    Sizes are in millimetres, empty where no scale is known.
    """

    file_name = "detections.csv"

    def __init__(self, run: RunFacts) -> None:
        self._run = run
        self._file: GrowingFile | None = None
        self._rows: Any = None
        self._scale: PixelScale | None = None

    def begin(self, video: VideoFacts) -> None:
        """Start the table of a video."""
        self._scale = video.scale
        self._file = GrowingFile(video.folder / self.file_name, newline="")
        self._rows = csv.writer(self._file, lineterminator="\n")
        self._rows.writerow(COLUMNS)

    def write(self, result: FrameResult) -> None:
        """Append the detections of one frame."""
        found = result.visible.above(self._run.score_threshold)
        sizes = sizes_of(found.boxes.tolist(), self._scale)
        for box, score, label, size in zip(found.boxes, found.scores, found.labels, sizes, strict=True):
            corners = [f"{float(x):.2f}" for x in box]
            name = printable(class_name(self._run.class_names, int(label)))
            self._rows.writerow(
                [result.index, f"{result.time:.6f}", *corners, f"{float(score):.6f}", name, *size_cells(size)]
            )

    def end(self, end: VideoEnd) -> None:
        """Complete the table."""
        self._file.close()
        self._file = None

    def abandon(self, error: BaseException) -> None:
        """Leave the partial file."""
        file, self._file = self._file, None
        if file is not None:
            file.abandon()
