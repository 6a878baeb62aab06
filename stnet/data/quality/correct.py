"""Corrected annotation files, written where nothing of weight gets lost."""

import filecmp
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from stnet.data.annotations.entries import Annotations
from stnet.data.annotations.repairs import apply_repairs
from stnet.data.quality.findings import Split
from stnet.errors import DataError
from stnet.files import replacing, write_text

LARGEST_LOSS = 0.1
"""A repair that would leave out this part of the boxes, frames or videos, or of the boxes of a class, has to be asked
for twice: so much is rarely wrong for many reasons, most often one setting of an export is."""


def losses(split: Split) -> list[str]:
    """Return what the repairs of a split would leave out too much of, such as "48 of 384 frames (12 %)".

    What stands elsewhere in the file too is no loss. A frame that no longer counts as annotated is one.
    """
    gone: dict[str, set[int]] = {"annotations": set(), "images": set(), "videos": set()}
    for change in (change for repair in split.repairs if not repair.lossless for change in repair.changes):
        if change.list in gone and (change.keys is None or change.keys.get("annotated") is False):
            gone[change.list].add(change.position)
    document = split.annotations.document
    totals = {
        "boxes": (len(gone["annotations"]), len(document["annotations"])),
        "frames": (len(gone["images"]), len(document["images"])),
        "videos": (len(gone["videos"]), len(document["videos"])),
    }
    classes = dict(_classes(split.annotations))
    of_class = Counter(classes.values())
    lost_of_class = Counter(classes[position] for position in gone["annotations"] if position in classes)
    totals |= {f"boxes of class {name!r:.80}": (lost_of_class[name], of_class[name]) for name in of_class}
    return [
        f"{lost} of {total} {name} ({lost / total:.0%})"
        for name, (lost, total) in totals.items()
        if lost and lost >= LARGEST_LOSS * total
    ]


def _classes(annotations: Annotations) -> Iterator[tuple[int, str]]:
    """Give the position of each box that names a class, and the class."""
    for position, item in enumerate(annotations.document["annotations"]):
        identity = item.get("category_id") if isinstance(item, dict) else None
        if isinstance(identity, int) and identity in annotations.categories:
            yield position, annotations.categories[identity].lower()


def write_corrected(split: Split) -> Path:
    """Replace the annotation file of a split by the repaired one; return where the original is kept.

    Raises:
        DataError: an earlier original would be lost.
        OSError: the folder cannot be written. The original is never lost, and no copy of it stays where it is in place.
    """
    original = split.file.with_name(split.file.name + ".original")
    if original.exists():
        raise DataError(f"{original}: exists from an earlier repair; move it away first")
    document = apply_repairs(split.annotations.document, split.repairs)
    try:
        with replacing(original) as copy:
            shutil.copyfile(split.file, copy)
        write_text(split.file, json.dumps(document) + "\n")
    except BaseException:
        with suppress(OSError):
            if filecmp.cmp(original, split.file, shallow=False):
                original.unlink()
        raise
    return original
