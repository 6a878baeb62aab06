"""`detections.csv`: a table of what reaches the score threshold."""

import csv
import io
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import itemgetter
from typing import Any

from stnet.console import printable
from stnet.files import GrowingFile
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.frame_results import FrameResult, class_name
from stnet.inference.sink import RunFacts, Sink, VideoFacts
from stnet.lesions import Lesion
from stnet.lesions.owners import owner_column, owners_of
from stnet.lesions.result_rows import size_cells
from stnet.lesions.sizes import sizes_of
from stnet.video.scale import PixelScale

COLUMNS = ("frame", "time", "x0", "y0", "x1", "y1", "score", "class", "lesion", "width_mm", "depth_mm", "top_mm")
BOX, LESION = slice(2, 6), COLUMNS.index("lesion")


class CsvResults(Sink):
    """Writes `detections.csv`: one row for each detection of at least the score threshold, as it is drawn.

    Sizes are in millimetres, empty where no scale is known. The lesion is empty where a detection belongs to none; as
    lesions are known only at the end, that column is filled in then.
    """

    file_name = "detections.csv"

    def __init__(self, run: RunFacts) -> None:
        self._run = run
        self._file: GrowingFile | None = None
        self._table: Any = None
        self._scale: PixelScale | None = None
        self._listed: list[int] = []  # where the detections written stand in their frames' lists
        self._lesions: Sequence[Lesion] = ()

    def begin(self, video: VideoFacts) -> None:
        """Start the table of a video."""
        self._scale, self._listed, self._lesions = video.scale, [], ()
        self._file = GrowingFile(video.folder / self.file_name, newline="")
        self._table = csv.writer(self._file, lineterminator="\n")
        self._table.writerow(COLUMNS)

    def write(self, result: FrameResult) -> None:
        """Append the detections of one frame."""
        seen = result.visible
        self._listed += result.visible_rows[seen.scores >= self._run.score_threshold].tolist()
        found = seen.above(self._run.score_threshold)
        sizes = sizes_of(found.boxes.tolist(), self._scale)
        for box, score, label, size in zip(found.boxes, found.scores, found.labels, sizes, strict=True):
            corners = [f"{float(x):.2f}" for x in box]
            name = printable(class_name(self._run.class_names, int(label)))
            self._table.writerow(
                [result.index, f"{result.time:.6f}", *corners, f"{float(score):.6f}", name, "", *size_cells(size)]
            )

    def lesions(self, found: Sequence[Lesion]) -> None:
        """Take in the lesions."""
        self._lesions = found

    def end(self, end: VideoEnd) -> None:
        """Complete the table."""
        self._file.close(self._owned)
        self._file = None

    def abandon(self, error: BaseException) -> None:
        """Leave the partial file."""
        file, self._file = self._file, None
        if file is not None:
            file.abandon()

    def _owned(self, lines: Iterable[str]) -> Iterator[str]:
        """Fill in the lesions."""
        rows, owners, listed = csv.reader(lines), owners_of(self._lesions), iter(self._listed)
        yield _line(next(rows))
        for frame, group in groupby(rows, key=itemgetter(0)):
            cells = list(group)
            places = [next(listed) for _ in cells]
            column = owner_column(places, [row[BOX] for row in cells], owners.get(int(frame), {}))
            for row, lesion in zip(cells, column, strict=True):
                row[LESION] = "" if lesion is None else str(lesion)
                yield _line(row)


def _line(cells: Sequence[str]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerow(cells)
    return text.getvalue()
