"""The reading end of a pipe, which neither waits without an end nor takes in more than a frame may need."""

import os
import select
import sys
import threading
import time

from stnet.errors import VideoError

POLL_SECONDS = 0.1
"""How often a pipe without data is looked at."""


class PipeReader:
    """Bytes of a named pipe, or of standard input, for PyAV.

    A named pipe stays open when its sender closes it: what the next one sends meanwhile would be lost otherwise.

    Args:
        place: the path of a named pipe; empty for standard input.
        stopped: ends the data when set.
        patience: seconds without data that are waited for.
        limit: most bytes between two calls of `packet_complete`.

    Attributes:
        problem: why there is no more, None where the sender closed the pipe.
        error: what the reading itself failed with; it gives no more bytes then.

    Raises:
        VideoError: it cannot be read from.
    """

    name = "pipe"  # PyAV guesses formats by it

    def __init__(self, place: str, stopped: threading.Event, patience: float, limit: int) -> None:
        self._stopped, self._patience, self._limit = stopped, patience, limit
        self.renew()
        self._owned = bool(place)
        try:
            # Not blocking: it would wait for a sender without an end.
            self._descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK) if place else sys.stdin.fileno()
        except (OSError, ValueError) as error:
            raise VideoError(f"{place or 'standard input'}: cannot be read ({error})") from error

    def renew(self) -> None:
        """Wait for the next sender."""
        self._since_packet, self._begun, self._ended = 0, False, False
        self.problem: str | None = None
        self.error: BaseException | None = None

    def read(self, size: int) -> bytes:
        """Return some bytes, none at the end of the data; PyAV calls it and would drop some of what it raises."""
        try:
            return self._read(size)
        except BaseException as error:  # raised by the connection
            self.error = error
            return b""

    def _read(self, size: int) -> bytes:
        deadline = time.monotonic() + self._patience
        # After the end FFmpeg asks again, and would take what the next sender sends.
        while not (self._stopped.is_set() or self._ended or self.problem or self.error):
            data = self._available(size)
            if data:
                self._begun = True
                self._since_packet += len(data)
                if self._since_packet > self._limit:
                    self.problem = f"no frame in {self._limit} bytes"
                    return b""
                return data
            if data is not None and (self._begun or not self._owned):
                self._ended = True
                return b""
            if time.monotonic() > deadline:
                self.problem = f"no data for {self._patience:g} s"
        return b""

    def packet_complete(self) -> None:
        """Note that the bytes until now have made a packet."""
        self._since_packet = 0

    def close(self) -> None:
        """Close a named pipe."""
        if self._owned:
            self._owned = False
            os.close(self._descriptor)

    def _available(self, size: int) -> bytes | None:
        """Return bytes that are there, none at the end (or before a sender has opened the pipe), None while waiting."""
        if not select.select([self._descriptor], [], [], POLL_SECONDS)[0]:
            return None
        try:
            data = os.read(self._descriptor, size)
        except BlockingIOError:
            return None
        if not data and not self._begun:
            self._stopped.wait(POLL_SECONDS)
        return data
