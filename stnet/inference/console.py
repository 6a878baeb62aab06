"""What the command line shows: progress, warnings, a table at the end; plain lines where no terminal looks on."""

import time
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from stnet.inference.timing import STAGES

PLAIN_INTERVAL_SECONDS = 10.0
"""How often progress is reported where there is no terminal."""


@dataclass(frozen=True, kw_only=True)
class VideoSummary:
    """One row of the final table."""

    name: str
    status: str
    problems: tuple[str, ...]
    frames: int = 0
    detections: int = 0
    frames_with_detections: int = 0
    seconds: float = 0.0
    folder: str = ""

    @property
    def rate(self) -> str:
        """Frames per second, as text."""
        return f"{self.frames / self.seconds:.1f}" if self.frames and self.seconds > 0 else "-"


class Reporter:
    """Progress on stderr, the summary on stdout."""

    def __init__(self) -> None:
        self._out = Console(highlight=False, soft_wrap=True)
        self._err = Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]} frames/s"),
            TimeRemainingColumn(),
            console=self._err,
            disable=not self._err.is_terminal,
        )
        self._task = None
        self._name, self._total, self._done, self._started, self._told = "", 0, 0, 0.0, 0.0

    def __enter__(self) -> "Reporter":
        self._progress.start()
        return self

    def __exit__(self, *_) -> None:
        self._progress.stop()

    def begin(self, name: str, frames: int | None) -> None:
        """A video starts."""
        self._name, self._total, self._done = name, frames or 0, 0
        self._started = self._told = time.perf_counter()
        if self._task is not None:
            self._progress.remove_task(self._task)
        # Square brackets in file names are no markup.
        description = name.replace("[", r"\[")
        self._task = self._progress.add_task(description, total=frames, rate="-")

    def advance(self) -> None:
        """One more frame is done."""
        self._done += 1
        now = time.perf_counter()
        rate = f"{self._done / max(now - self._started, 1e-9):.1f}"
        self._progress.update(self._task, completed=self._done, rate=rate)
        if not self._err.is_terminal and now - self._told >= PLAIN_INTERVAL_SECONDS:
            self._told = now
            total = f" of {self._total}" if self._total else ""
            self.note(f"{self._name}: {self._done}{total} frames, {rate} frames/s")

    def note(self, text: str) -> None:
        """A line on stderr."""
        self._err.print(text, markup=False)

    def summary(self, rows: list[VideoSummary], score_threshold: float) -> None:
        """The final table, and what was wrong with which video."""
        self._progress.stop()
        if self._out.is_terminal:
            self._table(rows, score_threshold)
        else:
            for row in rows:
                self._out.print(self._line(row, score_threshold), markup=False)
        for row in rows:
            for problem in row.problems:
                self.note(f"{row.name}: {problem}" if row.name not in problem else problem)

    def stages(self, seconds: dict[str, float], frames: int) -> None:
        """Time per stage and frame."""
        total = sum(seconds.values()) or 1.0
        self._out.print("stage      seconds  ms/frame  share   (stages overlap)", markup=False)
        for stage in STAGES:
            if stage in seconds:
                spent = seconds[stage]
                per_frame = spent * 1000 / max(frames, 1)
                self._out.print(f"{stage:<9} {spent:>8.2f}  {per_frame:>8.2f}  {spent / total:>5.0%}", markup=False)

    def _table(self, rows: list[VideoSummary], score_threshold: float) -> None:
        table = Table()
        table.add_column("video", overflow="fold")
        table.add_column("status")
        for column in ("frames", f"detections >= {score_threshold:g}", "frames with one", "seconds", "frames/s"):
            table.add_column(column, justify="right")
        table.add_column("results", overflow="fold")
        for row in rows:
            colour = "green" if row.status == "ok" else "red"
            table.add_row(
                row.name.replace("[", r"\["),
                f"[{colour}]{row.status}[/]",
                str(row.frames),
                str(row.detections),
                str(row.frames_with_detections),
                f"{row.seconds:.1f}",
                row.rate,
                row.folder.replace("[", r"\["),
            )
        self._out.print(table)

    @staticmethod
    def _line(row: VideoSummary, score_threshold: float) -> str:
        if not row.frames:
            return f"{row.name}: {row.status}"
        return (
            f"{row.name}: {row.status}, {row.frames} frames, {row.detections} detections >= {score_threshold:g} in "
            f"{row.frames_with_detections} frames, {row.seconds:.1f} s ({row.rate} frames/s) -> {row.folder}"
        )
