"""A feed, answered frame by frame until it ends, is lost, or the user stops it."""

import itertools
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from stnet.command_line import explain
from stnet.console import Reporter
from stnet.errors import EXTERNAL
from stnet.inference.detector import VideoDetector
from stnet.inference.live import LiveDetector, LiveResult
from stnet.inference.outputs import unwritable
from stnet.inference.recording import FeedSource, Recording, Tally
from stnet.inference.run import UNWRITTEN
from stnet.inference.sink import RunFacts, VideoFacts
from stnet.inference.summary import VideoSummary
from stnet.inference.watching import DROPPED, INTERRUPTED, LOST, LiveEnd, LiveSettings, WatchedFeed
from stnet.lesions.sizes import stated_scale
from stnet.video.feed import Feed, FeedTroubles
from stnet.video.feed_connection import FeedFormat
from stnet.video.feed_names import FeedName
from stnet.video.scale import PixelScale

STRETCH_SECONDS = 1800.0
"""How much of a feed goes into one folder of results; then the next one is begun, so that memory stays bounded."""


class FeedRun:
    """Plays a feed.

    Args:
        detector: finds lesions.
        name: of the feed.
        facts: what is told about the run in its results.
        formats: names of formats that are written; where there are none, nothing is.
        mm_per_pixel: the size of pixels, as `--mm-per-pixel` takes it; None: unknown.
        settings: how it is played.
        reporter: shows progress and messages.

    Raises:
        VideoError: the output folder cannot be written to.
    """

    def __init__(
        self,
        detector: VideoDetector,
        name: FeedName,
        facts: RunFacts,
        formats: tuple[str, ...],
        mm_per_pixel: str | None,
        settings: LiveSettings,
        reporter: Reporter,
    ) -> None:
        self._name, self._facts, self._formats, self._mm_per_pixel = name, facts, formats, mm_per_pixel
        self._watchers, self._reporter = settings.watchers, reporter
        threshold = facts.score_threshold
        self._live = LiveDetector(detector, delay=settings.delay, policy=settings.policy, score_threshold=threshold)
        self._feed = Feed(name, patience=settings.patience, on_lost=self._lost, on_back=self._back)
        if formats:
            _make(facts.output)
        self._recording: Recording | None = None
        self._recordings: list[Recording] = []
        self._counted = 0  # dropped frames that were told in the results of a stretch
        self._tally = Tally(threshold=threshold)
        self._troubles = FeedTroubles()
        self._unwritten = False

    def play(self) -> list[VideoSummary]:
        """Answer the feed until it ends.

        Returns:
            A row for each stretch that was written, or one for the whole feed where nothing is.

        Raises:
            StnetError, OSError: no frame could be answered, or written for anybody.
        """
        self._reporter.message(f"waiting for {self._name.shown}")
        error = None
        try:
            with _stopped_by_the_user(self._feed), closing(self._feed):
                self._feed.start()
                while (form := self._feed.format) is not None:
                    self._play_format(form)
        except EXTERNAL as caught:
            if not self._tally.frames:
                raise
            error = caught
        finally:
            if self._recording is not None:  # broken off
                self._recording.abandon()
        return self._conclude(error)

    def _play_format(self, form: FeedFormat) -> None:
        """Answer frames of one format."""
        with self._feed.passing_by():
            self._live.warm_up(form.height, form.width)
        stated = self._mm_per_pixel
        scale = None if stated is None else stated_scale(stated, form.pixel_aspect)
        watched = WatchedFeed(name=self._name.shown, height=form.height, width=form.width, scale=scale)
        self._watchers.begin(watched)
        self._reporter.message(f"{self._name.shown}: {form.width} x {form.height} pixels; Ctrl-C ends it in order")
        self._reporter.start(self._name.shown, None)
        try:
            with closing(self._live(self._feed.frames(), name=self._name.name, images=True)) as results:
                for result in results:
                    self._answer(result, form, scale)
        except EXTERNAL as error:
            self._end_recording(error)
            raise
        self._end_recording()

    def _answer(self, result: LiveResult, form: FeedFormat, scale: PixelScale | None) -> None:
        self._tally.add(result)
        self._watchers.write(result)
        if self._recording is not None and self._recording.seconds >= STRETCH_SECONDS:
            self._end_recording()
        if self._formats and not self._unwritten:
            self._record(result, form, scale)
        elif not self._watchers:
            self._feed.stop("nobody is left to be told")
        self._reporter.advance(detail=f"{result.latency * 1000:.0f} ms, {self._live.statistics.dropped} dropped")

    def _record(self, result: LiveResult, form: FeedFormat, scale: PixelScale | None) -> None:
        try:
            if self._recording is None:
                self._recording = self._new_recording(form, scale)
            self._recording.write(result)
        except EXTERNAL as error:
            self._unwritten, self._recording = True, None
            if not self._watchers:
                raise
            self._reporter.message(f"error: {explain(error)}; nothing more is written")

    def _new_recording(self, form: FeedFormat, scale: PixelScale | None) -> Recording:
        folder = _new_folder(self._facts.output, self._name.name)
        source, shown = FeedSource(folder.name, form), self._name.shown
        video = VideoFacts(name=folder.name, folder=folder, source=source, origin=shown, frames=None, scale=scale)
        self._recordings.append(Recording(self._formats, self._facts, video, self._reporter.message))
        return self._recordings[-1]

    def _end_recording(self, error: BaseException | None = None) -> None:
        """End the stretch that is written, with what went wrong in it."""
        recording, self._recording = self._recording, None
        troubles, dropped = self._feed.take_troubles(), self._live.statistics.dropped - self._counted
        self._counted += dropped
        self._troubles.add(troubles)
        if recording is not None:
            frames = recording.tally.frames
            recording.end(*_verdict(troubles, error, self._feed, frames=frames, dropped=dropped))

    def _conclude(self, error: BaseException | None) -> list[VideoSummary]:
        self._reporter.stop()
        rows = [recording.row() for recording in self._recordings]
        statistics = self._live.statistics
        status, problems = _verdict(
            self._troubles, error, self._feed, frames=statistics.frames, dropped=statistics.dropped
        )
        end = LiveEnd(status=status, problems=problems, statistics=statistics)
        self._watchers.end(end)
        self._reporter.message(f"{self._name.shown}: {statistics}")
        if self._unwritten or not rows:
            rows.append(self._tally.row(self._name.shown, UNWRITTEN if self._unwritten else status, problems))
        return rows

    def _lost(self, reason: str) -> None:
        self._reporter.message(f"{self._name.shown}: no frames ({reason}); waiting for it")
        self._watchers.lost(reason)

    def _back(self) -> None:
        self._reporter.message(f"{self._name.shown}: frames come again")
        self._watchers.back()


def _verdict(
    troubles: FeedTroubles, error: BaseException | None, feed: Feed, *, frames: int, dropped: int
) -> tuple[str, tuple[str, ...]]:
    """Return the status of what was answered, and what is to be told of it."""
    problems = troubles.told()
    if dropped:
        problems = (*problems, f"{dropped} of {frames + dropped} frames were dropped")
    if feed.stopped is not None:
        problems = (*problems, f"stopped before its end ({feed.stopped})")
    if error is not None:
        return "corrupt", (*problems, explain(error))
    if feed.lost:
        return LOST, problems
    if troubles.damaged or troubles.failed:
        return "corrupt", problems
    if troubles.losses:
        return INTERRUPTED, problems
    return (DROPPED if dropped else "ok"), problems


def _new_folder(output: Path, name: str) -> Path:
    """Make a folder that is called after a feed and the time.

    Raises:
        VideoError: it cannot be made.
    """
    wanted = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    for number in itertools.count(1):
        folder = output / (wanted if number == 1 else f"{wanted}-{number}")
        if not folder.exists():
            _make(folder)
            return folder
    raise AssertionError


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(folder, error) from error


@contextmanager
def _stopped_by_the_user(feed: Feed) -> Iterator[None]:
    """Let Ctrl-C end a feed in order; a second one breaks off."""
    numbers = [number for number in (signal.SIGINT, signal.SIGTERM) if signal.getsignal(number) is not signal.SIG_IGN]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    former: dict[int, Any] = {}

    def stop(number: int, _: Any) -> None:
        signal.signal(number, former[number])
        feed.stop(signal.Signals(number).name)

    former = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
