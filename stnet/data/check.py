"""Tells what is wrong with a data set before a GPU-hour is spent on it.

    python -m stnet.data.check DIR                      findings, each with file, entry and remedy
    python -m stnet.data.check DIR --quick              without opening the frames
    python -m stnet.data.check DIR --json report.json --fingerprint facts
    python -m stnet.data.check DIR --repair             corrects the annotation files, keeps the originals

Exit status 0: nothing found; 1: findings; 2: unusable, or a repair that would leave out too much. After a repair the
status tells what is left.
"""

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from stnet import command_line
from stnet.console import Reporter, printable
from stnet.data.annotations.entries import ImageEntry, read_annotations
from stnet.data.annotations.facts import decode_frames, gather_facts
from stnet.data.index import SPLIT_FILES, find_annotation_file, frames_root
from stnet.data.quality.correct import losses, write_corrected
from stnet.data.quality.duplicates import FrameHashes, perceptual_hash
from stnet.data.quality.findings import Finding, Split, annotation_findings, split_findings
from stnet.data.quality.fingerprint import draw_fingerprint, fingerprint
from stnet.data.quality.unlisted import unlisted_images
from stnet.errors import ConfigError, DataError
from stnet.files import write_json

REPAIRS_FILE = "repairs.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class Report:
    """The splits of a data set that could be read, and the findings."""

    splits: tuple[Split, ...]
    findings: tuple[Finding, ...]


def check_dataset(root: str | Path, *, quick: bool = False, on_frame: Callable[[], None] = lambda: None) -> Report:
    """Check the splits that a data set folder has.

    Args:
        root: the folder.
        quick: leave the frames closed: nothing is found that needs their pixels.
        on_frame: called for every frame that was looked at.

    Raises:
        DataError: there is no annotation file that can be read.
    """
    root = Path(root)
    hashes = FrameHashes()
    splits = [_read_split(root, name, hashes, quick, on_frame) for name in _names(root)]
    findings = [finding for split in splits for finding in annotation_findings(split)]
    findings += [*split_findings(splits), *hashes.findings(), *unlisted_images(root, frames_root(root), splits)]
    return Report(splits=tuple(splits), findings=tuple(findings))


def repair_dataset(report: Report, *, accept_loss: bool = False) -> list[Path]:
    """Replace the annotation files that need it by corrected ones, and list what was done in `repairs.json`.

    Args:
        report: of a check.
        accept_loss: go on where a tenth of anything would be left out.

    Returns:
        The files that were replaced; the originals are kept beside them.

    Raises:
        DataError: a tenth of something would be left out, or an earlier original would be lost.
        OSError: a file cannot be written.
    """
    needed = [split for split in report.splits if any(repair.changes for repair in split.repairs)]
    for split in needed:
        lost = losses(split)
        if lost and not accept_loss:
            raise DataError(
                f"{split.file}: the repair would leave out {', '.join(lost)}; nothing was changed. Look for what the "
                "findings have in common, or add --accept-loss to go on"
            )
    replaced: list[Path] = []
    for split in needed:
        original = write_corrected(split)
        replaced.append(split.file)
        _log(split, original)  # after every file: the next one may be refused
    return replaced


def _log(split: Split, original: Path) -> None:
    """Add what was done to the list of earlier repairs."""
    file = split.file.with_name(REPAIRS_FILE)
    repairs = [
        {"kind": repair.kind, "entry": repair.entry, "what": f"{repair.what}: {repair.done}"}
        for repair in split.repairs
        if repair.changes
    ]
    write_json(file, [*_earlier(file), {"file": split.file.name, "original": original.name, "repairs": repairs}])


def _earlier(file: Path) -> list:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return []
    return content if isinstance(content, list) else []


def _names(root: Path) -> list[str]:
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder that holds the annotation files")
    names = [name for name, files in SPLIT_FILES.items() if any((root / file).is_file() for file in files)]
    if not names:
        listed = ", ".join(file for files in SPLIT_FILES.values() for file in files)
        raise DataError(f"{root}: no annotation file; expected one of {listed}")
    return names


def _read_split(root: Path, name: str, hashes: FrameHashes, quick: bool, on_frame: Callable[[], None]) -> Split:
    """Read a split, and the pixels of its frames unless `quick`."""
    annotations = read_annotations(find_annotation_file(root, name), strict=False)
    codes: dict[int, np.ndarray | None] = {}

    def keep_hash(image: ImageEntry, pixels: np.ndarray) -> None:
        codes[image.id] = perceptual_hash(pixels)

    facts = gather_facts(annotations, frames_root(root), quick=quick)
    if not quick:
        decode_frames(annotations, facts, keep_hash, on_frame)
    split = Split.planned(name, annotations, facts)
    for image in annotations.images:
        hashes.add(split, image, codes.get(image.id))
    return split


def main(arguments: Sequence[str] | None = None, prog: str = "python -m stnet.data.check") -> int:
    """Run the command line; return the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog,
        description="Find what is wrong with a data set in the layout of BUV.",
        epilog="Exit status 0: nothing found; 1: findings (after --repair: left ones); 2: unusable or not repaired.",
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
    parser.add_argument(
        "--accept-loss",
        action="store_true",
        help="repair even where that leaves out a tenth of the boxes, frames, videos or of a class",
    )
    parser.add_argument(
        "--limit", type=_count, default=20, metavar="N", help="findings of a kind printed (default: %(default)s)"
    )
    options = parser.parse_args(arguments)
    return command_line.run(lambda: _run(options))


def _count(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} must be 0 or more")
    return value


def _run(options: argparse.Namespace) -> int:
    if options.accept_loss and not options.repair:
        raise ConfigError("--accept-loss says how much a repair may leave out: add --repair, or leave it out")
    report = _check_with_progress(options.dir, options.quick)
    _print_findings(report.findings, options.limit)
    print(_summary(report.findings))
    if options.repair:
        for file in repair_dataset(report, accept_loss=options.accept_loss):
            print(printable(f"corrected {file} (changes: {REPAIRS_FILE})"))
        report = _check_with_progress(options.dir, options.quick)
        print(f"after the repair: {_summary(report.findings)}")
        _print_findings(report.findings, options.limit)
    _write_outputs(options, report)
    return 1 if report.findings else 0


def _check_with_progress(root: Path, quick: bool) -> Report:
    with Reporter(stderr=True) as reporter:
        reporter.start("Reading frames", None)
        return check_dataset(root, quick=quick, on_frame=reporter.advance)


def _print_findings(findings: Sequence[Finding], limit: int) -> None:
    shown: Counter[str] = Counter()
    for finding in findings:
        shown[finding.kind] += 1
        if shown[finding.kind] <= limit:
            print(printable(f"[{finding.kind}] {finding}"))
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
    if options.json is not None:
        findings = [asdict(finding) for finding in report.findings]
        write_json(options.json, {"findings": findings, "fingerprint": prints})
    if options.fingerprint is not None:
        options.fingerprint.mkdir(parents=True, exist_ok=True)
        write_json(options.fingerprint / "fingerprint.json", prints)
        draw_fingerprint(prints, options.fingerprint / "fingerprint.png")


if __name__ == "__main__":
    sys.exit(main())
