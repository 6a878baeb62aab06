"""The end of a run: a table of videos on standard output and in `summary.csv`, and where the time went."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from stnet import files
from stnet.console import Reporter, printable
from stnet.execution.timing import STAGES
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.watching import DROPPED

WRITTEN = ("ok", "truncated", "corrupt", DROPPED)
"""Status of videos that gave results; of truncated and corrupt ones what could be read."""

SUMMARY_NAME = "summary.csv"
COLUMNS = (
    *("video", "status", "frames", "detections", "frames_with_detections"),
    *("lesions", "class", "score", "problems"),
)


@dataclass(frozen=True, kw_only=True)
class VideoSummary:
    """One row of the final table.

    Attributes:
        name: of the video.
        status: how it was read, or why there are no results.
        problems: what was wrong with it.
        frames: with results.
        detections: those of at least the score threshold.
        frames_with_detections: with at least one of these.
        lesions: how many there are.
        lesion_class: of the lesion with the highest score, empty where there is none.
        lesion_score: of that lesion.
        seconds: from its first frame to its last result.
        folder: of its results.
    """

    name: str
    status: str
    problems: tuple[str, ...]
    frames: int = 0
    detections: int = 0
    frames_with_detections: int = 0
    lesions: int = 0
    lesion_class: str = ""
    lesion_score: float | None = None
    seconds: float = 0.0
    folder: str = ""

    @classmethod
    def of(cls, end: VideoEnd) -> "VideoSummary":
        """Return the row of a video without results."""
        return cls(name=end.name, status=end.status, problems=end.problems)

    @property
    def rate(self) -> str:
        """Frames per second, as text."""
        return f"{self.frames / self.seconds:.1f}" if self.frames and self.seconds > 0 else "-"

    def line(self, score_threshold: float) -> str:
        """Return the row as a line of text."""
        if not self.frames:
            return f"{self.name}: {self.status}"
        where = f" -> {self.folder}" if self.folder else ""
        return (
            f"{self.name}: {self.status}, {self.frames} frames, {self.detections} detections >= {score_threshold:g} in "
            f"{self.frames_with_detections} frames, {self.seconds:.1f} s ({self.rate} frames/s){where}"
        )

    def cells(self) -> list[str]:
        """Return the row as cells of `summary.csv`."""
        score = "" if self.lesion_score is None else f"{self.lesion_score:.6f}"
        counts = (self.frames, self.detections, self.frames_with_detections, self.lesions)
        words = (self.name, self.status), (self.lesion_class, score, "; ".join(self.problems))
        return [printable(str(cell)) for cell in (*words[0], *counts, *words[1])]


def write_summary(output: Path, rows: Sequence[VideoSummary]) -> None:
    """Write `summary.csv`: a line per video, in the order in which they were named.

    Lines that a former call wrote of other videos stay, below, as long as these have results.

    Raises:
        OSError: it cannot be written.
    """
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    cells = [row.cells() for row in rows]
    table.writerows([COLUMNS, *cells, *_others(output, {row[0] for row in cells})])
    files.write_text(output / SUMMARY_NAME, text.getvalue())


def _others(output: Path, names: set[str]) -> list[list[str]]:
    try:
        with open(output / SUMMARY_NAME, encoding="utf-8", newline="") as file:
            header, *former = csv.reader(file)
    except (OSError, ValueError, csv.Error):
        return []
    if tuple(header) != COLUMNS:
        return []
    others = [row for row in former if len(row) == len(COLUMNS) and row[0] not in names]
    return [row for row in others if _is_folder(output / row[0])]


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):  # no name of a file: of an input that was missing
        return False


def print_problems(rows: Sequence[VideoSummary], messages: Reporter) -> None:
    """Print as messages what was wrong with which video."""
    messages.stop()
    for row in rows:
        for problem in row.problems:
            messages.message(f"{row.name}: {problem}" if row.name not in problem else problem)


def print_summary(rows: Sequence[VideoSummary], score_threshold: float) -> None:
    """Print the final table.

    Raises:
        OSError: standard output cannot be written.
    """
    output = Reporter()
    if not output.console.is_terminal:
        for row in rows:
            output.message(row.line(score_threshold))
        return
    header = ("video", "status", "frames", f"detections >= {score_threshold:g}", "frames with one", "seconds")
    cells = [
        (row.name, row.status, str(row.frames), str(row.detections), str(row.frames_with_detections))
        + (f"{row.seconds:.1f}", row.rate, row.folder)
        for row in rows
    ]
    output.table(None, (*header, "frames/s", "results"), cells)


def print_stages(seconds: dict[str, float], frames: int) -> None:
    """Print the time per stage and frame: first the stages of `timing.STAGES` in their order, then any others."""
    output = Console(highlight=False, soft_wrap=True)
    total = sum(seconds.values()) or 1.0
    output.print("stage      seconds  ms/frame  share   (stages overlap)", markup=False)
    for stage in [*(stage for stage in STAGES if stage in seconds), *sorted(seconds.keys() - set(STAGES))]:
        spent = seconds[stage]
        per_frame = spent * 1000 / max(frames, 1)
        output.print(f"{stage:<9} {spent:>8.2f}  {per_frame:>8.2f}  {spent / total:>5.0%}", markup=False)
