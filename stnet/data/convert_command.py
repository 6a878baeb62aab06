"""The command `stnet convert`: what is misspelt is told before anything that computes is imported."""

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from stnet import command_line
from stnet.choices import ANNOTATION_FORMATS
from stnet.console import Reporter
from stnet.data.named import require_files
from stnet.errors import ConfigError


def main(arguments: Sequence[str] | None = None, prog: str = "python -m stnet.data.convert") -> int:
    """Run the command line; return the exit status."""
    options = _parser(prog).parse_args(arguments)
    return command_line.run(lambda: _run(options))


def _parser(prog: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Turn frames or video files with annotations of common tools into a data set.",
        epilog="docs/data-formats.md lists what is honoured, converted and refused of each format.",
    )
    parser.add_argument("source", type=Path, help="video file, or folder of frames, of videos, or of folders of frames")
    parser.add_argument("annotations", type=Path, help="annotation file, or folder of them (VIDEO.xml for each video)")
    parser.add_argument("out", type=Path, help="folder to write: new, or converted before and without this split")
    parser.add_argument("--split", choices=("train", "val"), required=True, help="which split to write")
    parser.add_argument(
        "--format", choices=ANNOTATION_FORMATS, help="format of the annotations (default: seen in them)"
    )
    classes = parser.add_argument_group("classes")
    classes.add_argument(
        "--classes", nargs="+", metavar="NAME", help="class names in order (default: benign malignant, or those found)"
    )
    classes.add_argument(
        "--class",
        dest="class_map",
        action="append",
        default=[],
        metavar="NAME=CLASS",
        help="class of the data set for a class name of the file, e.g. fibroadenoma=benign; may be repeated",
    )
    classes.add_argument(
        "--ignore-class", action="append", default=[], metavar="NAME", help="marks of this class are no lesions"
    )
    placing = parser.add_argument_group("entries that no exact name places")
    placing.add_argument(
        "--numbering", type=int, choices=(0, 1), help="the number that ends a name is its frame, counted from 0 or 1"
    )
    placing.add_argument(
        "--frame-step", type=int, metavar="N", help="numbers count frames that were taken N apart: n is frame n times N"
    )
    placing.add_argument(
        "--video-from",
        metavar="REGEX",
        help="finds the video in a name: its first group, or groups (?P<video>), (?P<name>) of the frame, "
        "(?P<frame>) number; without a group, a match means the only video",
    )
    placing.add_argument("--allow-left-out", action="store_true", help="convert the rest even if most is left out")
    parser.add_argument(
        "--empty-unknown", action="store_true", help="frames without boxes are not annotated rather than negatives"
    )
    parser.add_argument("--full-frame", action="store_true", help="DICOM: write whole frames, burned-in text included")
    return parser


def _run(options: argparse.Namespace) -> None:
    class_map, rules = _class_map(options.class_map), _rules(options)
    require_files(options.source, options.annotations)
    from stnet.data.convert import convert  # takes seconds
    from stnet.data.formats.assigning import Rules
    from stnet.data.formats.classes import ClassRules

    with Reporter(stderr=True) as reporter:
        reporter.start("Converting videos", None)
        done = convert(
            options.source,
            options.annotations,
            options.out,
            split=options.split,
            classes=ClassRules(names=options.classes, renamed=class_map, ignored=options.ignore_class),
            format_name=options.format,
            rules=Rules(**rules),
            empty_unknown=options.empty_unknown,
            allow_left_out=options.allow_left_out,
            full_frame=options.full_frame,
            on_video=reporter.advance,
        )
        reporter.stop()
        for remark in done.remarks:
            reporter.message(f"note: {remark}")
    unknown = done.frames - done.frames_with_boxes - done.negatives
    Reporter().message(
        f"{options.out}: {options.split} split of {done.videos} videos, {done.frames} frames, {done.boxes} boxes\n"
        f"  {done.frames_with_boxes} frames with boxes, {done.negatives} negatives, {unknown} not annotated; "
        f"{done.placed} of {done.entries} entries placed; classes {', '.join(done.classes)}"
    )


def _class_map(pairs: Sequence[str]) -> dict[str, str]:
    named: dict[str, str] = {}
    for pair in pairs:
        name, separator, target = (part.strip() for part in pair.partition("="))
        if not separator or not name or not target:
            raise ConfigError(f"--class {pair!r}: give NAME=CLASS, e.g. fibroadenoma=benign")
        if named.setdefault(name, target) != target:
            raise ConfigError(f"--class {pair!r}: {name} is mapped to {named[name]} already")
    return named


def _rules(options: argparse.Namespace) -> dict[str, Any]:
    if options.frame_step is not None and options.frame_step < 1:
        raise ConfigError(f"--frame-step {options.frame_step}: give 1 or more")
    try:
        pattern = re.compile(options.video_from) if options.video_from is not None else None
    except re.error as error:
        raise ConfigError(f"--video-from {options.video_from!r}: no regular expression ({error})") from error
    if pattern is not None and not pattern.groupindex.keys() <= {"video", "name", "frame"}:
        unknown = min(pattern.groupindex.keys() - {"video", "name", "frame"})
        raise ConfigError(f"--video-from: a group {unknown!r:.40} means nothing; call groups video, name or frame")
    return {"numbering": options.numbering, "video_from": pattern, "frame_step": options.frame_step}


if __name__ == "__main__":
    sys.exit(main())
