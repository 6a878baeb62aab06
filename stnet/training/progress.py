"""What a run tells its user while it works: a live bar on a terminal, plain lines elsewhere."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_INTERVAL = 30.0  # seconds between lines where there is no terminal


class Reporter:
    """Messages, progress bars and tables.

    Args:
        quiet: say nothing; for all processes but the first.
        console: where to write; standard output by default.
    """

    def __init__(self, quiet: bool = False, console: Console | None = None):
        self.console = console or Console(quiet=quiet, highlight=False, soft_wrap=True)
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._done = self._total = 0
        self._spoken = 0.0

    def message(self, text: str) -> None:
        self.console.print(text, markup=False)

    def start(self, title: str, total: int, done: int = 0) -> None:
        """Begin a stretch of `total` steps or frames."""
        self.stop()
        self._title, self._total, self._done = title, total, done
        self._spoken = time.monotonic()
        if self.console.is_terminal:
            self._live = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                TextColumn("{task.fields[detail]}"),
                console=self.console,
                transient=True,
            )
            self._task = self._live.add_task(title, total=total, completed=done, detail="")
            self._live.start()

    def advance(self, count: int, detail: str = "") -> None:
        """Count steps or frames done since the last call."""
        self._done += count
        if self._live is not None and self._task is not None:
            self._live.update(self._task, advance=count, detail=detail)
        elif time.monotonic() - self._spoken > PLAIN_INTERVAL:
            self._spoken = time.monotonic()
            self.message(f"{self._title}: {self._done}/{self._total} {detail}".rstrip())

    def stop(self) -> None:
        """End the stretch; harmless when there is none."""
        if self._live is not None:
            self._live.stop()
        self._live = self._task = None

    def table(self, title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        table = Table(title=title, title_justify="left")
        for number, name in enumerate(header):
            table.add_column(name, justify="left" if number == 0 else "right")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
