"""SIGTERM and Ctrl-C as a request to save and leave, looked at between steps.

Both often reach the whole process group, loader workers included, and more than once: a terminal signals the group in
front, and torchrun passes on to each group what it got itself.
"""

import os
import signal
import threading
import time
from types import FrameType

EXIT_CODES = {signal.SIGTERM: 143, signal.SIGINT: 130}
REPEAT_SECONDS = 5.0  # in which a further signal repeats the first one


class Interrupted(Exception):
    """The run was asked to stop and has saved what it needs to go on.

    Attributes:
        exit_code: 143 after SIGTERM, 130 after Ctrl-C.
    """

    def __init__(self, exit_code: int):
        super().__init__(f"stopped by a signal (exit code {exit_code})")
        self.exit_code = exit_code


class InterruptWatch:
    """While entered, the first signal is remembered; one more than REPEAT_SECONDS later acts as it would without us.

    Entered in another thread than the main one it remembers nothing.
    """

    def __init__(self):
        self.received: int | None = None
        self._received_at = 0.0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "InterruptWatch":
        # Python gives signals to its main thread and lets no other one ask for them.
        if threading.current_thread() is threading.main_thread():
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
        if self.received is None:
            self.received, self._received_at = number, time.monotonic()
        elif time.monotonic() - self._received_at > REPEAT_SECONDS:
            self._restore()
            signal.raise_signal(number)

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}


def leave_the_group(worker: int) -> None:
    """Take a loader worker out of the group that is signalled: the step under way still needs it."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()
