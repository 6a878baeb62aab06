"""The one plan of repairs: what is wrong with annotations, and which of it is put right how.

Loading applies it, `python -m stnet.data.check` prints it and `--repair` writes it, so that training on a set and on
its repaired copy is the same training.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import count
from pathlib import PurePosixPath

from stnet.data.annotations.box_repair import Size, is_among, repair_box, same_shape, scaled_bbox, scaled_box
from stnet.data.annotations.buv import BUV_DUPLICATES, BUV_MALIGNANT
from stnet.data.annotations.entries import (
    Annotations,
    BoxEntry,
    EntryError,
    ImageEntry,
    first_positions,
    region_of,
    rotation_holder,
)
from stnet.data.annotations.facts import FrameFacts
from stnet.data.annotations.repairs import Change, Repair
from stnet.data.shapes import Box, around_turned_box, ordered

EMPTIED = "frame left without boxes"
"""Kind of the repair that follows from others which take the last box of a frame."""


def plan_repairs(annotations: Annotations, facts: FrameFacts, *, errata: bool = True) -> list[Repair]:
    """Return what is wrong with the entries of an annotation file, in the order of its treatment.

    *Automatic* repairs are beyond doubt; loading applies them:

    - a box drawn right to left or upwards has its corners put in order; one that reaches beyond the image is clipped;
      one that covers nothing of it is left out;
    - a rotated box (`rotation`, `attributes.rotation`) becomes the upright box around it, as when converting;
    - of two boxes of one class that overlap by more than 95 % the second is left out;
    - a frame that loses its last box this way counts as not annotated: something was marked there;
    - a frame with a crowd region (`iscrowd`) or a region to be ignored (`ignore`) counts as not annotated and loses its
      boxes: it holds lesions that nobody marked one by one;
    - a file listed twice keeps its first place, which takes over the boxes of the second;
    - a box whose id is taken gets a free one (nothing refers to it); an entry written twice word for word stays once;
    - a video without frames is left out; the errata of BUV are applied by name, unless `errata` is False.

    Loading refuses a file that needs more; `check --repair` then leaves out or changes what a person should see first:

    - an entry that cannot be understood, a frame at a place that is taken, a frame whose file is missing, damaged or
      outside of the data set: left out, with the boxes of the frame;
    - `annotated` is false but there are boxes: somebody looked, so it becomes true;
    - a file that shows the annotated picture at another scale: the size is corrected, the boxes are scaled;
    - a file of another shape: nobody can tell where the boxes belong. The size is corrected, the boxes go, and the
      frame counts as not annotated;
    - two classes of one name (case does not matter) are merged; of two videos of one name the second is renamed.

    Neither loading nor repairing does anything where different classes, videos or frames share an id, since what refers
    to it may mean either, nor where there is no class at all.

    The plan of a repaired file is empty but for what nothing can be done about.

    Args:
        annotations: read with `strict=False`.
        facts: what is known of the files of the frames.
        errata: apply the errata of the BUV data set.
    """
    return _Planner(annotations, facts, errata).plan()


class _Planner:
    """Goes through the entries from the whole to its parts; what one stage leaves out, later ones do not see.

    `images` and `boxes` hold what is left; `regions` the images with a region that is no box of one lesion, and what it
    is; `drawn_on` the size of the image that each box was drawn on; `misfits` the images whose boxes go because their
    file has another shape.
    """

    def __init__(self, annotations: Annotations, facts: FrameFacts, errata: bool):
        self.annotations, self.facts, self.errata = annotations, facts, errata
        self.document = annotations.document
        self.repairs: list[Repair] = []
        self.images = {image.id: image for image in annotations.images}
        self.boxes = annotations.boxes_of_images()
        self.annotated = {image.id: image.annotated for image in annotations.images}
        self.lost_marks: set[int] = set()
        self.regions = {box.image_id: box.region for box in annotations.boxes if box.region}
        self.labels = {box.position: box.category_id for box in annotations.boxes}
        self.drawn_on = {
            box.position: (image.height, image.width) for image in annotations.images for box in self.boxes[image.id]
        }
        self.misfits: set[int] = set()

    def plan(self) -> list[Repair]:
        free_ids = count(1 + max(first_positions(self.document, "annotations"), default=0))
        for problem in self.annotations.problems:
            self._not_understood(problem, free_ids)
        self._classes()
        self._contradictions()
        self._rotated_boxes()
        self._duplicate_videos()
        self._unusable_files()
        self._files_listed_twice()
        self._malignant_videos()
        for image in self.images.values():
            self._region(image)
            self._size(image)
            boxes_kept = self._boxes(image)
            self._emptied(image, boxes_kept)
        self._videos_without_frames()
        return self.repairs

    def _add(
        self, entry: str, kind: str, what: str, done: str = "", changes: Sequence[Change] = (), **keys: str | bool
    ) -> None:
        self.repairs.append(Repair(entry=entry, kind=kind, what=what, done=done, changes=tuple(changes), **keys))

    def _not_understood(self, problem: EntryError, free_ids: count) -> None:
        def add(done: str = "", changes: Sequence[Change] = (), **keys: bool) -> None:
            self._add(problem.entry, problem.kind, problem.what, done, changes, remedy=problem.remedy, **keys)

        if problem.place is None:
            return add()
        name, position = problem.place
        if problem.kind == "duplicate id" and name == "annotations":
            return add("numbered anew", [_edit(name, position, id=next(free_ids))], automatic=True)
        if problem.kind == "duplicate id":
            twin = first_positions(self.document, name)[self.document[name][position]["id"]]
            if self.document[name][twin] != self.document[name][position]:
                return add()
            return add("left out the second time", [_gone(name, position)], automatic=True, lossless=True)
        if problem.kind == "duplicate video name":
            new = self._free_video_name(self.document[name][position]["name"])
            return add(f"renamed {new}", [_edit(name, position, name=new)])
        if name == "annotations":
            self._lose_mark(self.document[name][position])
        return add("left out", [_gone(name, position)])

    def _lose_mark(self, box: object) -> None:
        image_id = box.get("image_id") if isinstance(box, dict) else None
        if isinstance(image_id, int) and image_id in self.images:
            self.lost_marks.add(image_id)
            if region_of(box):
                self.regions[image_id] = region_of(box)

    def _free_video_name(self, name: str) -> str:
        taken = {*self.annotations.videos.values(), *(c.keys["name"] for r in self.repairs for c in _renamings(r))}
        return next(new for new in (f"{name}-{number}" for number in count(2)) if new not in taken)

    def _classes(self) -> None:
        """Merge classes of one name."""
        positions = first_positions(self.document, "categories")
        first: dict[str, int] = {}
        for identity, name in self.annotations.categories.items():
            kept = first.setdefault(name.lower(), identity)
            if kept == identity:
                continue
            moved = [position for position, label in self.labels.items() if label == identity]
            self.labels |= dict.fromkeys(moved, kept)
            changes = [_edit("annotations", position, category_id=kept) for position in moved]
            self._add(
                f"categories (id {identity})",
                "duplicate class",
                f"{name!r:.80} is the class of id {kept} too (case does not matter)",
                f"merged with id {kept}",
                [*changes, _gone("categories", positions[identity])],
                remedy="merge them",
                lossless=True,
            )

    def _contradictions(self) -> None:
        for image in self.images.values():
            if image.annotated or not self.boxes[image.id] or image.id in self.regions:
                continue
            self.annotated[image.id] = True
            what = f"annotated is false but the frame has {_number(self.boxes[image.id], 'box')}"
            change = _edit("images", image.position, annotated=True)
            self._add(
                image.entry, "contradiction", what, "counts as annotated", [change], remedy="remove either of them"
            )

    def _rotated_boxes(self) -> None:
        """Have boxes that are turned become upright ones, but for those that a region of their frame takes away."""
        for image in self.images.values():
            if image.id not in self.regions:
                self.boxes[image.id] = [self._upright(box, image) for box in self.boxes[image.id]]

    def _upright(self, box: BoxEntry, image: ImageEntry) -> BoxEntry:
        """Return the box around one that is turned; one that covers nothing stays as it is, to be found by that."""
        x, y, w, h = box.bbox
        if not box.turn or not w or not h:
            return box
        x0, y0, x1, y1 = (round(value, 6) for value in around_turned_box(ordered(x, y, x + w, y + h), box.turn))
        upright = replace(box, bbox=(x0, y0, x1 - x0, y1 - y0), turn=0.0)
        raw = self.document["annotations"][box.position]
        holder = rotation_holder(raw)
        keys = {"rotation": 0} if holder is raw else {"attributes": holder | {"rotation": 0}}
        changes = [self._moved(box, (x0, y0, x1, y1)), _edit("annotations", box.position, **keys)]
        what = f"{image.file_name}: the box is turned by {box.turn:g} degrees"
        done = "became the upright box around it"
        self._add(box.entry, "rotated box", what, done, changes, remedy="draw it upright", automatic=True)
        return upright

    def _duplicate_videos(self) -> None:
        """Leave out what the authors of BUV say is there twice."""
        positions = first_positions(self.document, "videos")
        for video_id, name in self.annotations.videos.items():
            if not self.errata or name not in BUV_DUPLICATES:
                continue
            changes = [_gone("videos", positions[video_id])]
            for image in [image for image in self.images.values() if image.video_id == video_id]:
                changes += self._leave_out(image)
            what = f"{name} duplicates {BUV_DUPLICATES[name]}"
            entry = f"videos (id {video_id})"
            self._add(entry, "BUV erratum", what, "left out", changes, automatic=True, lossless=True)

    def _unusable_files(self) -> None:
        for image_id, problem in self.facts.unusable.items():
            image = self.images.get(image_id)
            if image is None:
                continue
            self._boxes(image)  # to tell what is wrong with them
            done = f"left out with {_number(self.boxes[image_id], 'box')}"
            changes = self._leave_out(image)
            self._add(image.entry, problem.kind, problem.what, done, changes, remedy=problem.remedy)

    def _leave_out(self, image: ImageEntry) -> list[Change]:
        """Return what removes a frame and its boxes."""
        del self.images[image.id]
        boxes = self.boxes.pop(image.id)
        return [_gone("images", image.position), *(_gone("annotations", box.position) for box in boxes)]

    def _files_listed_twice(self) -> None:
        """Give the boxes of a second entry of a file to the first."""
        first: dict[str, ImageEntry] = {}
        for image in list(self.images.values()):
            kept = first.setdefault(PurePosixPath(image.file_name).as_posix(), image)  # `./a.png` is `a.png`
            if kept is image:
                continue
            moved, annotated = self.boxes[image.id], self.annotated[image.id]
            self._leave_out(image)
            self.boxes[kept.id] += moved
            changes = [_gone("images", image.position)]
            changes += [_edit("annotations", box.position, **self._owner(box, kept)) for box in moved]
            if annotated and not self.annotated[kept.id]:
                self.annotated[kept.id] = True
                changes.append(_edit("images", kept.position, annotated=True))
            if image.id in self.lost_marks:
                self.lost_marks.add(kept.id)
            if image.id in self.regions:
                self.regions[kept.id] = self.regions[image.id]
            what = f"{image.file_name} is {kept.entry} too"
            done = "left out the second time" + (f", {_number(moved, 'box')} moved to the first" if moved else "")
            self._add(image.entry, "file listed twice", what, done, changes, automatic=True, lossless=True)

    def _owner(self, box: BoxEntry, image: ImageEntry) -> dict:
        raw = self.document["annotations"][box.position]
        return {"image_id": image.id} | ({"video_id": image.video_id} if "video_id" in raw else {})

    def _malignant_videos(self) -> None:
        """Label the lesions that the authors of BUV say are malignant."""
        names = {name.lower(): identity for identity, name in reversed(self.annotations.categories.items())}
        malignant = names.get("malignant")
        if not self.errata or malignant is None:
            return
        for video_id, name in self.annotations.videos.items():
            if name not in BUV_MALIGNANT:
                continue
            boxes = [b.position for i in self.images.values() if i.video_id == video_id for b in self.boxes[i.id]]
            changes = [_edit("annotations", b, category_id=malignant) for b in boxes if self.labels[b] != malignant]
            if not changes:
                continue
            self.labels |= dict.fromkeys(boxes, malignant)
            what = f"the lesion of {name} is malignant"
            done = f"{_number(changes, 'box')} relabelled"
            self._add(f"videos (id {video_id})", "BUV erratum", what, done, changes, automatic=True)

    def _region(self, image: ImageEntry) -> None:
        """Have a frame with lesions that nobody marked one by one count as not annotated."""
        if image.id not in self.regions:
            return
        boxes, self.boxes[image.id] = self.boxes[image.id], []
        self.annotated[image.id] = False
        changes = [_gone("annotations", box.position) for box in boxes]
        changes.append(_edit("images", image.position, annotated=False))
        region = self.regions[image.id]
        what = f"{image.file_name}: holds a {region}"
        done = f"counts as not annotated, {_number(boxes, 'box')} left out"
        self._add(image.entry, region, what, done, changes, remedy="mark its lesions one by one", automatic=True)

    def _size(self, image: ImageEntry) -> None:
        """Correct the size of a frame; boxes that cannot be placed on it go."""
        size = self.facts.sizes.get(image.id)
        if size is None:
            return
        written = image.height, image.width
        changes = [_edit("images", image.position, height=size[0], width=size[1])]
        done = "size corrected"
        boxes = self.boxes[image.id]
        if boxes and not same_shape(written, size):
            changes += [_gone("annotations", box.position) for box in boxes]
            changes.append(_edit("images", image.position, annotated=False))
            self.annotated[image.id] = False
            self.misfits.add(image.id)
            done += f", {_number(boxes, 'box')} left out, counts as not annotated"
        elif boxes:
            # The boxes themselves are written by `_boxes`, this repair holds for them too.
            done += f", {_number(boxes, 'box')} scaled"
            changes += [self._moved(box, scaled_box(box.bbox, self._scale(box, image))) for box in boxes]
        what = f"{image.file_name} is {size[1]}x{size[0]}, annotated as {image.width}x{image.height}"
        remedy = "correct its size, and where its boxes are"
        self._add(image.entry, "wrong size", what, done, changes, remedy=remedy)

    def _true_size(self, image: ImageEntry) -> Size:
        written = image.height, image.width
        # What is wrong with the boxes of a misfit is told nevertheless, as of the image that they were drawn on.
        return written if image.id in self.misfits else self.facts.sizes.get(image.id, written)

    def _scale(self, box: BoxEntry, image: ImageEntry) -> tuple[float, float]:
        """Return what turns x and y of a box as written into pixels of the frame."""
        height, width = self._true_size(image)
        drawn_height, drawn_width = self.drawn_on[box.position]
        return width / drawn_width, height / drawn_height

    def _boxes(self, image: ImageEntry) -> int:
        """Put the boxes of a frame in order; return how many are left."""
        height, width = self._true_size(image)
        kept: list[Box] = []
        labels: list[int] = []
        for box in self.boxes[image.id]:
            corners, done = repair_box(scaled_bbox(box.bbox, self._scale(box, image)), height, width)
            change = _gone("annotations", box.position) if corners is None else self._moved(box, corners)
            for kind, what, deed in done:
                keys = {"remedy": "draw it again", "automatic": True}
                self._add(box.entry, kind, f"{image.file_name}: {what}", deed, [change], **keys)
            if corners is None:
                continue
            label = self.labels[box.position]
            if is_among(corners, [c for c, other in zip(kept, labels, strict=True) if other == label]):
                what = f"{image.file_name}: the same box a second time"
                gone = [_gone("annotations", box.position)]
                keys = {"remedy": "remove it", "automatic": True, "lossless": True}
                self._add(box.entry, "duplicate box", what, "left out", gone, **keys)
                continue
            kept.append(corners)
            labels.append(label)
        return len(kept)

    def _emptied(self, image: ImageEntry, boxes_left: int) -> None:
        """Have a frame that lost its last box count as not annotated."""
        marked = self.boxes[image.id] or image.id in self.lost_marks
        if boxes_left or not marked or not self.annotated[image.id]:
            return
        change = _edit("images", image.position, annotated=False)
        what = f"{image.file_name}: lost its last box"
        self._add(image.entry, EMPTIED, what, "counts as not annotated", [change], automatic=True)

    def _moved(self, box: BoxEntry, corners: Box) -> Change:
        x0, y0, x1, y1 = corners
        keys: dict = {"bbox": [x0, y0, x1 - x0, y1 - y0]}
        if "area" in self.document["annotations"][box.position]:
            keys["area"] = (x1 - x0) * (y1 - y0)
        return _edit("annotations", box.position, **keys)

    def _videos_without_frames(self) -> None:
        positions = first_positions(self.document, "videos")
        gone = {c.position for r in self.repairs for c in r.changes if c.list == "videos" and c.keys is None}
        left = {image.video_id for image in self.images.values()}
        listed = {image.video_id for image in self.annotations.images}
        for video_id, name in self.annotations.videos.items():
            if video_id in left or positions[video_id] in gone:
                continue
            what = f"{name} has no frames" + (" left" if video_id in listed else "")
            change = _gone("videos", positions[video_id])
            keys = {"remedy": "remove it", "automatic": True, "lossless": video_id not in listed}
            self._add(f"videos (id {video_id})", "video without frames", what, "left out", [change], **keys)


def _edit(name: str, position: int, /, **keys: object) -> Change:
    return Change(list=name, position=position, keys=keys)


def _gone(name: str, position: int) -> Change:
    return Change(list=name, position=position, keys=None)


def _renamings(repair: Repair) -> list[Change]:
    return [change for change in repair.changes if change.list == "videos" and change.keys and "name" in change.keys]


def _number(things: Sequence, name: str) -> str:
    return f"1 {name}" if len(things) == 1 else f"{len(things)} {name}es"
