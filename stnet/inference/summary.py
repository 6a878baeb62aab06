"""The end of a run, on standard output: a table of videos, and where the time went."""

from dataclasses import dataclass

from rich.console import Console

from stnet.console import Reporter
from stnet.execution.timing import STAGES

WRITTEN = ("ok", "truncated", "corrupt")
"""Status of videos that gave results; of truncated and corrupt ones what could be read."""


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

    def line(self, score_threshold: float) -> str:
        """Return the row as a line of text."""
        if not self.frames:
            return f"{self.name}: {self.status}"
        return (
            f"{self.name}: {self.status}, {self.frames} frames, {self.detections} detections >= {score_threshold:g} in "
            f"{self.frames_with_detections} frames, {self.seconds:.1f} s ({self.rate} frames/s) -> {self.folder}"
        )


def print_summary(rows: list[VideoSummary], score_threshold: float, messages: Reporter) -> None:
    """Print the final table, and as messages what was wrong with which video.

    Raises:
        OSError: standard output cannot be written.
    """
    messages.stop()
    for row in rows:
        for problem in row.problems:
            messages.message(f"{row.name}: {problem}" if row.name not in problem else problem)
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
