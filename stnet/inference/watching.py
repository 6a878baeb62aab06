"""Those who watch a live run: they are told of each frame at once, and write no files."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import ClassVar

from stnet.command_line import explain
from stnet.errors import EXTERNAL
from stnet.inference.live import LiveResult, LiveStatistics, Policy
from stnet.video.geometry import Box
from stnet.video.scale import PixelScale

DROPPED = "frames dropped"
"""Status of what was read in full, of which not all frames were answered."""

INTERRUPTED = "interrupted"
"""Status of a feed that was lost for a while."""

LOST = "lost"
"""Status of a feed that was lost and did not come back."""


@dataclass(frozen=True, kw_only=True)
class WatchedFeed:
    """What is played: a feed, or a video at its own rate.

    Attributes:
        name: for the reader, without passwords.
        height, width: of its frames as boxes refer to them, also where only a part of them is looked at.
        scale: the size of its pixels, None where that is unknown.
        region: the part of its frames that is looked at, None where that is all of them.
    """

    name: str
    height: int
    width: int
    scale: PixelScale | None
    region: Box | None = None


@dataclass(frozen=True, kw_only=True)
class LiveEnd:
    """How a live run of a feed or video ended."""

    status: str
    problems: tuple[str, ...]
    statistics: LiveStatistics

    @classmethod
    def of(cls, status: str, problems: tuple[str, ...], statistics: LiveStatistics) -> "LiveEnd":
        """Return the end of what was read with a status, which frames that were dropped make another one."""
        if statistics.dropped:
            whole = statistics.frames + statistics.dropped
            problems = (*problems, f"{statistics.dropped} of {whole} frames were dropped")
            status = DROPPED if status == "ok" else status
        return cls(status=status, problems=problems, statistics=statistics)


class Watcher(ABC):
    """One who is told of a live run: `begin`, then `write` for each frame, and `end`; `close` ends the run.

    A feed that changes the size of its frames begins once more. `lost` and `back` come between frames, from the thread
    that reads the feed. All methods raise `OSError` where nobody can be told any more.
    """

    title: ClassVar[str]

    @abstractmethod
    def begin(self, feed: WatchedFeed) -> None:
        """Start."""

    @abstractmethod
    def write(self, result: LiveResult) -> None:
        """Tell of a frame."""

    @abstractmethod
    def lost(self, reason: str) -> None:
        """Tell that no frames come."""

    @abstractmethod
    def back(self) -> None:
        """Tell that frames come again."""

    @abstractmethod
    def end(self, end: LiveEnd) -> None:
        """Tell how it ended."""

    def close(self) -> None:  # noqa: B027  nothing to do for some
        """End the run."""


class Watchers:
    """All who watch a run; one who cannot be told any more is left out, the others go on.

    Args:
        watchers: to be closed by `close`.
        tell: prints a message.

    Attributes:
        broken: whether one had to be left out.
    """

    def __init__(self, watchers: Iterable[Watcher], tell: Callable[[str], None]) -> None:
        self._alive, self._tell = tuple(watchers), tell
        self.broken = False

    def __bool__(self) -> bool:
        return bool(self._alive)

    def begin(self, feed: WatchedFeed) -> None:
        """Tell all that a feed starts."""
        self._each(lambda watcher: watcher.begin(feed))

    def write(self, result: LiveResult) -> None:
        """Tell all of a frame."""
        self._each(lambda watcher: watcher.write(result))

    def lost(self, reason: str) -> None:
        """Tell all that no frames come."""
        self._each(lambda watcher: watcher.lost(reason))

    def back(self) -> None:
        """Tell all that frames come again."""
        self._each(lambda watcher: watcher.back())

    def end(self, end: LiveEnd) -> None:
        """Tell all how it ended."""
        self._each(lambda watcher: watcher.end(end))

    def close(self) -> None:
        """End the run."""
        self._each(lambda watcher: watcher.close())

    def _each(self, action: Callable[[Watcher], None]) -> None:
        for watcher in self._alive:
            try:
                action(watcher)
            except EXTERNAL as error:
                self._alive = tuple(other for other in self._alive if other is not watcher)
                self.broken = True
                self._tell(f"error: {watcher.title}: {explain(error)}")


@dataclass(frozen=True, kw_only=True)
class LiveSettings:
    """How videos and feeds are played.

    Attributes:
        delay: frames of delay.
        policy: what happens when frames come faster than they are answered.
        patience: seconds that a feed which is not there is waited for; None: as `Feed` does.
        watchers: are told of each frame.
    """

    delay: int
    policy: Policy
    patience: float | None
    watchers: Watchers
