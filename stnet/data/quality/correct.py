"""Corrected annotation files: what a check found and a program can put right."""

import json
import os
from collections import defaultdict
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from stnet.data.annotations.entries import BoxEntry, ImageEntry
from stnet.data.annotations.repairs import BUV_DUPLICATES, BUV_MALIGNANT, Repair, repair_box
from stnet.data.quality.findings import DUPLICATE_IOU, Split, iou
from stnet.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class FrameFacts:
    """What reading the frames of a split told: ids of unusable images, and (height, width) that differ."""

    unusable: set[int]
    sizes: dict[int, tuple[int, int]]


def correct(split: Split, facts: FrameFacts) -> tuple[dict, list[Repair]]:
    """The corrected document of a split, other keys kept as they are, and everything that was changed.

    Entries that cannot be used go, with the frames whose file is unusable and all that refers to them. Boxes
    are put in order, clipped, and removed where empty or drawn twice; a frame that loses its last box this
    way is marked as not annotated. The errata of BUV are applied.
    """
    return _Corrector(split, facts).run()


def write_corrected(split: Split, document: dict) -> Path:
    """Replaces the annotation file of a split, keeping the original beside it; returns where.

    Raises `DataError` where the folder cannot be written or an earlier original would be lost.
    """
    original = split.file.with_name(split.file.name + ".original")
    if original.exists():
        raise DataError(f"{original}: exists from an earlier repair; move it away first")
    partial = split.file.with_name(split.file.name + ".partial")
    try:
        partial.write_text(json.dumps(document) + "\n")
        split.file.rename(original)
        os.replace(partial, split.file)
    except OSError as error:
        raise DataError(
            f"{split.file}: cannot be replaced ({error.strerror}); copy the data set to a folder you own"
        ) from error
    return original


class _Corrector:
    def __init__(self, split: Split, facts: FrameFacts):
        self.split = split
        self.facts = facts
        self.done: list[Repair] = []
        self.labels: dict[str, int] = {}
        for identity, name in split.annotations.categories.items():
            self.labels.setdefault(name.lower(), identity)
        boxes = [split.document["annotations"][box.position] for box in split.annotations.boxes]
        self.box_ids: set[int] = set()
        self.free_ids = count(1 + max((box.get("id", 0) for box in boxes), default=0))

    def run(self) -> tuple[dict, list[Repair]]:
        document, annotations = self.split.document, self.split.annotations
        for problem in self.split.problems:
            kept = problem.kind == "duplicate id" and problem.entry.startswith("annotations")
            self._did(problem.kind, problem.entry, f"{problem.what}: {'numbered anew' if kept else 'left out'}")
        videos = {i: name for i, name in annotations.videos.items() if not self._is_duplicate(i, name)}
        images = [image for image in annotations.images if image.video_id in videos and self._is_usable(image)]
        images = self._listed_once(images)
        with_frames = {image.video_id for image in images}
        boxes, lost = self._boxes(images, videos)
        corrected = document | {
            "categories": _kept(document["categories"], self._categories()),
            "videos": _kept(document["videos"], with_frames),
            "images": [self._image(image, boxes, lost) for image in images],
            "annotations": [box for image in images for box in boxes[image.id]],
        }
        for video_id in videos.keys() - with_frames:
            self._did("video without frames", f"videos (id {video_id})", f"{videos[video_id]}: left out")
        return corrected, self.done

    def _categories(self) -> set[int]:
        """The classes that stay: the first of each name."""
        for identity, name in self.split.annotations.categories.items():
            first = self.labels[name.lower()]
            if first != identity:
                self._did("duplicate class", f"categories (id {identity})", f"{name}: merged with id {first}")
        return set(self.labels.values())

    def _is_duplicate(self, video_id: int, name: str) -> bool:
        if name not in BUV_DUPLICATES:
            return False
        self._did("BUV erratum", f"videos (id {video_id})", f"{name} duplicates {BUV_DUPLICATES[name]}: left out")
        return True

    def _is_usable(self, image: ImageEntry) -> bool:
        if image.id in self.split.paths and image.id not in self.split.missing | self.facts.unusable:
            return True
        self._did("unusable frame", image.entry, f"{image.file_name}: left out with its boxes")
        return False

    def _listed_once(self, images: list[ImageEntry]) -> list[ImageEntry]:
        kept: dict[str, ImageEntry] = {}
        for image in images:
            if kept.setdefault(image.file_name, image) is not image:
                self._did("file listed twice", image.entry, f"{image.file_name}: left out the second time")
        return list(kept.values())

    def _boxes(self, images: list[ImageEntry], videos: dict[int, str]) -> tuple[dict[int, list[dict]], set[int]]:
        """The corrected boxes of every image, and the images that lost a box that marked something."""
        entries = self.split.boxes_of_images()
        boxes: dict[int, list[dict]] = {}
        lost = self.split.images_of_unusable_boxes()
        for image in images:
            height, width = self.facts.sizes.get(image.id, (image.height, image.width))
            kept: list[tuple[int, tuple[float, ...], dict]] = []
            for entry in entries[image.id]:
                corners, done = repair_box(entry.bbox, height, width)
                for kind, what in done:
                    self._did(kind, entry.entry, f"{image.file_name}: {what}")
                if corners is None:
                    lost.add(image.id)
                    continue
                category = self._category(entry, image, videos[image.video_id])
                if any(category == c and iou(corners, other) > DUPLICATE_IOU for c, other, _ in kept):
                    self._did("duplicate box", entry.entry, f"{image.file_name}: left out the second time")
                    continue
                kept.append((category, corners, self._box(entry, category, corners, bool(done))))
            boxes[image.id] = [box for _, _, box in kept]
        return boxes, lost

    def _category(self, entry: BoxEntry, image: ImageEntry, video: str) -> int:
        category = self.labels[self.split.annotations.categories[entry.category_id].lower()]
        malignant = self.labels.get("malignant")
        if video not in BUV_MALIGNANT or malignant is None or category == malignant:
            return category
        self._did("BUV erratum", entry.entry, f"{image.file_name}: relabelled malignant")
        return malignant

    def _box(self, entry: BoxEntry, category: int, corners: tuple[float, ...], changed: bool) -> dict:
        raw = self.split.document["annotations"][entry.position] | {"category_id": category}
        if "id" in raw:
            # A second box of the same id gets the next free one.
            raw["id"] = raw["id"] if raw["id"] not in self.box_ids else next(self.free_ids)
            self.box_ids.add(raw["id"])
        if not changed:
            return raw
        x0, y0, x1, y1 = corners
        return raw | {"bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0)}

    def _image(self, image: ImageEntry, boxes: dict[int, list[dict]], lost: set[int]) -> dict:
        raw = dict(self.split.document["images"][image.position])
        if image.id in self.facts.sizes:
            raw["height"], raw["width"] = self.facts.sizes[image.id]
            self._did("wrong size", image.entry, f"{image.file_name}: {raw['width']}x{raw['height']} as in the file")
        if boxes[image.id] and not image.annotated:
            del raw["annotated"]
            self._did("contradiction", image.entry, f"{image.file_name}: counts as annotated")
        if image.id in lost and not boxes[image.id]:
            raw["annotated"] = False
            self._did("frame left without boxes", image.entry, f"{image.file_name}: counts as not annotated")
        return raw

    def _did(self, kind: str, entry: str, what: str) -> None:
        self.done.append(Repair(kind=kind, entry=entry, what=what))


def _kept(items: list, ids) -> list[dict]:
    """The first object of each of the ids."""
    first: dict[int, dict] = defaultdict(dict)
    for item in items:
        if isinstance(item, dict) and isinstance(item.get("id"), int) and item["id"] in ids:
            first.setdefault(item["id"], item)
    return list(first.values())
