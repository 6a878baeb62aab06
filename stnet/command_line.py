"""How every command ends: one line for what went wrong, never a traceback for a user's mistake."""

import os
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

from stnet.console import printable
from stnet.errors import EXTERNAL

UNUSABLE = 2
"""Exit status where a command could not do what was asked."""

INTERRUPTED = 130
"""Exit status after Ctrl-C."""


def run(command: Callable[[], int | None]) -> int:
    """Run a command; return its exit status (0 where it gives none).

    Errors that a user, a disk or a machine causes are printed as one line `error: ...` on standard error. What the
    command printed is written out here, where a full disk or a closed pipe can still be told.
    """
    try:
        status = command() or 0
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except EXTERNAL as error:
        print(f"error: {explain(error)}", file=sys.stderr)
        silence(sys.stdout)
        return UNUSABLE


def explain(error: BaseException) -> str:
    """Return the one line that tells a user of an error, naming the file where the error knows it."""
    if isinstance(error, MemoryError):
        return "out of memory; close other programs, or use smaller images or batches"
    if isinstance(error, OSError) and error.strerror:
        where = f"{error.filename}: " if error.filename else ""
        return printable(f"{where}{error.strerror}")
    if isinstance(error, UnicodeError):
        return printable(f"text in an unexpected encoding ({error}); save it as UTF-8")
    return "\n".join(map(printable, str(error).split("\n")))


def silence(stream: TextIO) -> None:
    """Send what a stream still holds nowhere if it cannot be written: Python would complain of it at its end."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with suppress(OSError, ValueError), open(os.devnull, "w", encoding="utf-8") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
