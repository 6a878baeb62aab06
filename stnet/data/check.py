"""Tells what is wrong with a data set before a GPU-hour is spent on it.

    python -m stnet.data.check DIR                      findings, each with file, entry and remedy
    python -m stnet.data.check DIR --quick              without opening the frames
    python -m stnet.data.check DIR --json report.json --fingerprint facts
    python -m stnet.data.check DIR --repair             corrects the annotation files, keeps the originals

Exit code 0: nothing found; 1: findings; 2: unusable. After a repair the code tells what is left.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from stnet.data.annotations.entries import ImageEntry
from stnet.data.frames import decode_image, image_size
from stnet.data.index import SPLIT_FILES, find_annotation_file, frames_root
from stnet.data.progress import counting
from stnet.data.quality.correct import FrameFacts, correct, write_corrected
from stnet.data.quality.duplicates import SAME_VIDEO_SHARE, SharedFrames, perceptual_hash, shared_frames
from stnet.data.quality.findings import REPAIR, Finding, Split, annotation_findings, read_split, split_findings
from stnet.data.quality.fingerprint import draw_fingerprint, fingerprint
from stnet.errors import DataError, StnetError

REPAIRS_FILE = "repairs.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """The splits of a data set that could be read, the findings, and what reading the frames told (by split)."""

    splits: tuple[Split, ...]
    findings: tuple[Finding, ...]
    facts: dict[str, FrameFacts]


def check_dataset(root: str | Path, *, quick: bool = False, on_frame: Callable[[], None] = lambda: None) -> Report:
    """Checks the splits that a data set folder has.

    `quick` leaves the frames closed: nothing is found that needs their pixels. `on_frame` is called for every
    frame that was read. Raises `DataError` where there is no annotation file that can be read.
    """
    splits, findings = _read(Path(root))
    for split in splits:
        findings += annotation_findings(split)
    findings += split_findings(splits)
    if quick:
        empty = {split.name: FrameFacts(unusable=set(), sizes={}) for split in splits}
        return Report(splits=tuple(splits), findings=tuple(findings), facts=empty)
    facts, frames = {}, _Frames()
    for split in splits:
        facts[split.name], found = _read_frames(split, frames, on_frame)
        findings += found
    findings += frames.duplicates()
    return Report(splits=tuple(splits), findings=tuple(findings), facts=facts)


def repair_dataset(report: Report) -> list[Path]:
    """Replaces the annotation files that need it by corrected ones, and lists what was done in `repairs.json`.

    Returns the files that were replaced; the originals are kept beside them. Raises `DataError`.
    """
    replaced, log = [], []
    for split in report.splits:
        document, done = correct(split, report.facts[split.name])
        if not done:
            continue
        original = write_corrected(split, document)
        replaced.append(split.file)
        log.append({"file": split.file.name, "original": original.name, "repairs": [asdict(r) for r in done]})
        # After every file: the next one may be refused.
        (report.splits[0].file.parent / REPAIRS_FILE).write_text(json.dumps(log, indent=1) + "\n")
    return replaced


def _read(root: Path) -> tuple[list[Split], list[Finding]]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder that holds the annotation files")
    names = [name for name, files in SPLIT_FILES.items() if any((root / file).is_file() for file in files)]
    if not names:
        listed = ", ".join(file for files in SPLIT_FILES.values() for file in files)
        raise DataError(f"{root}: no annotation file; expected one of {listed}")
    splits, findings = [], []
    for name in names:
        split, found = read_split(name, find_annotation_file(root, name), frames_root(root))
        splits.append(split)
        findings += found
    return splits, findings


class _Frames:
    """The hashes of all frames, by video, across splits."""

    def __init__(self) -> None:
        self.hashes: list[np.ndarray] = []
        self.videos: list[int] = []
        self.images: list[ImageEntry] = []
        self.sources: list[tuple[Split, int]] = []
        self._numbers: dict[tuple[str, int], int] = {}

    def add(self, split: Split, image: ImageEntry, code: np.ndarray | None) -> None:
        if code is None:
            return
        key = (split.name, image.video_id)
        if key not in self._numbers:
            self._numbers[key] = len(self.sources)
            self.sources.append((split, image.video_id))
        self.hashes.append(code)
        self.videos.append(self._numbers[key])
        self.images.append(image)

    def duplicates(self) -> list[Finding]:
        if not self.hashes:
            return []
        pairs = shared_frames(np.stack(self.hashes), np.array(self.videos))
        return [finding for pair in pairs for finding in self._finding(pair)]

    def _finding(self, pair: SharedFrames) -> list[Finding]:
        (first, first_id), (second, second_id) = self.sources[pair.first], self.sources[pair.second]
        one, other = first.annotations.videos[first_id], second.annotations.videos[second_id]
        a, b = (self.images[i].file_name for i in pair.example)
        what = f"{other} shares {pair.count} frames ({pair.share:.0%} of the shorter video) with {one}"
        if first is not second:
            what += f" of {first.file.name}"
        what += f", for example {b} and {a}"
        if pair.share >= SAME_VIDEO_SHARE:
            kind, remedy = "duplicate video", "keep one of the two"
        elif first is not second:
            kind, remedy = "near-duplicate frames", "keep the video of one patient in one split"
        else:
            return []
        return [second.finding(kind, f"videos (id {second_id})", what, remedy)]


def _read_frames(split: Split, frames: _Frames, on_frame: Callable[[], None]) -> tuple[FrameFacts, list[Finding]]:
    """Opens every frame of a split."""
    facts = FrameFacts(unusable=set(), sizes={})
    findings = []
    images = [i for i in split.annotations.images if i.id in split.paths and i.id not in split.missing]
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        results = pool.map(lambda image: _read_frame(split.paths[image.id]), images)
        for image, result in zip(images, results, strict=True):
            on_frame()
            if isinstance(result, DataError):
                facts.unusable.add(image.id)
                findings.append(split.finding("unreadable frame", image.entry, str(result), REPAIR))
                continue
            size, code = result
            frames.add(split, image, code)
            if size != (image.height, image.width):
                facts.sizes[image.id] = size
                what = f"{image.file_name} is {size[1]}x{size[0]}, annotated as {image.width}x{image.height}"
                findings.append(split.finding("wrong size", image.entry, what, REPAIR))
    return facts, findings


def _read_frame(path: Path) -> tuple[tuple[int, int], np.ndarray | None] | DataError:
    """Size and hash of a frame, or why there is none."""
    try:
        size = image_size(path)
        return size, perceptual_hash(decode_image(path, *size))
    except DataError as error:
        return error


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m stnet.data.check",
        description="Find what is wrong with a data set in the layout of BUV.",
        epilog="Exit code 0: nothing found; 1: findings (after --repair: left ones); 2: unusable.",
    )
    parser.add_argument("dir", type=Path, help="data set folder, with train.json, val.json or both")
    parser.add_argument("--quick", action="store_true", help="do not open the frames")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write findings and fingerprint as JSON")
    parser.add_argument(
        "--fingerprint", type=Path, metavar="FOLDER", help="also write fingerprint.json and fingerprint.png there"
    )
    parser.add_argument(
        "--repair",
        action="store_true",
        help=f"correct the annotation files (originals kept as *.original, changes listed in {REPAIRS_FILE})",
    )
    parser.add_argument("--limit", type=int, default=20, metavar="N", help="findings of a kind printed (default 20)")
    options = parser.parse_args(arguments)
    try:
        return _run(options)
    except StnetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(options: argparse.Namespace) -> int:
    report = _check_with_progress(options.dir, options.quick)
    _print_findings(report.findings, options.limit)
    print(_summary(report.findings))
    if options.repair:
        for file in repair_dataset(report):
            print(f"corrected {file} (changes: {REPAIRS_FILE})")
        report = _check_with_progress(options.dir, options.quick)
        print(f"after the repair: {_summary(report.findings)}")
        _print_findings(report.findings, options.limit)
    _write_outputs(options, report)
    return 1 if report.findings else 0


def _check_with_progress(root: Path, quick: bool) -> Report:
    with counting("Reading frames") as advance:
        return check_dataset(root, quick=quick, on_frame=advance)


def _print_findings(findings: Sequence[Finding], limit: int) -> None:
    shown: Counter[str] = Counter()
    for finding in findings:
        shown[finding.kind] += 1
        if shown[finding.kind] <= limit:
            print(f"[{finding.kind}] {finding}")
    for kind, count in shown.items():
        if count > limit:
            print(f"[{kind}] and {count - limit} more (--limit {count} or --json show all)")


def _summary(findings: Sequence[Finding]) -> str:
    if not findings:
        return "nothing found"
    counts = Counter(finding.kind for finding in findings)
    kinds = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    return f"{len(findings)} finding{'s' if len(findings) > 1 else ''}: {kinds}"


def _write_outputs(options: argparse.Namespace, report: Report) -> None:
    if options.json is None and options.fingerprint is None:
        return
    prints = {split.name: fingerprint(split) for split in report.splits}
    try:
        if options.json is not None:
            content = {"findings": [asdict(finding) for finding in report.findings], "fingerprint": prints}
            options.json.write_text(json.dumps(content, indent=1) + "\n")
        if options.fingerprint is not None:
            options.fingerprint.mkdir(parents=True, exist_ok=True)
            (options.fingerprint / "fingerprint.json").write_text(json.dumps(prints, indent=1) + "\n")
            draw_fingerprint(prints, options.fingerprint / "fingerprint.png")
    except OSError as error:
        raise DataError(f"{error.filename}: cannot be written ({error.strerror}); name another place") from error


if __name__ == "__main__":
    sys.exit(main())
