"""What the annotation files of a data set say that cannot be right, or that its user should know."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import numpy as np

from stnet.data.annotations.entries import Annotations, BoxEntry, EntryError, ImageEntry, load_json, parse_annotations
from stnet.data.annotations.repairs import BUV_DUPLICATES, BUV_LEAK, BUV_MALIGNANT, repair_box
from stnet.data.index import LESION_CLASSES, PathGuard

REPAIR = "add --repair to correct the annotation file"
DUPLICATE_IOU = 0.95
GAP_IOU = 0.7
TINY_SIDE = 2.0
"""Pixels. Boxes with a shorter side are most often relative coordinates."""
_NUMBERED = re.compile(r"(.*?)(\d{0,12})\D*$", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing to look at: `kind` groups alike findings; `entry` says where in `file`; `remedy` what to do."""

    kind: str
    file: str
    entry: str
    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.file}: {self.entry}: {self.what}; {self.remedy}"


@dataclass(frozen=True, kw_only=True, eq=False)
class Split:
    """An annotation file as loaded (`document`) and as far as it can be used (`annotations`).

    `paths` maps the id of every image to its file; `missing` holds those without one.
    """

    name: str
    file: Path
    document: dict
    annotations: Annotations
    problems: tuple[EntryError, ...]
    paths: dict[int, Path]
    missing: set[int] = field(default_factory=set)

    def boxes_of_images(self) -> dict[int, list[BoxEntry]]:
        """Image id -> its boxes."""
        boxes: dict[int, list[BoxEntry]] = defaultdict(list)
        for box in self.annotations.boxes:
            boxes[box.image_id].append(box)
        return boxes

    def images_of_unusable_boxes(self) -> set[int]:
        """Ids of the images that boxes refer to which cannot be used."""
        used = {box.position for box in self.annotations.boxes}
        known = {image.id for image in self.annotations.images}
        items = self.document["annotations"]
        named = [item.get("image_id") for i, item in enumerate(items) if i not in used and isinstance(item, dict)]
        return {image_id for image_id in named if isinstance(image_id, int) and image_id in known}

    def images_of_videos(self) -> dict[int, list[ImageEntry]]:
        """Video id -> its images in the order of their `frame_id`."""
        images: dict[int, list[ImageEntry]] = defaultdict(list)
        for image in sorted(self.annotations.images, key=lambda image: image.frame_id):
            images[image.video_id].append(image)
        return images

    def finding(self, kind: str, entry: str, what: str, remedy: str) -> Finding:
        """A finding in this split's file."""
        return Finding(kind=kind, file=self.file.name, entry=entry, what=what, remedy=remedy)


def read_split(name: str, file: Path, folder: Path) -> tuple[Split, list[Finding]]:
    """Reads what can be used of an annotation file, and finds what cannot; frames lie in `folder`.

    Raises `DataError` for a file that is not an annotation file at all.
    """
    document = load_json(file)
    problems: list[EntryError] = []
    annotations = parse_annotations(document, file, problems.append)
    guard = PathGuard(folder)
    paths: dict[int, Path] = {}
    missing: set[int] = set()
    outside: list[ImageEntry] = []
    for image in annotations.images:
        try:
            paths[image.id] = guard.path(image.file_name)
        except ValueError:
            outside.append(image)
            continue
        if not paths[image.id].is_file():
            missing.add(image.id)
    split = Split(
        name=name,
        file=file,
        document=document,
        annotations=annotations,
        problems=tuple(problems),
        paths=paths,
        missing=missing,
    )
    findings = [split.finding(e.kind, e.entry, e.what, f"{e.remedy}, or {REPAIR}") for e in problems]
    for image in outside:
        what = f"{image.file_name} leads out of the data set through a symbolic link"
        findings.append(split.finding("path leaves the dataset", image.entry, what, "copy the frame inside"))
    for image in annotations.images:
        if image.id in missing:
            remedy = f"restore it, or {REPAIR}"
            findings.append(split.finding("missing frame", image.entry, f"no file {image.file_name}", remedy))
    return split, findings


def annotation_findings(split: Split) -> list[Finding]:
    """What can be told from an annotation file alone."""
    return [
        *_class_findings(split),
        *_box_findings(split),
        *_frame_findings(split),
        *_video_findings(split),
        *_errata_findings(split),
    ]


def split_findings(splits: Iterable[Split]) -> list[Finding]:
    """What can be told from comparing the annotation files of train and val."""
    by_name = {split.name: split for split in splits}
    if set(by_name) != {"train", "val"}:
        return []
    train, val = by_name["train"], by_name["val"]
    findings = []
    names = [{name.lower() for name in split.annotations.categories.values()} for split in (train, val)]
    if names[0] != names[1] and not (names[0] | names[1]) <= set(LESION_CLASSES):
        what = f"classes {sorted(names[1])}, but {train.file.name} has {sorted(names[0])}"
        findings.append(val.finding("classes differ", "categories", what, "give both files the same categories"))
    train_names = set(train.annotations.videos.values())
    for video_id, name in val.annotations.videos.items():
        if name in train_names:
            what = f"{name} is in {train.file.name} too"
            remedy = "keep it in one of the two, or validation will flatter"
            findings.append(val.finding("video in both splits", f"videos (id {video_id})", what, remedy))
    if BUV_LEAK[0] in train_names and BUV_LEAK[1] in val.annotations.videos.values():
        what = f"BUV: {BUV_LEAK[1]} shares 106 of 110 frames with {BUV_LEAK[0]} of the train split"
        remedy = "leave it in for figures comparable with published ones, else remove it from train"
        findings.append(val.finding("BUV leak", "videos", what, remedy))
    return findings


def _class_findings(split: Split) -> Iterator[Finding]:
    first: dict[str, int] = {}
    for identity, name in split.annotations.categories.items():
        taken = first.setdefault(name.lower(), identity)
        if taken != identity:
            what = f"{name!r} is the class of id {taken} too (case does not matter)"
            yield split.finding("duplicate class", f"categories (id {identity})", what, f"merge the two, or {REPAIR}")


def _box_findings(split: Split) -> Iterator[Finding]:
    images = {image.id: image for image in split.annotations.images}
    for image_id, boxes in split.boxes_of_images().items():
        image = images[image_id]
        corners: list[tuple[int, np.ndarray]] = []
        for box in boxes:
            kept, done = repair_box(box.bbox, image.height, image.width)
            for kind, what in done:
                yield split.finding(kind, box.entry, f"{image.file_name}: {what} when loading", REPAIR)
            if kept is None:
                continue
            if min(kept[2] - kept[0], kept[3] - kept[1]) < TINY_SIDE:
                numbers = ", ".join(f"{number:g}" for number in box.bbox)
                what = f"{image.file_name}: box [{numbers}] is less than {TINY_SIDE:g} pixels wide or high"
                remedy = "write [x, y, w, h] in pixels, not relative to the image"
                yield split.finding("tiny box", box.entry, what, remedy)
            if any(box.category_id == c and iou(kept, other) > DUPLICATE_IOU for c, other in corners):
                what = f"{image.file_name}: the same box a second time"
                yield split.finding("duplicate box", box.entry, what, f"remove it, or {REPAIR}")
            corners.append((box.category_id, kept))


def _frame_findings(split: Split) -> Iterator[Finding]:
    boxes = split.boxes_of_images()
    unusable = split.images_of_unusable_boxes()
    listed: dict[str, ImageEntry] = {}
    for image in split.annotations.images:
        if image.file_name in listed:
            what = f"{image.file_name} is {listed[image.file_name].entry} too"
            yield split.finding("file listed twice", image.entry, what, f"remove one, or {REPAIR}")
        listed.setdefault(image.file_name, image)
        if not image.annotated and boxes[image.id]:
            what = f"{image.file_name}: annotated is false but the frame has {len(boxes[image.id])} boxes"
            yield split.finding("contradiction", image.entry, what, f"remove either, or {REPAIR}")
    for images in split.images_of_videos().values():
        for before, image, after in zip(images, images[1:], images[2:], strict=False):
            if boxes[image.id] or not image.annotated or image.id in unusable:
                continue
            if _same_lesion(boxes[before.id], boxes[after.id]):
                what = f"{image.file_name}: no box, but the frames before and after show the same lesion"
                remedy = 'draw the box, or write "annotated": false if nobody did'
                yield split.finding("frame without annotation", image.entry, what, remedy)


def _same_lesion(before: list[BoxEntry], after: list[BoxEntry]) -> bool:
    return any(iou(_corners(a), _corners(b)) > GAP_IOU for a in before for b in after)


def _video_findings(split: Split) -> Iterator[Finding]:
    images_of_videos = split.images_of_videos()
    for video_id, name in split.annotations.videos.items():
        entry = f"videos (id {video_id})"
        images = images_of_videos[video_id]
        if not images:
            yield split.finding("video without frames", entry, f"{name} has no frames", f"remove it, or {REPAIR}")
        misplaced = _misplaced(images)
        if misplaced is not None:
            before, after = misplaced
            what = f"{name}: frame_id puts {after.file_name} (frame_id {after.frame_id}) right after {before.file_name}"
            remedy = "number frame_id in the order in which the frames were taken"
            yield split.finding("frame order", entry, what, remedy)
        sizes = sorted({(image.width, image.height) for image in images})
        if len(sizes) > 1:
            what = f"{name}: frames of {', '.join(f'{w}x{h}' for w, h in sizes[:4])}"
            remedy = "clips are resized to their centre frame; better cut the video where the size changes"
            yield split.finding("size change", entry, what, remedy)


def _misplaced(images: list[ImageEntry]) -> tuple[ImageEntry, ImageEntry] | None:
    """The first frame and its successor whose file names, alike but for their last number, count the other way."""
    for before, after in pairwise(images):
        (stem, number), (other_stem, other) = (_NUMBERED.match(i.file_name).groups() for i in (before, after))
        if number and other and stem == other_stem and int(other) < int(number):
            return before, after
    return None


def _errata_findings(split: Split) -> Iterator[Finding]:
    labels = {identity: name.lower() for identity, name in split.annotations.categories.items()}
    boxes, images_of_videos = split.boxes_of_images(), split.images_of_videos()
    for video_id, name in split.annotations.videos.items():
        entry = f"videos (id {video_id})"
        if name in BUV_DUPLICATES:
            what = f"BUV erratum: {name} duplicates {BUV_DUPLICATES[name]}"
            yield split.finding("BUV erratum", entry, what, f"left out when loading; {REPAIR}")
        wrong = name in BUV_MALIGNANT and any(
            labels[box.category_id] != "malignant" for image in images_of_videos[video_id] for box in boxes[image.id]
        )
        if wrong:
            what = f"BUV erratum: the lesion of {name} is malignant"
            yield split.finding("BUV erratum", entry, what, f"corrected when loading; {REPAIR}")


def iou(a: tuple[float, ...], b: tuple[float, ...]) -> float:
    """Intersection over union of two boxes x0 y0 x1 y1."""
    width = min(a[2], b[2]) - max(a[0], b[0])
    height = min(a[3], b[3]) - max(a[1], b[1])
    if width <= 0 or height <= 0:
        return 0.0
    shared = width * height
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def _corners(box: BoxEntry) -> tuple[float, float, float, float]:
    x, y, w, h = box.bbox
    return min(x, x + w), min(y, y + h), max(x, x + w), max(y, y + h)
