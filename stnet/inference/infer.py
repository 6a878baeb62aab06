"""What `infer.py` does, once it is known what is asked of it."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import stnet
from stnet import command_line
from stnet.console import Reporter, printable
from stnet.devices import resolve_device
from stnet.errors import ConfigError
from stnet.execution.engine import EngineOptions
from stnet.inference.common_list import Group
from stnet.inference.detector import VideoDetector
from stnet.inference.explainer import Explainer
from stnet.inference.format_names import DEFAULT_FORMATS, DICOM, DRAWN, EXPLAINED, STILL_FORMATS
from stnet.inference.jobs import Job, Part, by_picture_size, former_results, largest_first, plan_jobs
from stnet.inference.live_command import live_settings, play_feed
from stnet.inference.names import Names
from stnet.inference.outputs import refuse_existing
from stnet.inference.records import Records
from stnet.inference.run import RunSettings, VideoRun
from stnet.inference.sink import RunFacts
from stnet.inference.study import Study
from stnet.inference.summary import WRITTEN, print_stages
from stnet.model.checkpoint import fingerprint, load
from stnet.model.detector import Detector
from stnet.video import write_dicom_key
from stnet.video.feed_names import FeedName

EXIT_OK, EXIT_PARTLY, EXIT_UNUSABLE = 0, 1, command_line.UNUSABLE


def infer(arguments: argparse.Namespace, names: Names, reporter: Reporter) -> int:
    """Find lesions in videos, and write what was found.

    Args:
        arguments: of the parser in `options.py`.
        names: what they name.
        reporter: shows progress and messages.

    Returns:
        The exit status.

    Raises:
        OSError, StnetError: nothing can be done.
    """
    _check_live(arguments)
    group = Group.from_environment()
    if arguments.overwrite and (arguments.skip_existing or group.launched):
        raise ConfigError(
            "--overwrite does not work with --skip-existing, nor under torchrun, whose processes could not tell each "
            "other's results from former ones; choose another --output to do all anew"
        )
    formats = _formats(arguments)
    jobs, missing = plan_jobs(names, arguments.output)
    mine = Part(*arguments.part).of(jobs)
    resume = arguments.skip_existing or group.launched
    if not (arguments.overwrite or resume):
        # Of parts of one list only the last one finds the others' page.
        refuse_existing(former_results(mine, arguments.output, formats if len(mine) == len(jobs) else ()))
    if arguments.dicom_key is not None and group.rank == 0:
        write_dicom_key(arguments.dicom_key, [(job.name, job.video.paths[0]) for job in jobs if job.video.dicom])
    model = load(arguments.checkpoint)
    detector = _detector(model, group, arguments, reporter)
    facts = _facts(arguments, detector, len(jobs))
    made_by = {"model": fingerprint(model), **_made_by(detector, facts, arguments)}
    study = Study(jobs, missing, mine, Records(arguments.output, made_by, formats), facts, reporter)
    videos = study.share(group, _order(group, arguments.stills), resume)
    if group.launched and not arguments.skip_existing:
        videos.refuse_changed()
    with live_settings(arguments, facts, reporter) as live:
        settings = RunSettings(
            formats=formats,
            overwrite=arguments.overwrite,
            fps=arguments.fps,
            full_frame=arguments.full_frame,
            mm_per_pixel=arguments.mm_per_pixel,
            live=live,
        )
        run = VideoRun(detector, videos, study.records, facts, settings, reporter)
        run.all()
        rows = study.conclude(run.rows, group, "report" in formats)
    told = live is None or not live.watchers.broken
    if detector.timer is not None:
        print_stages(detector.timer.seconds, sum(row.frames for row in run.rows.values()))
    if group.launched:
        return EXIT_OK
    if not any(row.frames and row.status in WRITTEN for row in rows):
        print("error: no video could be used", file=sys.stderr)
        return EXIT_UNUSABLE
    whole = told and not (run.broken or study.broken)
    return EXIT_OK if all(row.status == "ok" for row in rows) and whole else EXIT_PARTLY


def answer_feed(arguments: argparse.Namespace, feed: FeedName, reporter: Reporter) -> int:
    """Find lesions in a feed until it ends.

    Args:
        arguments: of the parser in `options.py`.
        feed: what they name.
        reporter: shows progress and messages.

    Returns:
        The exit status.

    Raises:
        OSError, StnetError: nothing can be done.
    """
    _check_live(arguments)
    group = Group.from_environment()
    if group.launched:
        raise ConfigError(f"{feed.shown}: a feed goes to one process; leave torchrun out")
    detector = _detector(load(arguments.checkpoint), group, arguments, reporter)
    facts = _facts(arguments, detector, 1)
    rows, told = play_feed(feed, arguments, detector, facts, _formats(arguments), reporter)
    return EXIT_OK if told and all(row.status == "ok" for row in rows) else EXIT_PARTLY


def _check_live(arguments: argparse.Namespace) -> None:
    if arguments.live and arguments.profile:
        raise ConfigError("--profile does not work with --live, which reports latencies instead")
    if arguments.live and arguments.explain:
        raise ConfigError("--explain does not work with --live: it reads the clips of a whole video once more")
    if arguments.live and arguments.stills:
        raise ConfigError("--live does not work with --stills, which have no frame rate to be played at")
    if arguments.live and arguments.export and not arguments.every_frame:
        raise ConfigError(
            "--export with --live needs --every-frame: annotation tools would take frames that are dropped for frames "
            "without a lesion"
        )


def _detector(model: Detector, group: Group, arguments: argparse.Namespace, reporter: Reporter) -> VideoDetector:
    """Return what finds lesions; tell once what it was trained on."""
    detector = VideoDetector(
        model,
        device=str(resolve_device(arguments.device or "auto", group.local_rank)),
        dtype=arguments.dtype,
        targets=arguments.targets,
        batch=arguments.batch,
        duplicate_iou=arguments.duplicate_iou,
        operating_point=arguments.operating_point,
        options=EngineOptions(compile=arguments.compile),
        profile=arguments.profile,
    )
    if detector.provenance is not None and group.rank == 0:
        trained_on = printable(detector.provenance.trained_on)
        reporter.message(f"model {Path(arguments.checkpoint).name}, trained on {trained_on}")
    return detector


def _order(group: Group, stills: bool) -> Callable[[Sequence[Job]], Sequence[int]]:
    """Return in which order videos are taken: as they were named, unless another one makes them ready earlier."""
    if stills:
        return by_picture_size
    return largest_first if group.size > 1 else lambda jobs: range(len(jobs))


def _made_by(detector: VideoDetector, facts: RunFacts, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return what results depend on beside the weights and the video, by names that a user knows."""
    return {
        "version of stnet": stnet.__version__,
        "dtype": detector.engine.dtype_name,
        "targets": _targets(arguments),
        "score threshold": facts.score_threshold,
        "explained lesions": arguments.explain,
        "duplicate IoU": detector.config.duplicate_iou,
        "frame rate": str(arguments.fps),
        "full frame": arguments.full_frame,
        "stills": arguments.stills,
        "mm per pixel": arguments.mm_per_pixel,
        "live delay": arguments.delay if arguments.live else None,
        "every frame": arguments.every_frame,
    }


def _targets(arguments: argparse.Namespace) -> int:
    """Return how many frames of a clip are predicted: the newest one alone in the live mode."""
    return 1 if arguments.live else arguments.targets


def _threshold(arguments: argparse.Namespace, detector: VideoDetector) -> float:
    return detector.score_threshold if arguments.score_threshold is None else arguments.score_threshold


def _facts(arguments: argparse.Namespace, detector: VideoDetector, videos: int) -> RunFacts:
    engine, threshold = detector.engine, _threshold(arguments, detector)
    point = detector.operating_point if arguments.score_threshold is None else None
    model = {"checkpoint": arguments.checkpoint, "targets": _targets(arguments), "dtype": engine.dtype_name}
    model |= {"calibrated": detector.operating_points is not None, "score_threshold": threshold}
    shown = {"Model": Path(arguments.checkpoint).name}
    if detector.provenance is not None:
        model["trained_on"] = shown["Trained on"] = detector.provenance.trained_on
    return RunFacts(
        output=arguments.output,
        videos=videos,
        class_names=detector.class_names,
        score_threshold=threshold,
        model=model,
        shown=shown
        | {
            "Device": f"{engine.device}, {engine.dtype_name}",
            "Score threshold": f"{threshold:.3g}" + (f", the {point} operating point" if point else ""),
            "Mode": f"live, {arguments.delay} frames of delay" if arguments.live else "whole videos",
        },
        explain=Explainer(detector, arguments.explain) if arguments.explain else None,
    )


def _formats(arguments: argparse.Namespace) -> tuple[str, ...]:
    """Return the names of the formats to write; --no-video and --report change the list of --formats."""
    chosen = arguments.formats or (STILL_FORMATS if arguments.stills else DEFAULT_FORMATS)
    names = [name for name in chosen if not (arguments.no_video and name in DRAWN)]
    if arguments.report and "report" not in names:
        names.append("report")
    if not names:
        raise ConfigError("--no-video leaves no format to write; name another one with --formats")
    asked = ((EXPLAINED, arguments.explain), (DICOM, arguments.dicom_results))
    return (*names, *arguments.export, *(name for name, wanted in asked if wanted))
