"""The command line `infer.py` / `stnet-infer`: videos in, annotated videos and tables of detections out."""

import argparse
import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import stnet
from stnet import command_line
from stnet.console import Reporter, printable
from stnet.devices import resolve_device
from stnet.errors import ConfigError, VideoError
from stnet.execution.engine import DTYPES, EngineOptions
from stnet.inference.background import THREAD_PREFIX
from stnet.inference.common_list import Group
from stnet.inference.detector import DEFAULT_POINT, VideoDetector
from stnet.inference.explainer import Explainer
from stnet.inference.formats import DEFAULT_FORMATS, DICOM, DRAWN, EXPLAINED, EXPORT_FORMATS, FORMATS, STILL_FORMATS
from stnet.inference.jobs import Job, Part, by_picture_size, expand_lists, former_results, largest_first, plan_jobs
from stnet.inference.outputs import refuse_existing
from stnet.inference.records import Records
from stnet.inference.run import RunSettings, VideoRun
from stnet.inference.sink import RunFacts
from stnet.inference.study import Study
from stnet.inference.summary import WRITTEN, print_stages
from stnet.lesions import SCORE_THRESHOLD
from stnet.lesions.sizes import stated_scale
from stnet.model.checkpoint import DEFAULT_MODEL, fingerprint, load
from stnet.model.operating_points import OPERATING_POINTS
from stnet.video import DEFAULT_FPS, write_dicom_key

EXIT_OK, EXIT_PARTLY, EXIT_UNUSABLE = 0, 1, command_line.UNUSABLE

DESCRIPTION = """\
Find breast lesions in ultrasound videos.

INPUT is a video or DICOM file, a folder of frames or of such files (and of folders of them), a pattern in quotes, or
@FILE with such names, one a line; several may be given. Images of one folder are the frames of one video, masks beside
them (a_mask.png by a.png) left out; with --stills each stands for itself. For every video a folder is written under
--output:

  annotated.mp4     the video with boxes, numbers of lesions, classes and scores
  detections.json   up to 100 detections per frame, whatever their score
  detections.csv    frame, time, box, score, class, lesion and size of those with at least --score-threshold
  lesions.csv       one row per lesion: class, score, first and last frame, best frame with box and size

Boxes are in pixels of the original frames; the JSON file says how to read them. summary.csv has a line per video.
Only one run at a time writes to the folder of a video; a second one is refused there. --report adds one page about all
videos, report.html, for the browser.

Thousands of videos: `torchrun --nproc_per_node=8 infer.py STUDY --output DIR` takes them from one list, the largest
first, one process per GPU; --part 3/10 does the third of ten equal parts. Results that are finished are passed over
there and with --skip-existing, so that a call that is repeated goes on; those of another model, other settings or a
changed file are done again. Whoever ends last writes summary.csv and report.html.

DICOM files are called after a hash of their content, such as dicom-3f9a1c2b4d5e, the same in every call, and cut to
the scan regions that their header names. No patient data gets into any output, except what is burned into the pixels
that are used, and except --dicom-results. --dicom-key FILE writes which file has which name; that table is private.

Research software, not a medical device."""

EPILOG = """\
exit status: 0 all videos were read in full; 1 some were truncated, damaged or unusable, or some results could not be
written (what could be read was processed, and the other results are complete); 2 nothing could be used, or the command
was wrong; 130 interrupted (finished videos keep their results, the last one is named .partial). Under torchrun 0 also
where some were not in order, because it would stop the others: summary.csv tells

examples:
  infer.py clip.mp4
  infer.py study/*.mp4 'frames/case 7/*.png' --output results --score-threshold 0.5
  infer.py clip.mp4 --checkpoint runs/train/best.safetensors --device cuda --batch 16
  infer.py @videos.txt archive --output results --skip-existing --report"""


def command() -> None:
    """Run the command as a process, which ends here."""
    status = main()
    sys.stderr.flush()
    if any(thread.name.startswith(THREAD_PREFIX) for thread in threading.enumerate()):
        # After an error the model may still be at work (or compiling), which would abort a Python that tears down.
        os._exit(status)
    sys.exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; return its exit status."""
    arguments = _parser().parse_args(argv)
    first = os.environ.get("RANK", "0") == "0"
    with Reporter(stderr=True, progress=first) as reporter, _warnings_to(reporter):
        return command_line.run(lambda: _run(arguments, reporter))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="infer.py", description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("inputs", nargs="+", metavar="INPUT", help="video, folder or pattern; `--` before names with -")
    add = parser.add_argument
    add(
        "--checkpoint",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help="checkpoint, run folder or shipped model (default: %(default)s)",
    )
    add(
        "--output",
        type=Path,
        default=Path("runs/infer"),
        metavar="DIR",
        help="folder for results (default: %(default)s)",
    )
    add(
        "--formats",
        type=_format_names,
        metavar="A,B",
        help=f"what to write, of {', '.join(FORMATS)} (default: {','.join(DEFAULT_FORMATS)}; with --stills "
        f"{','.join(STILL_FORMATS)})",
    )
    add(
        "--export",
        type=_export_names,
        default=(),
        metavar="A,B",
        help=f"also write the lesions for annotation tools, of {', '.join(EXPORT_FORMATS)}",
    )
    add(
        "--explain",
        type=_positive,
        metavar="N",
        help="also tell where the model looked for the N lesions of each video with the highest scores: pictures in "
        "explained, points on the page of --report",
    )
    add(
        "--mm-per-pixel",
        type=_millimetres,
        metavar="MM",
        help="size of a pixel where a video states none: 0.08, or width,height as 0.08,0.1 (default: unknown)",
    )
    told = parser.add_mutually_exclusive_group()
    told.add_argument(
        "--operating-point",
        choices=OPERATING_POINTS,
        help="draw and list in the CSV detections, and tell lesions, from the score on that validation data chose for "
        f"the model, from finding most to fewest false alarms (default: {DEFAULT_POINT}, where the model has them)",
    )
    told.add_argument(
        "--score-threshold",
        type=_score,
        metavar="S",
        help=f"from this score on instead, 0 to 1 (default: {SCORE_THRESHOLD} for a model without operating points)",
    )
    add(
        "--duplicate-iou",
        type=float,
        metavar="IOU",
        help="drop detections that overlap a better one by more than this; 1: none (default: the model's setting)",
    )
    add(
        "--stills",
        action="store_true",
        help="images are no frames of a video: each, of whatever size, has results of its own with annotated.png",
    )
    add("--overwrite", action="store_true", help="replace the results of a former run")
    add(
        "--skip-existing",
        action="store_true",
        help="pass over videos with finished results of the same model, settings and file, and do the others",
    )
    add(
        "--part",
        type=_part,
        default=Part(),
        metavar="I/N",
        help="do the I-th of N parts of the videos, about equal in bytes (default: 1/1, all)",
    )
    add("--no-video", action="store_true", help="write no annotated video or picture: --formats without them")
    add(
        "--report",
        action="store_true",
        help="write report.html: frames, scores over time, video scores; as by --formats with report",
    )
    add("--full-frame", action="store_true", help="DICOM: use whole frames, burned-in text included")
    add(
        "--dicom-key",
        type=Path,
        metavar="FILE",
        help="write a private table of the DICOM files behind the names of results; one that exists is added to",
    )
    add(
        "--dicom-results",
        action="store_true",
        help="also write DICOM results of DICOM files, a structured report and annotated frames; they repeat name, "
        "number, birth date, sex and study of the patient",
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
    if arguments.live and arguments.explain:
        raise ConfigError("--explain does not work with --live: it reads the clips of a whole video once more")
    if arguments.live and arguments.stills:
        raise ConfigError("--live does not work with --stills, which have no frame rate to be played at")
    group = Group.from_environment()
    if arguments.overwrite and (arguments.skip_existing or group.launched):
        raise ConfigError(
            "--overwrite does not work with --skip-existing, nor under torchrun, whose processes could not tell each "
            "other's results from former ones; choose another --output to do all anew"
        )
    formats = _formats(arguments)
    jobs, missing = plan_jobs(expand_lists(arguments.inputs), arguments.output, arguments.stills)
    if not jobs:
        raise VideoError("; ".join(problem for row in missing for problem in row.problems))
    mine = arguments.part.of(jobs)
    resume = arguments.skip_existing or group.launched
    if not (arguments.overwrite or resume):
        # Of parts of one list only the last one finds the others' page.
        refuse_existing(former_results(mine, arguments.output, formats if len(mine) == len(jobs) else ()))
    if arguments.dicom_key is not None and group.rank == 0:
        write_dicom_key(arguments.dicom_key, [(job.name, job.video.paths[0]) for job in jobs if job.video.dicom])
    model = load(arguments.checkpoint)
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
    settings = RunSettings(
        formats=formats,
        overwrite=arguments.overwrite,
        fps=arguments.fps,
        full_frame=arguments.full_frame,
        mm_per_pixel=arguments.mm_per_pixel,
        live_delay=arguments.delay if arguments.live else None,
    )
    if detector.provenance is not None and group.rank == 0:
        reporter.message(
            f"model {Path(arguments.checkpoint).name}, trained on {printable(detector.provenance.trained_on)}"
        )
    facts = _facts(arguments, detector, len(jobs))
    made_by = {"model": fingerprint(model), **_made_by(detector, facts, arguments)}
    study = Study(jobs, missing, mine, Records(arguments.output, made_by, formats), facts, reporter)
    videos = study.share(group, _order(group, arguments.stills), resume)
    if group.launched and not arguments.skip_existing:
        videos.refuse_changed()
    run = VideoRun(detector, videos, study.records, facts, settings, reporter)
    run.all()
    rows = study.conclude(run.rows, group, "report" in formats)
    if detector.timer is not None:
        print_stages(detector.timer.seconds, sum(row.frames for row in run.rows.values()))
    if group.launched:
        return EXIT_OK
    if not any(row.frames and row.status in WRITTEN for row in rows):
        print("error: no video could be used", file=sys.stderr)
        return EXIT_UNUSABLE
    return EXIT_OK if all(row.status == "ok" for row in rows) and not (run.broken or study.broken) else EXIT_PARTLY


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
        "targets": arguments.targets,
        "score threshold": facts.score_threshold,
        "explained lesions": arguments.explain,
        "duplicate IoU": detector.config.duplicate_iou,
        "frame rate": str(arguments.fps),
        "full frame": arguments.full_frame,
        "stills": arguments.stills,
        "mm per pixel": arguments.mm_per_pixel,
        "live delay": arguments.delay if arguments.live else None,
    }


def _threshold(arguments: argparse.Namespace, detector: VideoDetector) -> float:
    return detector.score_threshold if arguments.score_threshold is None else arguments.score_threshold


def _facts(arguments: argparse.Namespace, detector: VideoDetector, videos: int) -> RunFacts:
    engine, threshold = detector.engine, _threshold(arguments, detector)
    point = detector.operating_point if arguments.score_threshold is None else None
    model = {"checkpoint": arguments.checkpoint, "targets": arguments.targets, "dtype": engine.dtype_name}
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


@contextmanager
def _warnings_to(reporter: Reporter) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        warnings.showwarning = lambda message, *_: reporter.message(f"warning: {message}")
        yield


def _format_names(text: str) -> tuple[str, ...]:
    return _names(text, FORMATS)


def _export_names(text: str) -> tuple[str, ...]:
    return _names(text, EXPORT_FORMATS)


def _names(text: str, known: Collection[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names or any(name not in known for name in names):
        raise argparse.ArgumentTypeError(f"{text!r}: expected names of {', '.join(known)}, separated by commas")
    return names


def _millimetres(text: str) -> str:
    try:
        stated_scale(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _part(text: str) -> Part:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with I from 1 to N, such as 3/10")
    return Part(number=int(found[1]), count=int(found[2]))


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
