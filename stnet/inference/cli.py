"""The command line `infer.py` / `stnet-infer`: videos in, annotated videos and tables of detections out."""

import argparse
import os
import sys
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

from stnet.errors import ConfigError, StnetError, VideoError
from stnet.inference.console import Reporter, VideoSummary
from stnet.inference.detector import VideoDetector
from stnet.inference.engine import DTYPES, EngineOptions
from stnet.inference.live import LiveDetector
from stnet.inference.outputs import VideoOutputs, existing_outputs
from stnet.inference.pipeline import THREAD_PREFIX
from stnet.inference.reading import VideoEnd, VideoStart
from stnet.inference.report import REPORT_NAME, ReportPage
from stnet.inference.results import FrameResult
from stnet.video import DEFAULT_FPS, VideoInput, VideoSource, find_inputs, write_dicom_key

EXIT_OK, EXIT_PARTLY, EXIT_UNUSABLE, EXIT_INTERRUPTED = 0, 1, 2, 130

SCORE_THRESHOLD = 0.4
"""Default score from which detections are drawn and listed in the CSV file."""

DESCRIPTION = """\
Find breast lesions in ultrasound videos.

INPUT is a video or DICOM file, a folder of frames or of such files, or a pattern in quotes; several may be given.
Images of one folder are the frames of one video. For every video a folder is written under --output:

  annotated.mp4     the video with boxes, classes and scores
  detections.json   up to 100 detections per frame, whatever their score
  detections.csv    frame, time, x0, y0, x1, y1, score, class of those with at least --score-threshold

Boxes are in pixels of the original frames. --report adds one page about all videos, report.html, for the browser.

DICOM files are called after a hash of their content, such as dicom-3f9a1c2b4d5e, the same in every call, and cut to
the scan regions that their header names. No patient data gets into any output, except what is burned into the pixels
that are used. --dicom-key FILE writes which file has which name; that table is private.

Research software, not a medical device."""

EPILOG = """\
exit status: 0 all videos were read in full; 1 some were truncated, damaged or unusable (what could be read was
processed); 2 nothing could be used, or the command was wrong; 130 interrupted (finished videos keep their results)

examples:
  infer.py clip.mp4
  infer.py study/*.mp4 'frames/case 7/*.png' --output results --score-threshold 0.5
  infer.py clip.mp4 --checkpoint runs/train/best.safetensors --device cuda --batch 16"""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One video and the folder for its results."""

    name: str
    video: VideoInput
    folder: Path


def command() -> None:
    """Run the command as a process, which ends here."""
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    if any(thread.name.startswith(THREAD_PREFIX) for thread in threading.enumerate()):
        # After an error the model may still be at work (or compiling), which would abort a Python that tears down.
        os._exit(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit status."""
    arguments = _parser().parse_args(argv)
    try:
        with Reporter() as reporter, _warnings_to(reporter):
            return _run(arguments, reporter)
    except StnetError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_UNUSABLE
    except KeyboardInterrupt:
        print("interrupted; finished videos keep their results, the last one is named .partial", file=sys.stderr)
        return EXIT_INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="infer.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="video, folder or pattern; `--` before names with -")
    add = parser.add_argument
    add("--checkpoint", default="tiny", metavar="MODEL", help="checkpoint file or shipped model (default: %(default)s)")
    add("--output", type=Path, default=Path("runs/infer"), metavar="DIR", help="default: %(default)s")
    add(
        "--score-threshold",
        type=_score,
        default=SCORE_THRESHOLD,
        metavar="S",
        help="draw and list in the CSV detections from this score on, 0 to 1 (default: %(default)s)",
    )
    add(
        "--duplicate-iou",
        type=float,
        metavar="IOU",
        help="drop detections that overlap a better one by more than this; 1: none (default: the model's setting)",
    )
    add("--overwrite", action="store_true", help="replace the results of a former run")
    add("--no-video", action="store_true", help="write no annotated video")
    add(
        "--report",
        action="store_true",
        help="write report.html: frames, scores over time, video scores",
    )
    add("--full-frame", action="store_true", help="DICOM: use whole frames, burned-in text included")
    add(
        "--dicom-key",
        type=Path,
        metavar="FILE",
        help="write a private table of the DICOM files behind the names of results; one that exists is added to",
    )
    add(
        "--fps",
        type=_fps,
        default=DEFAULT_FPS,
        metavar="F",
        help="frame rate of images (default: %(default)s)",
    )
    speed = parser.add_argument_group("execution")
    add = speed.add_argument
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add("--dtype", choices=tuple(DTYPES), help="default: float16 on a GPU, float32 on a CPU")
    add("--batch", type=_positive, metavar="N", help="clips at once (default: 8 on a GPU, 1 on a CPU)")
    add(
        "--targets",
        type=_positive,
        default=3,
        metavar="N",
        help="frames predicted per clip; 1 is the slower single-frame mode (default: %(default)s)",
    )
    add("--compile", action="store_true", help="torch.compile the model: minutes of preparation, for long runs")
    add("--profile", action="store_true", help="print the time spent in each stage")
    live = parser.add_argument_group("live mode")
    add = live.add_argument
    add("--live", action="store_true", help="play the videos at their frame rate as if they came from a scanner")
    add("--delay", type=int, choices=(0, 1), default=0, help="frames of delay in live mode (default: %(default)s)")
    return parser


def _run(arguments: argparse.Namespace, reporter: Reporter) -> int:
    if arguments.live and arguments.profile:
        raise ConfigError("--profile does not work with --live, which reports latencies instead")
    jobs, missing = _jobs(arguments.inputs, arguments.output)
    if not jobs:
        raise VideoError("; ".join(problem for row in missing for problem in row.problems))
    _refuse_existing(jobs, arguments)
    if arguments.dicom_key is not None:
        write_dicom_key(arguments.dicom_key, [(job.name, job.video.paths[0]) for job in jobs if job.video.dicom])
    detector = VideoDetector(
        arguments.checkpoint,
        device=arguments.device,
        dtype=arguments.dtype,
        targets=arguments.targets,
        batch=arguments.batch,
        duplicate_iou=arguments.duplicate_iou,
        options=EngineOptions(compile=arguments.compile),
        profile=arguments.profile,
    )
    rows = _Run(arguments, detector, reporter, jobs, missing).all()
    reporter.summary(rows, arguments.score_threshold)
    if detector.timer is not None:
        reporter.stages(detector.timer.seconds, sum(row.frames for row in rows))
    if not any(row.frames for row in rows):
        print("error: no video could be used", file=sys.stderr)
        return EXIT_UNUSABLE
    return EXIT_OK if all(row.status == "ok" for row in rows) else EXIT_PARTLY


def _jobs(names: Sequence[str], output: Path) -> tuple[list[Job], list[VideoSummary]]:
    """A job for every video that the names stand for, and a row for every name that stands for nothing."""
    usable, missing = [], []
    for position, name in enumerate(names, start=1):
        try:
            find_inputs([name])
        except VideoError as error:
            missing.append(VideoSummary(name=f"input {position}", status="unreadable", problems=(str(error),)))
        else:
            usable.append(name)
    jobs, taken = [], set()
    for video in find_inputs(usable):
        folder, number = video.name, 1
        while folder in taken:
            number += 1
            folder = f"{video.name}-{number}"
        taken.add(folder)
        jobs.append(Job(name=folder, video=video, folder=output / folder))
    return jobs, missing


def _refuse_existing(jobs: list[Job], arguments: argparse.Namespace) -> None:
    existing = [str(path) for job in jobs for path in existing_outputs(job.folder)]
    report = arguments.output / REPORT_NAME
    if arguments.report and report.exists():
        existing.append(str(report))
    if existing and not arguments.overwrite:
        more = f" and {len(existing) - 3} more" if len(existing) > 3 else ""
        raise ConfigError(
            f"results exist already: {', '.join(existing[:3])}{more}; add --overwrite to replace them, "
            "or choose another --output"
        )


class _Run:
    """Writes what the detector finds, video after video."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        detector: VideoDetector,
        reporter: Reporter,
        jobs: list[Job],
        missing: list[VideoSummary],
    ) -> None:
        self._arguments, self._detector, self._reporter, self._jobs = arguments, detector, reporter, jobs
        self._missing, self._rows = missing, list(missing)
        self._outputs: VideoOutputs | None = None
        self._started = 0.0
        self._report: ReportPage | None = None

    def all(self) -> list[VideoSummary]:
        """All videos, and the report of them where it is asked for."""
        if not self._arguments.report:
            return self._videos()
        self._report = self._page()
        try:
            rows = self._videos()
            for row in self._missing:
                self._report.end(row.name, row.status, row.problems)
        except BaseException as error:
            self._report.abandon(error)
            raise
        self._reporter.note(f"report: {self._report.finish()}")
        return rows

    def _videos(self) -> list[VideoSummary]:
        return self._live() if self._arguments.live else self._offline()

    @property
    def _images(self) -> bool:
        """Whether results have to carry their frames."""
        return self._arguments.report or not self._arguments.no_video

    def _page(self) -> ReportPage:
        arguments, engine = self._arguments, self._detector.engine
        try:
            arguments.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise VideoError(
                f"{arguments.output}: cannot be written to ({error.strerror}); choose another --output"
            ) from error
        facts = {
            "Model": Path(arguments.checkpoint).name,
            "Device": f"{engine.device}, {engine.dtype_name}",
            "Score threshold": f"{arguments.score_threshold:g}",
            "Mode": f"live, {arguments.delay} frames of delay" if arguments.live else "whole videos",
        }
        names = self._detector.class_names
        return ReportPage(arguments.output, facts, names, arguments.score_threshold, len(self._jobs))

    def _offline(self) -> list[VideoSummary]:
        """All videos by clips over their whole length."""
        videos = [(job.name, self._opener(job)) for job in self._jobs]
        # Closed whatever happens, which stops the threads that read and run the model.
        with closing(self._detector.events(videos, images=self._images)) as events, self._abandoning():
            for event in events:
                if isinstance(event, VideoStart):
                    self._begin(self._jobs[event.key], event.source, event.length)
                elif isinstance(event, FrameResult):
                    self._write(event)
                else:
                    self._end(event)
        return self._rows

    def _live(self) -> list[VideoSummary]:
        """All videos played at their own rate, one after the other."""
        for job in self._jobs:
            try:
                source = self._opener(job)()
            except VideoError as error:
                self._end(_unusable(job.name, error))
                continue
            live = LiveDetector(self._detector, delay=self._arguments.delay)
            with self._abandoning():
                self._begin(job, source, source.declared_frames)
                with closing(live(_paced(source), name=job.name, images=self._images)) as results:
                    for result in results:
                        self._write(result)
                frames = live.statistics.frames
                self._end(VideoEnd(key=0, name=job.name, status=source.status, problems=source.problems, frames=frames))
            statistics = live.statistics
            self._reporter.note(
                f"{job.name}: latency median {statistics.median * 1000:.1f} ms, 99th percentile "
                f"{statistics.percentile_99 * 1000:.1f} ms; {statistics.dropped} frames dropped (drop-oldest)"
            )
        return self._rows

    def _opener(self, job: Job):
        return lambda: job.video.open(self._arguments.fps, self._arguments.full_frame)

    def _begin(self, job: Job, source: VideoSource, frames: int | None) -> None:
        self._outputs = VideoOutputs(
            job.folder,
            source,
            origin=job.video.origin,
            model={
                "checkpoint": self._arguments.checkpoint,
                "targets": self._arguments.targets,
                "dtype": self._detector.engine.dtype_name,
            },
            class_names=self._detector.class_names,
            score_threshold=self._arguments.score_threshold,
            video=not self._arguments.no_video,
        )
        if self._report is not None:
            self._report.begin(job.name, source, frames)
        for note in source.notes:
            self._reporter.note(f"{job.name}: {note}")
        self._started = time.perf_counter()
        self._reporter.begin(job.name, frames)

    def _write(self, result: FrameResult) -> None:
        timer = self._detector.timer
        with nullcontext() if timer is None else timer.stage("write"):
            self._outputs.write(result)
            if self._report is not None:
                self._report.write(result)
        self._reporter.advance()

    def _end(self, end: VideoEnd) -> None:
        outputs, self._outputs = self._outputs, None
        if self._report is not None:
            self._report.end(end.name, end.status, end.problems)
        if outputs is None:
            self._rows.append(VideoSummary(name=end.name, status=end.status, problems=end.problems))
            return
        if end.frames:
            outputs.finish(end.status, end.problems)
        else:
            outputs.abandon(end.error or VideoError(f"{end.name}: no frame"))
        self._rows.append(
            VideoSummary(
                name=end.name,
                status=end.status,
                problems=end.problems,
                frames=outputs.frames,
                detections=outputs.detections,
                frames_with_detections=outputs.frames_with_detections,
                seconds=time.perf_counter() - self._started,
                folder=str(outputs.folder),
            )
        )

    @contextmanager
    def _abandoning(self) -> Iterator[None]:
        """Leave the files of a video that was not finished under their partial names."""
        try:
            yield
        except BaseException as error:
            if self._outputs is not None:
                self._outputs.abandon(error)
            raise


def _unusable(name: str, error: VideoError) -> VideoEnd:
    return VideoEnd(key=0, name=name, status="unreadable", problems=(str(error),), frames=0, error=error)


def _paced(source: VideoSource) -> Iterator:
    """Frames of a source, each not before its time."""
    start = time.perf_counter()
    for frame in source:
        time.sleep(max(0.0, frame.time - (time.perf_counter() - start)))
        yield frame


@contextmanager
def _warnings_to(reporter: Reporter) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_: reporter.note(f"warning: {message}")
        yield


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} must be at least 1")
    return value


def _score(text: str) -> float:
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text} must lie between 0 and 1")
    return value


def _fps(text: str) -> Fraction:
    try:
        value = Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"{text} is no number such as 25, 29.97 or 30000/1001") from error
    if not 0 < value <= 1000:
        raise argparse.ArgumentTypeError(f"{text} must lie above 0 and at most at 1000")
    return value


if __name__ == "__main__":
    command()
