"""SIGTERM and Ctrl-C as a request to save and leave, looked at between steps."""

import signal
from types import FrameType

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}


class Interrupted(Exception):
    """The run was asked to stop and has saved what it needs to go on.

    Attributes:
        exit_code: 143 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, exit_code: int):
        super().__init__(f"stopped by a signal (exit code {exit_code})")
        self.exit_code = exit_code


class InterruptWatch:
    """While entered, the first signal is remembered; a second one acts as it would without us."""

    def __init__(self):
        self.received: int | None = None
        self._before: dict[int, object] = {}

    def __enter__(self) -> "InterruptWatch":
        for number in EXIT_CODES:
            self._before[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()

    @property
    def exit_code(self) -> int:
        """Of the signal received; another process's request counts as SIGTERM."""
        return EXIT_CODES[signal.Signals(self.received)] if self.received else EXIT_CODES[signal.SIGTERM]

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.received = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}
