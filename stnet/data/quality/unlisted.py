"""Images in the folders of a data set that no annotation file lists."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from stnet.data.annotations.entries import load_document
from stnet.data.quality.findings import Finding, Split
from stnet.errors import DataError
from stnet.video.stills import images_in


def unlisted_images(root: Path, frames: Path, splits: Sequence[Split]) -> Iterator[Finding]:
    """Find images that nobody gets to see: each folder with some is one finding.

    Args:
        root: the data set folder; annotation files in it that are no split (a test set, the original of a repaired
            file) list images, too.
        frames: the folder that file names are relative to. Where it is `root` itself, folders without a listed image
            are somebody else's.
        splits: what was read.
    """
    listed = _listed(root, splits)
    folders = {(frames / name).parent for name in listed}
    if frames != root:
        folders |= {Path(folder) for folder, _, _ in os.walk(frames)}
    for folder in sorted(folders):
        try:
            names = [path.relative_to(frames).as_posix() for path in images_in(folder)]
        except (OSError, ValueError):  # missing frames are found by their entries
            continue
        lost = [name for name in names if name not in listed]
        if lost:
            what = f"{len(lost)} of {len(names)} images are listed in no annotation file, for example {lost[0]}"
            remedy = 'list them, with "annotated": false where nobody looked, or move them away'
            entry = folder.relative_to(frames).as_posix()
            yield Finding(kind="unlisted images", file=frames.name, entry=entry, what=what, remedy=remedy)


def _listed(root: Path, splits: Sequence[Split]) -> set[str]:
    """Return the file names in all annotation files of the folder, as far as they can be understood."""
    documents = [split.annotations.document for split in splits]
    read = {split.file.name for split in splits}
    for file in sorted([*root.glob("*.json"), *root.glob("*.json.original")]):
        if file.name not in read:
            try:
                documents.append(load_document(file))
            except DataError:
                continue
    images = [document.get("images") for document in documents if isinstance(document, dict)]
    entries = [entry for found in images if isinstance(found, list) for entry in found if isinstance(entry, dict)]
    names = [entry.get("file_name") for entry in entries]
    return {Path(name).as_posix() for name in names if isinstance(name, str) and ".." not in Path(name).parts}
