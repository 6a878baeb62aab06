"""A stretch of a feed, written to a folder of its own by a thread of its own: disks and encoders delay no answer."""

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from fractions import Fraction

from stnet.errors import VideoError
from stnet.inference.background import POLL_SECONDS
from stnet.inference.clip_reader import VideoEnd
from stnet.inference.live import LiveResult
from stnet.inference.outputs import Outputs
from stnet.inference.run import UNWRITTEN
from stnet.inference.sink import RunFacts, VideoFacts
from stnet.inference.summary import VideoSummary
from stnet.video import VideoSource
from stnet.video.feed_connection import FeedFormat

WAITING_RESULTS = 100
"""Results that may wait to be written; then the feed waits, or its frames are dropped."""


class FeedSource(VideoSource):
    """What results tell of the source of a stretch of a feed. Its frames pass once.

    Args:
        name: of the stretch.
        form: of its frames.
    """

    replays = False

    def __init__(self, name: str, form: FeedFormat) -> None:
        super().__init__()
        self.name, self.fps, self.pixel_aspect = name, Fraction(form.fps), form.pixel_aspect
        self.height, self.width = form.height, form.width

    def __iter__(self):
        """Raise `VideoError`: what has passed is gone."""
        raise VideoError(f"{self.name}: a feed cannot be read again")


@dataclass(kw_only=True)
class Tally:
    """What was found in a stretch so far."""

    threshold: float
    frames: int = 0
    detections: int = 0
    frames_with_detections: int = 0

    def __post_init__(self) -> None:
        self._started = time.perf_counter()

    def add(self, result: LiveResult) -> None:
        """Count a frame."""
        found = len(result.visible.above(self.threshold).scores)
        self.frames += 1
        self.detections += found
        self.frames_with_detections += found > 0

    def row(self, name: str, status: str, problems: tuple[str, ...], folder: str = "") -> VideoSummary:
        """Return the row of the final table."""
        return VideoSummary(
            name=name,
            status=status,
            problems=problems,
            frames=self.frames,
            detections=self.detections,
            frames_with_detections=self.frames_with_detections,
            seconds=time.perf_counter() - self._started,
            folder=folder,
        )


class Recording:
    """Writes the results of a stretch, whose frames count from its first one.

    Args:
        formats: names of formats.
        run: what is told about the run.
        video: the stretch.
        tell: prints a message.

    Attributes:
        seconds: how long the stretch is until now.
        tally: what was found in it.

    Raises:
        OSError, StnetError: its folder cannot be written to.
    """

    def __init__(self, formats: tuple[str, ...], run: RunFacts, video: VideoFacts, tell: Callable[[str], None]) -> None:
        self._outputs, self._video = Outputs(formats, run, False, tell), video
        self._outputs.begin(video)
        self.seconds, self.tally = 0.0, Tally(threshold=run.score_threshold)
        self._first: LiveResult | None = None
        self._ended: VideoEnd | None = None
        self._whole, self._error = False, None
        self._queue: queue.Queue[LiveResult | VideoEnd | None] = queue.Queue(maxsize=WAITING_RESULTS)
        self._thread = threading.Thread(target=self._work, name="stnet-recording", daemon=True)
        self._thread.start()

    def write(self, result: LiveResult) -> None:
        """Have a frame written."""
        self._first = self._first or result
        self.seconds = result.time - self._first.time
        self.tally.add(result)
        index = result.index - self._first.index
        self._put(replace(result, video=self._video.name, index=index, time=self.seconds))

    def end(self, status: str, problems: tuple[str, ...]) -> None:
        """Have the results finished."""
        frames = self.tally.frames
        self._ended = VideoEnd(key=0, name=self._video.name, status=status, problems=problems, frames=frames)
        self._put(self._ended)

    def abandon(self) -> None:
        """Leave what there is under partial names."""
        self._put(None)
        self._thread.join()

    def row(self) -> VideoSummary:
        """Wait until all is written; return the row of the final table."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        status = self._ended.status if self._whole else UNWRITTEN
        return self.tally.row(self._video.name, status, self._ended.problems, str(self._video.folder))

    def _put(self, item: LiveResult | VideoEnd | None) -> None:
        while self._thread.is_alive():
            try:
                return self._queue.put(item, timeout=POLL_SECONDS)
            except queue.Full:
                continue
        raise self._error or VideoError(f"{self._video.name}: its results are not written any more")

    def _work(self) -> None:
        """Write what comes; formats that fail are given up by `Outputs`, which says so."""
        try:
            while isinstance(item := self._queue.get(), LiveResult):
                self._outputs.write(item)
            if item is None:
                self._outputs.abandon(VideoError(f"{self._video.name}: broken off"))
            else:
                self._whole = self._outputs.end(item)
        except BaseException as error:  # raised again where the feed is answered
            self._error = error
