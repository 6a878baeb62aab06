"""Many videos, one after the other: each read, looked at, written and summed up, whatever happens to the others."""

import time
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from stnet.command_line import explain
from stnet.console import Reporter
from stnet.errors import EXTERNAL, VideoError
from stnet.inference.clip_reader import VideoEnd, VideoStart, failed
from stnet.inference.common_list import CommonList, Taken
from stnet.inference.detector import VideoDetector
from stnet.inference.frame_results import FrameResult, class_name
from stnet.inference.jobs import Job
from stnet.inference.live import LiveDetector
from stnet.inference.outputs import Outputs, unwritable
from stnet.inference.records import Records
from stnet.inference.sink import RunFacts, VideoFacts
from stnet.inference.summary import VideoSummary
from stnet.inference.watching import LiveEnd, LiveSettings, WatchedFeed, Watchers
from stnet.lesions.sizes import agree, stated_scale
from stnet.video import VideoSource
from stnet.video.scale import PixelScale

UNWRITTEN = "unwritten"
"""Status of a video of which not all results could be written."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run does beside what its detector does.

    Attributes:
        formats: names of `stnet.inference.formats.FORMATS`.
        overwrite: replace the results of a former run.
        fps: frame rate of inputs that state none.
        full_frame: use whole frames of DICOM files, not only their scan region.
        mm_per_pixel: the size of pixels where a video states none, as `--mm-per-pixel` takes it; None: unknown.
        live: play the videos at their own rate; None: by clips over whole videos.
    """

    formats: tuple[str, ...]
    overwrite: bool
    fps: Fraction
    full_frame: bool
    mm_per_pixel: str | None
    live: LiveSettings | None


class VideoRun:
    """Writes what a detector finds in videos.

    A video that cannot be read, computed or written costs its own results alone.

    Args:
        detector: finds lesions.
        videos: those to be done.
        records: where it is noted how each of them ends.
        facts: what is told about the run in its results.
        settings: what is written, and how videos are played.
        reporter: shows progress and messages.

    Raises:
        OSError, StnetError: the output folder cannot be written to.
    """

    def __init__(
        self,
        detector: VideoDetector,
        videos: CommonList,
        records: Records,
        facts: RunFacts,
        settings: RunSettings,
        reporter: Reporter,
    ) -> None:
        self._detector, self._videos, self._records = detector, videos, records
        self._facts, self._settings, self._reporter = facts, settings, reporter
        overwrite = settings.overwrite or videos.resume  # a list is gone on with after a look at what there is
        self._outputs = Outputs(settings.formats, facts, overwrite, reporter.message)
        self._tally: _Tally | None = None
        self.rows: dict[str, VideoSummary] = {}

    @property
    def broken(self) -> bool:
        """Whether any result could not be written."""
        return self._outputs.broken

    def all(self) -> None:
        """Do all videos; `rows` has a row for each of them, by name."""
        try:
            if self._settings.live is None:
                self._offline()
            else:
                self._live(self._settings.live)
        except BaseException as error:
            self._outputs.abandon(error)
            self._videos.release()
            raise

    def _offline(self) -> None:
        """All videos by clips over their whole length."""
        videos = ((taken.job.name, self._opener(taken.job)) for taken in self._videos)
        reading: VideoStart | None = None  # the video whose results are written
        # Closed whatever happens, which stops the threads that read and run the model.
        with closing(self._detector.events(videos, images=self._outputs.needs_images)) as events:
            for event in events:
                if isinstance(event, VideoStart):
                    taken = self._videos.taken[event.key]
                    reading = event if self._begin(taken, event.source, event.length) else None
                    if reading is None:
                        event.stopped.set()
                elif isinstance(event, VideoEnd):
                    self._end(self._videos.taken[event.key], event)
                elif reading is not None and not self._write(event):
                    reading.stopped.set()
                    reading = None

    def _live(self, settings: LiveSettings) -> None:
        """All videos played at their own rate, one after the other."""
        for taken in self._videos:
            job, threshold = taken.job, self._facts.score_threshold
            live = LiveDetector(self._detector, delay=settings.delay, policy=settings.policy, score_threshold=threshold)
            try:
                source = self._opener(job)()
                if self._begin(taken, source, source.declared_frames):
                    live.warm_up(source.height, source.width)
                    self._play(live, job, source, settings.watchers)
            except EXTERNAL as error:
                self._end(taken, failed(0, job.name, error))
                continue
            end = LiveEnd.of(source.status, source.problems, live.statistics)
            settings.watchers.end(end)
            frames = end.statistics.frames
            self._end(taken, VideoEnd(key=0, name=job.name, status=end.status, problems=end.problems, frames=frames))
            self._reporter.message(f"{job.name}: {end.statistics}")

    def _play(self, live: LiveDetector, job: Job, source: VideoSource, watchers: Watchers) -> None:
        stated = self._settings.mm_per_pixel
        scale = stated_scale(stated, source.pixel_aspect) if source.scale is None and stated else source.scale
        height, width = source.full_size
        watchers.begin(WatchedFeed(name=job.name, height=height, width=width, scale=scale, region=source.region))
        images = bool(watchers) or self._outputs.needs_images
        try:
            with closing(live(_paced(source), name=job.name, images=images)) as results:
                for result in results:
                    watchers.write(result)
                    if not self._write(result) and not watchers:
                        return
        except EXTERNAL as error:
            watchers.end(LiveEnd(status="corrupt", problems=(explain(error),), statistics=live.statistics))
            raise

    def _opener(self, job: Job) -> Callable[[], VideoSource]:
        return lambda: job.video.open(self._settings.fps, self._settings.full_frame)

    def _begin(self, taken: Taken, source: VideoSource, frames: int | None) -> bool:
        """Start a video; return whether its results can be written."""
        job = taken.job
        self._tally = _Tally(folder=job.folder)
        try:
            going = self._outputs.begin(
                VideoFacts(
                    name=job.name,
                    folder=job.folder,
                    source=source,
                    origin=job.video.origin,
                    frames=frames,
                    scale=self._scale(source),
                    dicom=job.video.paths[0] if job.video.dicom else None,
                )
            )
            self._records.begin(job, taken.contents)
        except EXTERNAL as error:
            self._outputs.abandon(error)
            self._tally.error = unwritable(job.folder, error) if isinstance(error, OSError) else error
            return False
        for note in source.notes:
            self._reporter.message(f"{job.name}: {note}")
        self._reporter.start(f"{self._videos.progress(taken)}: {job.name}", frames)
        return going

    def _scale(self, source: VideoSource) -> PixelScale | None:
        stated = self._settings.mm_per_pixel
        if stated is None:
            return source.scale
        scale = stated_scale(stated, source.pixel_aspect)
        if source.scale is None:
            return scale
        if not agree(source.scale, scale):
            self._reporter.message(
                f"warning: {source.name} states another size of pixels than --mm-per-pixel {stated}; its own is used"
            )
        return source.scale

    def _write(self, result: FrameResult) -> bool:
        timer, tally = self._detector.timer, self._tally
        with nullcontext() if timer is None else timer.stage("write"):
            going = self._outputs.write(result)
        tally.add(len(result.visible.above(self._facts.score_threshold).scores))
        self._reporter.advance(detail=f"{tally.frames / max(self._reporter.seconds, 1e-9):.1f} frames/s")
        return going

    def _end(self, taken: Taken, end: VideoEnd) -> None:
        tally, self._tally = self._tally, None
        own = tally is None or tally.error is None  # else it was not begun: another run may be at it
        if not own:
            end = failed(end.key, end.name, tally.error)
        if tally is None or not own:
            row = VideoSummary.of(end)
        else:
            row = self._written(end, tally)
        self.rows[end.name] = row
        if own:
            self._note(taken, row)
        if taken.claim is not None:
            taken.claim.release()

    def _written(self, end: VideoEnd, tally: "_Tally") -> VideoSummary:
        """Finish the results of a video."""
        if end.frames and end.error is None:
            whole = self._outputs.end(end)
            best = max(self._outputs.lesions, key=lambda lesion: lesion.score, default=None)
        else:
            whole, best = self._outputs.abandon(end.error or VideoError(f"{end.name}: no frame")), None
        return VideoSummary(
            name=end.name,
            status=end.status if whole else UNWRITTEN,
            problems=end.problems,
            frames=tally.frames,
            detections=tally.detections,
            frames_with_detections=tally.frames_with_detections,
            lesions=0 if best is None else len(self._outputs.lesions),
            lesion_class="" if best is None else class_name(self._facts.class_names, best.label),
            lesion_score=None if best is None else best.score,
            seconds=time.perf_counter() - tally.started,
            folder=str(tally.folder),
        )

    def _note(self, taken: Taken, row: VideoSummary) -> None:
        try:
            self._records.end(taken.job, taken.contents, row)
        except OSError as error:
            self._reporter.message(f"error: {taken.job.name}: {unwritable(self._records.folder(taken.job), error)}")


@dataclass(kw_only=True)
class _Tally:
    """What was written of a video so far."""

    folder: Path
    frames: int = 0
    detections: int = 0
    frames_with_detections: int = 0
    error: Exception | None = None

    def __post_init__(self) -> None:
        self.started = time.perf_counter()

    def add(self, detections: int) -> None:
        self.frames += 1
        self.detections += detections
        self.frames_with_detections += detections > 0


def _paced(source: VideoSource) -> Iterator:
    """Frames of a source, each not before its time."""
    start = time.perf_counter()
    for frame in source:
        time.sleep(max(0.0, frame.time - (time.perf_counter() - start)))
        yield frame
