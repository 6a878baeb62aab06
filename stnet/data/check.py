"""Tells what is wrong with a data set before a GPU-hour is spent on it.

    python -m stnet.data.check DIR                      findings, each with file, entry and remedy
    python -m stnet.data.check DIR --quick              without opening the frames
    python -m stnet.data.check DIR --json report.json --fingerprint facts
    python -m stnet.data.check DIR --repair             corrects the annotation files, keeps the originals

Exit status 0: nothing found; 1: findings; 2: unusable, or a repair that would leave out too much. After a repair the
status tells what is left.
"""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stnet.data.annotations.entries import ImageEntry, load_document, read_annotations
from stnet.data.annotations.facts import decode_frames, gather_facts
from stnet.data.index import SPLIT_FILES, find_annotation_file, frames_root
from stnet.data.named import REPAIRS_FILE, require_data_folder
from stnet.data.quality.correct import losses, write_corrected
from stnet.data.quality.duplicates import FrameHashes, perceptual_hash
from stnet.data.quality.findings import Finding, Split, annotation_findings, split_findings
from stnet.data.quality.unlisted import unlisted_images
from stnet.errors import DataError
from stnet.files import write_json


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
        DataError: a tenth of something would be left out, or an earlier original or list would be lost.
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
        _earlier(split.file.with_name(REPAIRS_FILE))
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
    """Return the list of earlier repairs, none where there is no file; another file of that name is not overwritten."""
    content = load_document(file) if file.exists() else []
    if not isinstance(content, list):
        raise DataError(f"{file}: is no list of repairs; move it away first")
    return content


def _names(root: Path) -> list[str]:
    require_data_folder(root)
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


if __name__ == "__main__":
    from stnet.data.check_command import main

    sys.exit(main())
