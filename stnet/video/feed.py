"""Feeds: video that arrives now, from a camera, over a network or through a pipe, and cannot be read again."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

import numpy as np

from stnet.choices import FEED_PATIENCE
from stnet.errors import VideoError
from stnet.video.feed_connection import MAX_PACKET, FeedConnection, FeedFormat, FeedLostError
from stnet.video.feed_names import FeedName
from stnet.video.feed_pipe import PipeReader
from stnet.video.source import VideoFrame

PAUSE_SECONDS = 0.5
"""Between two attempts to open a feed."""

STEADY_FRAMES = 10
RESTLESS_CHANGES = 5
"""A feed that changes its size so often, each time after fewer frames than `STEADY_FRAMES`, is given up."""

CLOSED = "its sender closed it"

READER_SECONDS = 15.0
"""How long whoever closes a feed waits for the thread that reads it, which sees that within the limits on its waits."""

LOSSES_TOLD = 8
"""Losses of a feed that are told one by one."""


@dataclass(kw_only=True)
class FeedTroubles:
    """What went wrong with a feed.

    Attributes:
        losses: a text for each time that it was lost.
        damaged, failed: frames in which the decoder concealed damage, and packets that it could not decode.
    """

    losses: list[str] = field(default_factory=list)
    damaged: int = 0
    failed: int = 0

    def add(self, other: "FeedTroubles | FeedConnection") -> None:
        """Count what another one, or a connection, has counted."""
        self.losses += getattr(other, "losses", [])
        self.damaged += other.damaged
        self.failed += other.failed

    def told(self) -> tuple[str, ...]:
        """Return a text for each kind."""
        texts = self.losses[:LOSSES_TOLD]
        if len(self.losses) > LOSSES_TOLD:
            texts.append(f"lost {len(self.losses) - LOSSES_TOLD} more times")
        if self.damaged:
            texts.append(f"{self.damaged} frames are damaged")
        if self.failed:
            texts.append(f"{self.failed} packets could not be decoded")
        return tuple(texts)


class Feed:
    """Frames of a feed as they arrive; it is opened again where it is lost.

    One thread at a time reads it.

    Args:
        name: what to open.
        patience: seconds that a feed which is not there yet, or no more, is waited for. None: `FEED_PATIENCE`, and a
            pipe that its sender has closed has ended.
        on_lost: is told the reason where the feed is lost or not there, in the thread that reads it.
        on_back: is called there with the first frame after a loss.

    Attributes:
        format: of the frames that come next, None where there are none.
        lost: whether it ended by being lost.
        stopped: why it was stopped, None where it was not.
    """

    def __init__(
        self,
        name: FeedName,
        *,
        patience: float | None = None,
        on_lost: Callable[[str], None] = lambda reason: None,
        on_back: Callable[[], None] = lambda: None,
    ) -> None:
        self.format: FeedFormat | None = None
        self.lost = False
        self.stopped: str | None = None
        self._name, self._on_lost, self._on_back = name, on_lost, on_back
        self._ends_when_closed = name.kind == "stdin" or (name.kind == "fifo" and patience is None)
        self._patience = FEED_PATIENCE if patience is None else patience
        self._stopped = threading.Event()
        self._connection: FeedConnection | None = None
        self._reader: PipeReader | None = None
        self._pending: tuple[np.ndarray, float] | None = None  # with its time of arrival
        self._given, self._began = 0, 0.0
        self._latest: float | None = None  # arrival of the last frame, before the first one None
        self._alone_since = 0.0
        self._away: str | None = None  # why it is lost, None while it is there
        self._restless = self._since_change = 0
        self._lock, self._troubles = threading.Lock(), FeedTroubles()
        self._reading = threading.RLock()

    def start(self) -> None:
        """Open the feed and wait for its first frame.

        Raises:
            VideoError: there is none, or it cannot be used.
        """
        self._alone_since = time.monotonic()
        self._advance()
        if self.format is None and not self._stopped.is_set():
            raise VideoError(f"{self._name.shown}: gives no frame ({self._away or CLOSED})")

    def stop(self, why: str) -> None:
        """Have the feed end with its next frame, or when the wait for it is over; for any thread."""
        self.stopped = self.stopped or why
        self._stopped.set()

    def close(self) -> None:
        """Let go of the camera, pipe or connection, once the thread that reads it has left it.

        A reader that does not come back (a device that hangs) keeps it: FFmpeg would read memory that is gone.
        """
        self._stopped.set()
        if self._reading.acquire(timeout=READER_SECONDS):
            try:
                self._let_go()
            finally:
                self._reading.release()

    @contextmanager
    def passing_by(self) -> Iterator[None]:
        """Let what arrives meanwhile pass, where the sender does not wait: it would be answered late otherwise."""
        if self._name.waits:
            yield
            return
        done = threading.Event()
        thread = threading.Thread(target=self._pass_by, args=(done,), name="stnet-feed-passing", daemon=True)
        thread.start()
        try:
            yield
        finally:
            done.set()
            thread.join()

    def frames(self) -> Iterator[VideoFrame]:
        """Yield frames of the present format until it changes or the feed ends; `format` then is the next one.

        Frames are numbered from the first one given, and timed by their arrival, in seconds from it.

        Raises:
            VideoError: frames that cannot be used.
        """
        present = self.format
        while present is not None and self.format == present:
            pending, self._pending = self._pending, None
            if pending is not None:
                yield self._numbered(*pending)
            self._advance()

    def take_troubles(self) -> FeedTroubles:
        """Return what went wrong since the last call."""
        with self._lock:
            troubles, self._troubles = self._troubles, FeedTroubles()
        return troubles

    def _numbered(self, image: np.ndarray, arrival: float) -> VideoFrame:
        if self._given == 0:
            self._began = arrival
        self._given += 1
        return VideoFrame(index=self._given - 1, time=arrival - self._began, image=image)

    def _advance(self) -> None:
        """Wait for the next frame; there is no format when there is none."""
        with self._reading:
            self._take_next()

    def _take_next(self) -> None:
        image = self._next()
        if image is None:
            self._pending = self.format = None
            self._let_go()
            return
        self._pending = image, self._latest
        changed = self._connection.format_of(image)
        if changed == self.format:
            self._since_change += 1
            return
        if self.format is not None:
            self._restless = self._restless + 1 if self._since_change < STEADY_FRAMES else 0
        if self._restless >= RESTLESS_CHANGES:
            raise VideoError(f"{self._name.shown}: changes the size of its frames all the time")
        self.format, self._since_change = changed, 0

    def _next(self) -> np.ndarray | None:
        """Return the next frame, opening the feed where that is needed; None when it has ended."""
        while not self._stopped.is_set():
            try:
                if self._connection is None:
                    self._connection = self._connect()
                image = self._connection.next_image()
            except FeedLostError as error:
                why = str(error)
            except EOFError:
                why = CLOSED
            else:
                self._arrived()
                return image
            self._disconnect()
            if self._stopped.is_set() or (why == CLOSED and self._ends_when_closed and self._latest is not None):
                return None
            if not self._waited(why):
                return None
        return None

    def _connect(self) -> FeedConnection:
        if self._name.kind in ("fifo", "stdin") and self._reader is None:
            self._reader = PipeReader(self._name.place, self._stopped, self._patience, MAX_PACKET)
        elif self._reader is not None:
            self._reader.renew()
        return FeedConnection(self._name, self._stopped, self._patience, self._reader)

    def _let_go(self) -> None:
        self._disconnect()
        if self._reader is not None:
            self._reader.close()

    def _disconnect(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()
            with self._lock:  # packets after the last frame may have failed, too
                self._troubles.add(connection)

    def _arrived(self) -> None:
        now = time.monotonic()
        with self._lock:
            self._troubles.add(self._connection)
            self._connection.damaged = self._connection.failed = 0
            if self._away is not None and self._latest is not None:
                self._troubles.losses.append(f"lost for {now - self._latest:.1f} s ({self._away})")
        if self._away is not None:
            self._on_back()
        self._away, self._latest, self._alone_since = None, now, now

    def _waited(self, why: str) -> bool:
        """Wait before the feed is opened again; return whether it is still to be waited for."""
        if self._away is None:
            self._on_lost(why)
        self._away = why
        if self._name.kind != "stdin" and time.monotonic() - self._alone_since < self._patience:
            self._stopped.wait(PAUSE_SECONDS)
            return True
        self.lost = True
        with self._lock:
            self._troubles.losses.append(f"lost ({why})")
        return False

    def _pass_by(self, done: threading.Event) -> None:
        # What goes wrong here does so again where the frames are read, and is told there.
        with suppress(FeedLostError, EOFError, VideoError):
            while self._connection is not None and not done.is_set():
                self._pending = None
                self._connection.next_image()
                self._latest = self._alone_since = time.monotonic()
