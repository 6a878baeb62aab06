"""Many videos, one after the other: each read, looked at, written and summed up, whatever happens to the others."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from stnet.console import Reporter
from stnet.errors import EXTERNAL, VideoError
from stnet.inference.clip_reader import VideoEnd, VideoStart, failed
from stnet.inference.detector import VideoDetector
from stnet.inference.formats import PER_RUN, PER_VIDEO
from stnet.inference.frame_results import FrameResult
from stnet.inference.live import LiveDetector
from stnet.inference.outputs import Outputs, unwritable
from stnet.inference.sink import RunFacts, VideoFacts
from stnet.inference.summary import VideoSummary
from stnet.lesions.sizes import agree, stated_scale
from stnet.video import VideoInput, VideoSource, find_inputs
from stnet.video.dicom_header import DICOM_SUFFIXES
from stnet.video.scale import PixelScale

UNWRITTEN = "unwritten"
"""Status of a video of which not all results could be written."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video and the folder for its results."""

    name: str
    video: VideoInput
    folder: Path


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What a run does beside what its detector does.

    Attributes:
        formats: names of `stnet.inference.formats.FORMATS`.
        overwrite: replace the results of a former run.
        fps: frame rate of inputs that state none.
        full_frame: use whole frames of DICOM files, not only their scan region.
        mm_per_pixel: the size of pixels where a video states none, as `--mm-per-pixel` takes it; None: unknown.
        live_delay: play the videos at their own rate, answering after so many frames; None: by clips over whole videos.
    """

    formats: tuple[str, ...]
    overwrite: bool
    fps: Fraction
    full_frame: bool
    mm_per_pixel: str | None
    live_delay: int | None


def plan_jobs(names: Sequence[str], output: Path) -> tuple[list[Job], list[VideoSummary]]:
    """Return a job for every video that the names stand for, and a row for every name that stands for nothing."""
    videos, missing = _found(names)
    # Not only equal names clash: some file systems do not tell capital letters, and the run's own files lie there too.
    jobs, taken = [], {name for file_name in PER_RUN for name in (file_name, f"{file_name}.partial")}
    for video in videos:
        wanted = video.name if video.name not in ("", ".", "..") else "video"
        name, number = wanted, 1
        while name.casefold() in taken:
            number += 1
            name = f"{wanted}-{number}"
        taken.add(name.casefold())
        jobs.append(Job(name=name, video=video, folder=output / name))
    return jobs, missing


def former_results(jobs: Sequence[Job], output: Path, formats: Sequence[str]) -> list[Path]:
    """Return the paths of all files of results that a run may find or will write."""
    of_run = [output / name for name in PER_RUN if "report" in formats]
    return of_run + [job.folder / name for job in jobs for name in PER_VIDEO]


def _found(names: Sequence[str]) -> tuple[list[VideoInput], list[VideoSummary]]:
    try:
        return find_inputs(names), []
    except EXTERNAL:
        pass  # which of them it is, is told by asking for each; together they give images of one folder one name
    usable, missing = [], []
    for position, name in enumerate(names, start=1):
        try:
            find_inputs([name])
        except EXTERNAL as error:
            missing.append(_row(_missing(position, name, error)))
        else:
            usable.append(name)
    return find_inputs(usable), missing


def _missing(position: int, name: str, error: Exception) -> VideoEnd:
    """The end of an input that stands for nothing, for the table and the report: no place for names of DICOM files."""
    if Path(name).suffix.lower() not in DICOM_SUFFIXES:
        return failed(0, name, error)
    known = f"input {position}"
    what = "no such DICOM file; its name, which may tell a patient, is not repeated"
    return failed(0, known, VideoError(f"{known}: {what}"))


class VideoRun:
    """Writes what a detector finds in videos.

    A video that cannot be read, computed or written costs its own results alone.

    Args:
        detector: finds lesions.
        jobs: the videos.
        facts: what is told about the run in its results.
        settings: what is written, and how videos are played.
        reporter: shows progress and messages.

    Raises:
        OSError, StnetError: the output folder cannot be written to.
    """

    def __init__(
        self, detector: VideoDetector, jobs: Sequence[Job], facts: RunFacts, settings: RunSettings, reporter: Reporter
    ) -> None:
        self._detector, self._jobs, self._facts, self._settings = detector, jobs, facts, settings
        self._reporter = reporter
        self._outputs = Outputs(settings.formats, facts, settings.overwrite, reporter.message)
        self._rows: list[VideoSummary] = []
        self._tally: _Tally | None = None

    @property
    def broken(self) -> bool:
        """Whether any result could not be written."""
        return self._outputs.broken

    def all(self, missing: Sequence[VideoSummary] = ()) -> list[VideoSummary]:
        """Do all videos, and list those in the results that were named but are missing.

        Returns:
            A row for each, those that are missing first.
        """
        try:
            if self._settings.live_delay is None:
                self._offline()
            else:
                self._live(self._settings.live_delay)
            for row in missing:
                self._outputs.end(VideoEnd(key=0, name=row.name, status=row.status, problems=row.problems, frames=0))
        except BaseException as error:
            self._outputs.abandon(error)
            self._outputs.close(error)
            raise
        self._outputs.close()
        return [*missing, *self._rows]

    def _offline(self) -> None:
        """All videos by clips over their whole length."""
        videos = [(job.name, self._opener(job)) for job in self._jobs]
        reading: VideoStart | None = None  # the video whose results are written
        # Closed whatever happens, which stops the threads that read and run the model.
        with closing(self._detector.events(videos, images=self._outputs.needs_images)) as events:
            for event in events:
                if isinstance(event, VideoStart):
                    reading = event if self._begin(self._jobs[event.key], event.source, event.length) else None
                    if reading is None:
                        event.stopped.set()
                elif isinstance(event, VideoEnd):
                    self._end(event)
                elif reading is not None and not self._write(event):
                    reading.stopped.set()
                    reading = None

    def _live(self, delay: int) -> None:
        """All videos played at their own rate, one after the other."""
        for job in self._jobs:
            live = LiveDetector(self._detector, delay=delay)
            try:
                source = self._opener(job)()
                if self._begin(job, source, source.declared_frames):
                    self._play(live, job, source)
            except EXTERNAL as error:
                self._end(failed(0, job.name, error))
                continue
            frames = live.statistics.frames
            self._end(VideoEnd(key=0, name=job.name, status=source.status, problems=source.problems, frames=frames))
            statistics = live.statistics
            self._reporter.message(
                f"{job.name}: latency median {statistics.median * 1000:.1f} ms, 99th percentile "
                f"{statistics.percentile_99 * 1000:.1f} ms; {statistics.dropped} frames dropped (drop-oldest)"
            )

    def _play(self, live: LiveDetector, job: Job, source: VideoSource) -> None:
        with closing(live(_paced(source), name=job.name, images=self._outputs.needs_images)) as results:
            for result in results:
                if not self._write(result):
                    return

    def _opener(self, job: Job) -> Callable[[], VideoSource]:
        return lambda: job.video.open(self._settings.fps, self._settings.full_frame)

    def _begin(self, job: Job, source: VideoSource, frames: int | None) -> bool:
        """Start a video; return whether its results can be written."""
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
        except EXTERNAL as error:
            self._tally.error = unwritable(job.folder, error) if isinstance(error, OSError) else error
            return False
        for note in source.notes:
            self._reporter.message(f"{job.name}: {note}")
        self._reporter.start(job.name, frames)
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

    def _end(self, end: VideoEnd) -> None:
        tally, self._tally = self._tally, None
        if tally is not None and tally.error is not None:  # could not be begun: nothing was written
            end = failed(end.key, end.name, tally.error)
            tally = None
        if tally is None:
            self._outputs.end(end)
            self._rows.append(_row(end))
            return
        if end.frames and end.error is None:
            whole = self._outputs.end(end)
        else:
            whole = self._outputs.abandon(end.error or VideoError(f"{end.name}: no frame"))
        self._rows.append(_row(end, tally, None if whole else UNWRITTEN))


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


def _row(end: VideoEnd, tally: _Tally | None = None, status: str | None = None) -> VideoSummary:
    if tally is None:
        return VideoSummary(name=end.name, status=status or end.status, problems=end.problems)
    return VideoSummary(
        name=end.name,
        status=status or end.status,
        problems=end.problems,
        frames=tally.frames,
        detections=tally.detections,
        frames_with_detections=tally.frames_with_detections,
        seconds=time.perf_counter() - tally.started,
        folder=str(tally.folder),
    )


def _paced(source: VideoSource) -> Iterator:
    """Frames of a source, each not before its time."""
    start = time.perf_counter()
    for frame in source:
        time.sleep(max(0.0, frame.time - (time.perf_counter() - start)))
        yield frame
