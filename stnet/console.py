"""What commands tell their user: messages, a progress bar on a terminal or plain lines elsewhere, and tables."""

import time
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

PLAIN_INTERVAL_SECONDS = 10.0
"""How often progress is reported where there is no terminal."""


def printable(text: str) -> str:
    """Return text with control characters and lone surrogates written as escapes.

    Names come from files: they may carry escape codes of terminals, line breaks, or bytes that are no UTF-8.
    """
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape", "backslashreplace").decode()
        for character in text
    )


class Reporter:
    """Messages, one progress bar at a time, and tables.

    Args:
        quiet: say nothing; for all processes but the first.
        stderr: write to standard error, where standard output carries results.
        progress: show how far the work is; one of several processes does.
        console: where to write instead.
    """

    def __init__(
        self, *, quiet: bool = False, stderr: bool = False, progress: bool = True, console: Console | None = None
    ):
        self._bars = progress
        self.console = console or Console(quiet=quiet, stderr=stderr, highlight=False, soft_wrap=True)
        self._live: Progress | None = None
        self._task: TaskID | None = None
        self._title = ""
        self._done, self._total = 0, None
        self._started, self._told = 0.0, time.monotonic()

    def __enter__(self) -> "Reporter":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def message(self, text: str) -> None:
        """Print lines of text; a running bar stays below them."""
        self.console.print("\n".join(map(printable, text.split("\n"))), markup=False)

    def start(self, title: str, total: int | None, done: int = 0) -> None:
        """Begin a stretch of work.

        Args:
            title: what is counted, such as a file's name.
            total: steps, frames or files in all; None where that is unknown.
            done: how many of them an earlier run has done.
        """
        self.stop()
        self._title, self._total, self._done = printable(title), total, done
        self._started = time.monotonic()
        if not (self._bars and self.console.is_terminal):
            return
        self._live = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[detail]}"),
            console=self.console,
            transient=True,
        )
        self._task = self._live.add_task(escape(self._title), total=total, completed=done, detail="")
        self._live.start()

    def advance(self, count: int = 1, detail: str = "") -> None:
        """Count what was done since the last call, `detail` beside it."""
        self._done += count
        if self._live is not None and self._task is not None:
            self._live.update(self._task, advance=count, detail=detail)
        elif self._bars and time.monotonic() - self._told > PLAIN_INTERVAL_SECONDS:
            self._told = time.monotonic()
            total = "" if self._total is None else f" of {self._total}"
            self.message(f"{self._title}: {self._done}{total} {detail}".rstrip())

    @property
    def seconds(self) -> float:
        """Seconds since `start`."""
        return time.monotonic() - self._started

    def stop(self) -> None:
        """End the stretch; harmless when there is none."""
        if self._live is not None:
            self._live.stop()
        self._live = self._task = None

    def table(self, title: str | None, header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Print a table, the first column to the left, the others to the right."""
        table = Table(title=title, title_justify="left")
        for number, name in enumerate(header):
            table.add_column(name, justify="left" if number == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*(escape(printable(cell)) for cell in row))
        self.console.print(table)
