"""CVAT annotation files (XML 1.1, "for video" and "for images", of jobs, tasks and projects).

A task states which frames of the video it shows (`start_frame`, `stop_frame`, `frame_filter`, `deleted_frames`, `size`)
and how large they are (`original_size`); a track lists every one of them from its first to an `outside` one. Frames
outside of the task were not seen. Nor were those that a track passes over: where a file lists key frames only, the
lesion is somewhere between them.
"""

import re
from collections import Counter
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath
from xml.etree import ElementTree

from stnet.data.annotations.entries import MAX_IMAGE_SIDE
from stnet.data.formats.marks import Box, FrameMarks, ImageMarks, Mark, MarksFile, Size, VideoBoxes, VideoMarks
from stnet.data.formats.xml_file import XmlReader, read_bytes
from stnet.data.shapes import around, around_ellipse, around_turned_box, ordered
from stnet.errors import DataError

_STATED = (
    *("size", "mode", "start_frame", "stop_frame", "frame_filter", "deleted_frames", "source"),
    *("original_size/width", "original_size/height"),
)
"""What is read of a task, relative to its element."""

_CLOSED_SHAPES = frozenset({"box", "polygon", "ellipse", "mask"})
_MAX_FRAMES = 10**6
"""Of one video: nine hours. What a file states beyond is refused, since every frame of a task is looked at."""


def read_cvat(file: Path) -> MarksFile:
    """Read a CVAT file.

    Raises:
        DataError: naming the file, and the line where there is one.
    """
    reader = _Reader(file)
    reader.parse(read_bytes(file))
    return reader.result()


def write_cvat(video: VideoBoxes) -> dict[str, str]:
    """Return a file of CVAT for video, by name: a track per lesion that is `outside` on frames without it.

    The format has no place for scores.
    """
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    meta = ElementTree.SubElement(root, "meta")
    task = ElementTree.SubElement(meta, "task")
    stated = {"name": video.name, "size": video.frames, "mode": "interpolation", "start_frame": 0}
    for key, value in (stated | {"stop_frame": video.frames - 1, "frame_filter": ""}).items():
        ElementTree.SubElement(task, key).text = str(value)
    labels = ElementTree.SubElement(task, "labels")
    for name in video.labels:
        ElementTree.SubElement(ElementTree.SubElement(labels, "label"), "name").text = name
    size = ElementTree.SubElement(task, "original_size")
    for key, value in zip(("width", "height"), video.size, strict=True):
        ElementTree.SubElement(size, key).text = str(value)
    ElementTree.SubElement(meta, "source").text = video.source
    for identity, track in enumerate(video.tracks()):
        element = ElementTree.SubElement(root, "track", id=str(identity), label=track[0][1].label, source="auto")
        numbers = {number for number, _ in track}
        for number, found in track:
            _write_box(element, number, found.box, outside=False)
            if number + 1 not in numbers and number + 1 < video.frames:
                _write_box(element, number + 1, found.box, outside=True)
    ElementTree.indent(root)
    text = ElementTree.tostring(root, encoding="unicode")
    return {f"{video.name}.xml": f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'}


def _write_box(track: ElementTree.Element, number: int, box: Box, outside: bool) -> None:
    corners = {key: f"{value:.4f}" for key, value in zip(("xtl", "ytl", "xbr", "ybr"), box, strict=True)}
    keys = {"frame": str(number), "keyframe": "1", "outside": str(int(outside)), "occluded": "0"}
    ElementTree.SubElement(track, "box", keys | corners | {"z_order": "0"})


@dataclass
class _Task:
    """What a file says of one task (or of one job, of the file as a whole), as text."""

    name: str = ""
    stated: dict[str, str] = field(default_factory=dict)


@dataclass
class _Track:
    """The marks of one track by frame, None where the lesion is out of sight."""

    task: str
    label: str
    instance: int
    frames: dict[int, Mark | None] = field(default_factory=dict)


@dataclass(frozen=True)
class _Frames:
    """The frames of a video that a task shows: which, how large, by what file; `step` is None where it states none."""

    covers: range | None
    deleted: frozenset[int]
    size: Size | None
    source: str | None
    step: int | None

    def without(self, number: int) -> str:
        """Return why the task does not show a frame; empty where it does."""
        if number in self.deleted:
            return "deleted in CVAT"
        return "" if self.covers is None or number in self.covers else "not a frame of the CVAT task"


class _Reader(XmlReader):
    root = "annotations"

    def __init__(self, file: Path):
        super().__init__(file)
        self._meta = _Task()
        self._tasks: dict[str, _Task] = {}
        self._task: _Task | None = None
        self._task_depth = 0
        self._tracks: list[_Track] = []
        self._images: list[ImageMarks] = []
        self._tasks_of_images: list[str] = []
        self._image: tuple[dict[str, str], list[Mark], list[str]] | None = None
        self._track: _Track | None = None
        self._instances = 0
        self._ids: set[tuple[str, str, str]] = set()
        self._notes: Counter[str] = Counter()

    def started(self, name: str, attributes: dict[str, str]) -> None:
        parent = self.path[-2] if len(self.path) > 1 else ""
        if self.path[1:2] == ["meta"]:
            self._start_task(name)
        elif parent == "annotations" and name == "track":
            self._start_track(attributes)
        elif parent == "annotations" and name == "image":
            self._take_id("image", attributes)
            self._image = (attributes, [], [])
        elif parent == "track" and self._track and ("frame" in attributes or name in _CLOSED_SHAPES):
            self._add_tracked(name, attributes)
        elif parent == "image" and self._image and name == "tag":
            self._image[2].append(self.text_of(attributes, "label"))
        elif parent == "image" and self._image and ("label" in attributes or name in _CLOSED_SHAPES):
            label = self.text_of(attributes, "label")
            box, shape = self._box(name, attributes)
            self._image[1].append(Mark(label=label, box=box, shape=shape))
        elif name in _CLOSED_SHAPES:
            raise self.refuse(f"a <{name}> outside of a track or an image")

    def ended(self, name: str, text: str) -> None:
        if self.path[1:2] == ["meta"]:
            self._end_meta(text)
        elif len(self.path) == 2 and name == "track" and self._track:
            self._tracks.append(self._track)
            self._track = None
        elif len(self.path) == 2 and name == "image" and self._image:
            self._end_image(*self._image)
            self._image = None

    def result(self) -> MarksFile:
        """Return the contents, once the file is walked."""
        tasks = self._tasks or {"": self._meta}
        frames = {key: self._frames_of(task) for key, task in tasks.items()}
        owners = {track.task for track in self._tracks}
        if not owners and not self._images:
            owners = {key for key, shown in frames.items() if shown.covers is not None}
            if not owners:
                raise DataError(
                    f"{self.file}: no track, no image and no task of a stated size; "
                    "export as CVAT for video or CVAT for images"
                )
        if "" in owners and "" not in frames:
            if len(frames) > 1:
                raise DataError(f"{self.file}: tracks of no task (task_id is missing); export each task on its own")
            frames[""] = next(iter(frames.values()))
        unknown = owners - set(frames)
        if unknown and self._tasks and len(self._tasks) > 1:
            raise DataError(
                f"{self.file}: tracks of a task {min(unknown)!r:.40} that it does not list; export it again"
            )
        owners |= self._without_tracks(frames, owners)
        only = next(iter(frames.values()))
        videos = tuple(self._video(key, frames.get(key, only), len(owners) > 1) for key in sorted(owners))
        return MarksFile(
            name=str(self.file), stem=self.file.stem, images=self._placed(frames), videos=videos, notes=self._notes
        )

    def _without_tracks(self, frames: dict[str, _Frames], owners: set[str]) -> set[str]:
        """Return the tasks on whose videos nothing was found, beside those with tracks."""
        if not self._tracks:
            return set()
        sources = {frames[key].source for key in owners & frames.keys()} | {None}
        found = {shown.source: key for key, shown in frames.items() if shown.covers is not None}
        return {key for source, key in found.items() if source not in sources}

    def _placed(self, frames: dict[str, _Frames]) -> tuple[ImageMarks, ...]:
        """Return the images, each with what its task says of the video that it was taken from, where it was."""
        tasks = [*self._tasks.values(), self._meta]
        if not any(task.stated.get("mode") == "interpolation" or "source" in task.stated for task in tasks):
            return tuple(ImageMarks(name=image.name, frame=image.frame) for image in self._images)
        only = next(iter(frames.values())) if len(frames) == 1 else None
        placed = []
        for image, task in zip(self._images, self._tasks_of_images, strict=True):
            shown = frames.get(task, only)
            if shown is None:
                raise DataError(
                    f"{self.file}: {image.frame.where}: of a task {task!r:.40} (task_id) that it does not list, among "
                    f"{len(frames)}; export each task on its own"
                )
            placed.append(_of_video(image, shown))
        return tuple(placed)

    def _start_task(self, name: str) -> None:
        if name in ("task", "job") and self._task is None:
            self._task, self._task_depth = _Task(), len(self.path)

    def _end_meta(self, text: str) -> None:
        task, depth = (self._task, self._task_depth) if self._task else (self._meta, 2)
        if self._task and len(self.path) == depth:
            key = self._task.stated.pop("id", "")
            if key in self._tasks:
                raise self.refuse(f"task {key!r:.40} twice")
            self._tasks[key] = self._task
            self._task = None
            return
        key = "/".join(self.path[depth:])
        if key.startswith("deleted_frames"):
            task.stated["deleted_frames"] = f"{task.stated.get('deleted_frames', '')} {text}"
        elif key in _STATED or (key == "id" and self._task):
            if task.stated.setdefault(key, text) != text:
                raise self.refuse(f"{key} is both {task.stated[key]!r:.40} and {text!r:.40}")
        elif key == "name":
            task.name = text

    def _start_track(self, attributes: dict[str, str]) -> None:
        self._take_id("track", attributes)
        self._instances += 1
        label = self.text_of(attributes, "label")
        self._track = _Track(task=attributes.get("task_id", ""), label=label, instance=self._instances)

    def _take_id(self, kind: str, attributes: dict[str, str]) -> None:
        key = kind, attributes.get("task_id", ""), attributes.get("id", "")
        if key in self._ids and key[2]:
            raise self.refuse(f"{kind} {key[2]!r:.40} twice")
        self._ids.add(key)

    def _add_tracked(self, name: str, attributes: dict[str, str]) -> None:
        number = self.integer(attributes, "frame")
        if number > _MAX_FRAMES:
            raise self.refuse(f"frame is {number}, more than {_MAX_FRAMES}")
        mark = None
        if not self._flag(attributes, "outside"):
            box, shape = self._box(name, attributes)
            mark = Mark(label=self._track.label, box=box, shape=shape, instance=self._track.instance)
        other = self._track.frames.setdefault(number, mark)
        if other == mark:
            return
        if other is None or mark is None or "box" not in {other.shape, mark.shape} or other.shape == mark.shape:
            raise self.refuse(f"a track has two different shapes on frame {number}")
        # Both are of one lesion: the box is what is asked for.
        self._track.frames[number] = mark if mark.shape == "box" else other
        self._notes["shapes beside the box of the same track are passed over"] += 1

    def _flag(self, attributes: dict[str, str], key: str) -> bool:
        value = attributes.get(key, "0")
        if value.lower() not in ("0", "1", "true", "false", "0.0", "1.0"):
            raise self.refuse(f"{key} is {value!r:.40}, neither 0 nor 1")
        return value.lower() in ("1", "true", "1.0")

    def _box(self, name: str, attributes: dict[str, str]) -> tuple[Box | None, str]:
        """Return the box around a shape, None where it encloses nothing, and what it is called."""
        turn = self.number(attributes, "rotation", 0.0) if name in _CLOSED_SHAPES else 0.0
        if name == "box":
            corners = ordered(*(self.number(attributes, key) for key in ("xtl", "ytl", "xbr", "ybr")))
            return (around_turned_box(corners, turn), "rotated box") if turn else (corners, "box")
        if name == "ellipse":
            x, y, radius_x, radius_y = (self.number(attributes, key) for key in ("cx", "cy", "rx", "ry"))
            return around_ellipse(x, y, radius_x, radius_y, turn), name
        if name == "mask":
            left, top, width, height = (self.number(attributes, key) for key in ("left", "top", "width", "height"))
            return ordered(left, top, left + width, top + height), name
        if name == "polygon":
            points = [point.split(",") for point in self.text_of_points(attributes)]
            if any(len(point) != 2 for point in points):
                raise self.refuse("points are not pairs of coordinates")
            return around([(self.to_number("points", x), self.to_number("points", y)) for x, y in points]), name
        return None, name[:40]

    def text_of_points(self, attributes: dict[str, str]) -> list[str]:
        """Return the points of a polygon, each still as text."""
        value = attributes.get("points")
        if not value:
            raise self.refuse("points is missing or empty")
        return value.split(";")

    def _end_image(self, attributes: dict[str, str], marks: list[Mark], tags: list[str]) -> None:
        if not marks and tags:
            marks = [Mark(label=tag, box=None, shape="tag of a whole frame") for tag in tags]
        elif tags:
            self._notes["tags of whole frames beside boxes are passed over"] += len(tags)
        name = self.text_of(attributes, "name")
        size = None
        if "width" in attributes or "height" in attributes:
            size = self._side(attributes, "width"), self._side(attributes, "height")
        # A video that is exported as images has the names of its frames made up from their numbers.
        match = re.fullmatch(r"frame_(\d{6,12})", PurePosixPath(name).stem)
        own = match is not None and "id" in attributes and int(match[1]) == self.integer(attributes, "id")
        frame = FrameMarks(where=f"{self.line}: image {name!r:.80}", marks=tuple(marks), size=size)
        self._images.append(
            ImageMarks(name=name, frame=frame, number=int(match[1]) if own else None, counts_from=0 if own else None)
        )
        self._tasks_of_images.append(attributes.get("task_id", ""))

    def _side(self, attributes: dict[str, str], key: str) -> int:
        value = self.integer(attributes, key, least=1)
        if value > MAX_IMAGE_SIDE:
            raise self.refuse(f"{key} is {value}, more than {MAX_IMAGE_SIDE}")
        return value

    def _frames_of(self, task: _Task) -> _Frames:
        stated = {key: self._stated_number(task, key) for key in ("start_frame", "stop_frame", "size")}
        for key, value in stated.items():
            if value is not None and value > _MAX_FRAMES:
                raise DataError(f"{self.file}: {key} is {value}, more than {_MAX_FRAMES} frames; export it again")
        start, stop, size = stated.values()
        step = self._step(task)
        first, stride = start or 0, step or 1
        covers = None
        if stop is not None or size is not None:
            last = stop if stop is not None else first + (size - 1) * stride
            covers = range(first, last + 1, stride)
        deleted = self._deleted(task, first, stride)
        if size is not None and covers is not None and not len(covers) - len(deleted) <= size <= len(covers):
            raise DataError(
                f"{self.file}: a task of {size} frames that are {len(covers)} by its start_frame, stop_frame and "
                "frame_filter; export it again"
            )
        width, height = (self._stated_number(task, f"original_size/{side}", 1) for side in ("width", "height"))
        if (width is None) != (height is None) or max(width or 0, height or 0) > MAX_IMAGE_SIDE:
            raise DataError(f"{self.file}: original_size is {width} x {height}; export it again")
        return _Frames(
            covers=covers,
            deleted=deleted,
            size=(width, height) if width and height else None,
            source=self._stated(task, "source") or None,
            step=step,
        )

    def _stated(self, task: _Task, key: str) -> str | None:
        return task.stated.get(key, self._meta.stated.get(key))

    def _stated_number(self, task: _Task, key: str, least: int = 0) -> int | None:
        text = self._stated(task, key)
        return self.to_integer(key, text, least) if text else None

    def _step(self, task: _Task) -> int | None:
        text = self._stated(task, "frame_filter")
        if not text:
            return None
        match = re.fullmatch(r"step\s*=\s*([1-9]\d{0,8})", text)
        if not match:
            raise DataError(f"{self.file}: frame_filter is {text!r:.40}, expected step=N; export it again")
        return int(match[1])

    def _deleted(self, task: _Task, first: int, stride: int) -> frozenset[int]:
        """Return the deleted frames, whether they are numbered in the video or in the task: neither reading is seen."""
        numbers: set[int] = set()
        for part in re.split(r"[,;\s]+", self._stated(task, "deleted_frames") or ""):
            if not part or part in ("[", "]"):
                continue
            match = re.fullmatch(r"\[?(\d{1,9})(?:-(\d{1,9}))?\]?", part)
            if not match:
                raise DataError(f"{self.file}: deleted_frames holds {part!r:.40}, no frame number; export it again")
            numbers.update(range(int(match[1]), min(int(match[2] or match[1]), _MAX_FRAMES) + 1))
        return frozenset(numbers | {first + number * stride for number in numbers})

    def _video(self, key: str, shown: _Frames, several: bool) -> VideoMarks:
        tracks = [track for track in self._tracks if track.task == key]
        marks: dict[int, list[Mark]] = {}
        for track in tracks:
            for number, mark in track.frames.items():
                marks.setdefault(number, []).extend([mark] if mark else [])
        gaps, covers = _passed_over(tracks, shown)
        where = f"{self.file}: task {key}" if several else str(self.file)
        frames = {}
        for number in sorted(marks.keys() | gaps | shown.deleted):
            unseen = shown.without(number)
            if not unseen and number in gaps:
                unseen = "between or after the key frames of a track"
            if unseen or marks[number]:
                frames[number] = FrameMarks(
                    where=f"{where}: frame {number}", marks=tuple(marks.get(number, ())), size=shown.size, unseen=unseen
                )
        return VideoMarks(
            where=where,
            video=_video_name(shown.source),
            frames=frames,
            covers=covers,
            shown=shown.covers,
            size=shown.size,
            stated_step=shown.step is not None,
        )


def _of_video(image: ImageMarks, shown: _Frames) -> ImageMarks:
    """Return the image with what its task says, where its name is made up from its number in a video."""
    if image.number is None:
        return image
    frame = replace(image.frame, size=image.frame.size or shown.size, unseen=shown.without(image.number))
    return replace(image, frame=frame, video=_video_name(shown.source), stated_step=shown.step is not None)


def _video_name(source: str | None) -> str | None:
    return PurePosixPath(source.replace("\\", "/")).stem if source else None


def _passed_over(tracks: list[_Track], shown: _Frames) -> tuple[set[int], range | None]:
    """Return the frames of a task that a track neither lists nor has left before, and the frames that were looked at.

    A file of key frames lists no last frame of a lesion either: it goes on to the end.
    """
    step, covers = shown.step or 1, shown.covers
    passed: set[int] = set()
    open_ends = []
    for track in tracks:
        numbers = sorted(track.frames)
        for number, following in pairwise(numbers):
            if track.frames[number] is not None:
                passed.update(range(number + step, min(following, number + _MAX_FRAMES), step))
        if numbers and track.frames[numbers[-1]] is not None:
            open_ends.append(numbers[-1])
    passed -= shown.deleted
    # CVAT lists a track to where it leaves or the task ends: one that ends in sight before has key frames only.
    seen_last = max((number for number in covers or () if number not in shown.deleted), default=0)
    if open_ends and (passed or min(open_ends) < seen_last):
        first = min(open_ends) + 1
        passed.update(n for track in tracks for n in track.frames if n >= first)
        if covers is None:
            covers = range(first)
        else:
            covers = covers[: len(range(covers.start, first, covers.step))]
    return passed, covers
