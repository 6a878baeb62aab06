"""The options of `infer.py`: nothing that computes is imported for them."""

import argparse
import re
from collections.abc import Collection
from fractions import Fraction
from pathlib import Path

from stnet.choices import DEFAULT_FPS, DEFAULT_MODEL, DEFAULT_POINT, DTYPE_NAMES, OPERATING_POINTS, SCORE_THRESHOLD
from stnet.errors import ConfigError
from stnet.inference.format_names import DEFAULT_FORMATS, EXPORT_NAMES, FORMAT_NAMES, STILL_FORMATS
from stnet.inference.live_options import add_live_options

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

With --live, INPUT may be a feed instead: a camera, an address rtsp://, udp:// or tcp://, a named pipe, or - for
standard input. Results go to folders called after the feed and the time, a new one every 30 minutes (docs/live.md).

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
  infer.py --live rtsp://scanner.local/stream --view
  infer.py @videos.txt archive --output results --skip-existing --report"""


def build_parser(prog: str = "infer.py") -> argparse.ArgumentParser:
    """Return the parser of `infer.py`."""
    parser = argparse.ArgumentParser(
        prog=prog, description=DESCRIPTION, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "inputs", nargs="+", metavar="INPUT", help="video, folder, pattern or feed; `--` before names with -"
    )
    parser.add_argument(
        "--checkpoint",
        default=DEFAULT_MODEL,
        metavar="MODEL",
        help="checkpoint, run folder or shipped model (default: %(default)s)",
    )
    _add_results(parser.add_argument_group("results"))
    _add_detections(parser.add_argument_group("detections"))
    _add_inputs(parser.add_argument_group("inputs"))
    _add_repeats(parser.add_argument_group("repeated and shared runs"))
    _add_execution(parser.add_argument_group("execution"))
    add_live_options(parser)
    return parser


def _add_results(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
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
        help=f"what to write, of {', '.join(FORMAT_NAMES)} (default: {','.join(DEFAULT_FORMATS)}; with --stills "
        f"{','.join(STILL_FORMATS)})",
    )
    add(
        "--export",
        type=_export_names,
        default=(),
        metavar="A,B",
        help=f"also write the lesions for annotation tools, of {', '.join(EXPORT_NAMES)}",
    )
    add(
        "--report",
        action="store_true",
        help="write report.html: frames, scores over time, video scores; as by --formats with report",
    )
    add(
        "--explain",
        type=_positive,
        metavar="N",
        help="also tell where the model looked for the N lesions of each video with the highest scores: pictures in "
        "explained, points on the page of --report",
    )
    add("--no-video", action="store_true", help="write no annotated video or picture: --formats without them")
    add(
        "--dicom-results",
        action="store_true",
        help="also write DICOM results of DICOM files, a structured report and annotated frames; they repeat name, "
        "number, birth date, sex and study of the patient",
    )


def _add_detections(group: argparse._ArgumentGroup) -> None:
    told = group.add_mutually_exclusive_group()
    told.add_argument(
        "--operating-point",
        choices=OPERATING_POINTS,
        help="score threshold that was chosen for the model on validation data, from which on detections are drawn and "
        "listed in the CSV and lesions told: sensitive finds most, specific has the fewest false alarms "
        f"(default: {DEFAULT_POINT}, where the model has them)",
    )
    told.add_argument(
        "--score-threshold",
        type=_score,
        metavar="S",
        help=f"from this score on instead, 0 to 1 (default: {SCORE_THRESHOLD} for a model without operating points)",
    )
    group.add_argument(
        "--duplicate-iou",
        type=float,
        metavar="IOU",
        help="drop detections that overlap a better one by more than this; 1: none (default: the model's setting)",
    )


def _add_inputs(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--stills",
        action="store_true",
        help="images are no frames of a video: each, of whatever size, has results of its own with annotated.png",
    )
    add(
        "--fps",
        type=_fps,
        default=DEFAULT_FPS,
        metavar="F",
        help="frames per second where the input states none, as images do (default: %(default)s)",
    )
    add(
        "--mm-per-pixel",
        type=_millimetres,
        metavar="MM",
        help="size of a pixel where a video states none: 0.08, or width,height as 0.08,0.1 (default: unknown)",
    )
    add("--full-frame", action="store_true", help="DICOM: use whole frames, burned-in text included")
    add(
        "--dicom-key",
        type=Path,
        metavar="FILE",
        help="write a private table of the DICOM files behind the names of results; one that exists is added to",
    )


def _add_repeats(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--overwrite", action="store_true", help="replace the results of a former run")
    add(
        "--skip-existing",
        action="store_true",
        help="pass over videos with finished results of the same model, settings and file, and do the others",
    )
    add(
        "--part",
        type=_part,
        default=(1, 1),
        metavar="I/N",
        help="do the I-th of N parts of the videos, about equal in bytes (default: 1/1, all)",
    )


def _add_execution(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--device", help="cpu, cuda or cuda:N (default: a GPU if there is one)")
    add("--dtype", choices=DTYPE_NAMES, help="default: float16 on a GPU, float32 on a CPU")
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


def _format_names(text: str) -> tuple[str, ...]:
    return _names(text, FORMAT_NAMES)


def _export_names(text: str) -> tuple[str, ...]:
    return _names(text, EXPORT_NAMES)


def _names(text: str, known: Collection[str]) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    if not names or any(name not in known for name in names):
        raise argparse.ArgumentTypeError(f"{text!r}: expected names of {', '.join(known)}, separated by commas")
    return names


def _millimetres(text: str) -> str:
    from stnet.lesions.sizes import stated_scale  # needs NumPy, which takes its time

    try:
        stated_scale(text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def _part(text: str) -> tuple[int, int]:
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise argparse.ArgumentTypeError(f"{text!r}: expected I/N with I from 1 to N, such as 3/10")
    return int(found[1]), int(found[2])


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
