"""What the annotation files of a data set say that cannot be right, or that its user should know."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch

from stnet.boxes import overlaps
from stnet.data.annotations.box_repair import repair_box
from stnet.data.annotations.buv import BUV_LEAK
from stnet.data.annotations.entries import Annotations, BoxEntry, ImageEntry, parse_annotations
from stnet.data.annotations.facts import BLANK_LEVELS, FrameFacts
from stnet.data.annotations.plan import EMPTIED, plan_repairs
from stnet.data.annotations.repairs import Repair, apply_repairs
from stnet.data.index import LESION_CLASSES, SPLIT_FILES

REPAIR = "add --repair to correct the annotation file"
GAP_IOU = 0.7
TINY_SIDE = 2.0
"""Pixels. Boxes with a shorter side are most often relative coordinates."""
CORNER_SHARE = 0.1
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
    """An annotation file as far as it can be used, what its frames' files told, and what repairs it (`repairs`).

    `repaired` is what these leave: all that training could see.
    """

    name: str
    annotations: Annotations
    facts: FrameFacts
    repairs: tuple[Repair, ...]
    repaired: Annotations

    @classmethod
    def planned(cls, name: str, annotations: Annotations, facts: FrameFacts) -> "Split":
        """Return the split with its plan of repairs."""
        repairs = plan_repairs(annotations, facts)
        document = apply_repairs(annotations.document, repairs)
        repaired = parse_annotations(document, annotations.file, strict=False)
        return cls(name=name, annotations=annotations, facts=facts, repairs=tuple(repairs), repaired=repaired)

    @property
    def file(self) -> Path:
        """The annotation file."""
        return self.annotations.file

    def finding(self, kind: str, entry: str, what: str, remedy: str) -> Finding:
        """Return a finding in this split's file."""
        return Finding(kind=kind, file=self.file.name, entry=entry, what=what, remedy=remedy)


def annotation_findings(split: Split) -> list[Finding]:
    """Return what can be told of one annotation file."""
    return [
        *_repair_findings(split),
        *_tiny_boxes(split),
        *_corner_boxes(split),
        *_gaps(split),
        *_video_findings(split),
        *_blank_frames(split),
        *_content_findings(split),
    ]


def split_findings(splits: Iterable[Split]) -> list[Finding]:
    """Return what can be told from comparing the annotation files of train and val."""
    by_name = {split.name: split for split in splits}
    absent = [name for name in SPLIT_FILES if name not in by_name]
    if absent:
        return [_missing_split(name) for name in absent]
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


def _missing_split(name: str) -> Finding:
    files = " or ".join(reversed(SPLIT_FILES[name]))
    what = "there is none, so " + ("nothing to train on" if name == "train" else "no way to tell a good model")
    remedy = f"put some of the videos, of other patients, into {files}"
    return Finding(kind="missing split", file=SPLIT_FILES[name][-1], entry="file", what=what, remedy=remedy)


def _repair_findings(split: Split) -> Iterator[Finding]:
    for repair in split.repairs:
        if repair.kind == EMPTIED:
            continue
        if not repair.changes:
            remedy = repair.remedy
        elif repair.automatic:
            remedy = f"{repair.done} when loading; {REPAIR}"
        else:
            remedy = f"{repair.remedy}, or {REPAIR} ({repair.done})"
        yield split.finding(repair.kind, repair.entry, repair.what, remedy)


def _tiny_boxes(split: Split) -> Iterator[Finding]:
    images = {image.id: image for image in split.annotations.images}
    for box in split.annotations.boxes:
        image = images[box.image_id]
        kept, _ = repair_box(box.bbox, image.height, image.width)
        if kept is None or min(kept[2] - kept[0], kept[3] - kept[1]) >= TINY_SIDE:
            continue
        numbers = ", ".join(f"{number:g}" for number in box.bbox)
        what = f"{image.file_name}: box [{numbers}] is less than {TINY_SIDE:g} pixels wide or high"
        yield split.finding("tiny box", box.entry, what, "write [x, y, w, h] in pixels, not relative to the image")


def _corner_boxes(split: Split) -> Iterator[Finding]:
    """Find files whose boxes are written by two corners: as x, y, w, h many of them reach beyond their image."""
    images = {image.id: image for image in split.annotations.images}
    beyond = 0
    for box in split.annotations.boxes:
        (x0, y0, x1, y1), image = box.bbox, images[box.image_id]
        if not (0 <= x0 < x1 <= image.width and 0 <= y0 < y1 <= image.height):
            return
        beyond += x0 + x1 > image.width or y0 + y1 > image.height
    if beyond >= CORNER_SHARE * max(1, len(split.annotations.boxes)):
        what = f"{beyond} of {len(split.annotations.boxes)} boxes reach beyond their image, all fit as x0, y0, x1, y1"
        yield split.finding("boxes may be corners", "annotations", what, "write [x, y, w, h] before any --repair")


def _gaps(split: Split) -> Iterator[Finding]:
    """Find frames without a box between two that show the same lesion."""
    boxes = split.repaired.boxes_of_images()
    entries = {image.id: image.entry for image in split.annotations.images}
    for images in split.repaired.images_of_videos().values():
        for before, image, after in zip(images, images[1:], images[2:], strict=False):
            if boxes[image.id] or not image.annotated or not _same_lesion(boxes[before.id], boxes[after.id]):
                continue
            what = f"{image.file_name}: no box, but the frames before and after show the same lesion"
            remedy = 'draw the box, or write "annotated": false if nobody did'
            yield split.finding("frame without annotation", entries[image.id], what, remedy)


def _same_lesion(before: list[BoxEntry], after: list[BoxEntry]) -> bool:
    if not before or not after:
        return False
    iou, _ = overlaps(_corners(before)[:, None], _corners(after)[None])
    return bool((iou > GAP_IOU).any())


def _corners(boxes: list[BoxEntry]) -> torch.Tensor:
    return torch.tensor([(x, y, x + w, y + h) for x, y, w, h in (box.bbox for box in boxes)], dtype=torch.float64)


def _content_findings(split: Split) -> Iterator[Finding]:
    """Find what is too little to train on or to validate with."""
    left = split.repaired
    if not any(image.annotated for image in left.images):
        number = len(split.annotations.images)
        what = f"no annotated frame can be used of {number} listed" if number else "no frames"
        yield split.finding("empty split", "images", what, "list frames that somebody looked at")
        return
    if not left.boxes:
        what = f"no box on any of {len(left.images)} frames"
        remedy = "add videos with lesions: without, nothing is learned or measured"
        yield split.finding("no boxes", "annotations", what, remedy)
        return
    single = [video_id for video_id, images in left.images_of_videos().items() if len(images) == 1]
    if single:
        what = f"{len(single)} of {len(left.videos)} videos have one frame, for example {left.videos[single[0]]}"
        remedy = "they say nothing about time; make pseudo-videos of stills with python -m stnet.data.stills"
        yield split.finding("videos of one frame", f"videos (id {single[0]})", what, remedy)
    used = Counter(box.category_id for box in left.boxes)
    for identity, name in left.categories.items():
        if split.name == "train" and not used[identity]:
            what = f"{name!r:.80} has no box"
            remedy = "remove the class, or add videos that show it: it would never be predicted"
            yield split.finding("class without boxes", f"categories (id {identity})", what, remedy)


def _video_findings(split: Split) -> Iterator[Finding]:
    images_of_videos = split.annotations.images_of_videos()
    for video_id, name in split.annotations.videos.items():
        entry = f"videos (id {video_id})"
        images = images_of_videos[video_id]
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


def _blank_frames(split: Split) -> Iterator[Finding]:
    """Find videos with frames that show nothing: black, or of one colour."""
    marked = {box.image_id for box in split.annotations.boxes}
    for video_id, images in split.annotations.images_of_videos().items():
        blank = [image for image in images if image.id in split.facts.blank]
        if not blank:
            continue
        black = all(split.facts.blank[image.id] <= BLANK_LEVELS for image in blank)
        boxes = sum(image.id in marked for image in blank)
        what = f"{len(blank)} of {len(images)} frames are {'wholly black' if black else 'of one colour throughout'}"
        what += f" ({blank[0].file_name}), {boxes} of them with boxes" if boxes else f" ({blank[0].file_name})"
        remedy = "restore them from the source, or leave them out: nothing is to be seen there"
        name = split.annotations.videos[video_id]
        yield split.finding("blank frames", f"videos (id {video_id})", f"{name}: {what}", remedy)


def _misplaced(images: list[ImageEntry]) -> tuple[ImageEntry, ImageEntry] | None:
    """Return the first frame and its successor whose names, alike but for their last number, count the other way."""
    for before, after in pairwise(images):
        (stem, number), (other_stem, other) = (_NUMBERED.match(i.file_name).groups() for i in (before, after))
        if number and other and stem == other_stem and int(other) < int(number):
            return before, after
    return None
