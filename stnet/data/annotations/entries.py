"""Annotation files, read as if a stranger had written them.

`read_annotations` turns JSON into typed entries and accepts nothing it does not understand: every id, number,
name and path is checked, every problem names the file, the entry and the remedy. What is repaired is decided in
`stnet.data.annotations.plan`, what the entries mean in `stnet.data.index`.
"""

import json
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from stnet.contents import misnamed
from stnet.data.annotations.foreign import foreign_format
from stnet.errors import DataError

# An annotation of a frame takes about 400 bytes: room for half a million frames, a bounded bill for a hostile
# file.
MAX_FILE_BYTES = 256 * 2**20
MAX_IMAGE_SIDE = 16384
MAX_COORDINATE = 1e6
MAX_ID = 2**53
MAX_NAME_LENGTH = 512

_WHOLE_NUMBERS = frozenset({"id", "image_id", "video_id", "frame_id", "category_id", "instance_id", "width", "height"})
NOT_ONE_LESION = {"iscrowd": "crowd region", "ignore": "region to be ignored"}
"""Keys that say of a box that it is no box of one lesion, and what it is then."""

_CLASS_REMEDY = "write a name of one line"
_PATH_REMEDY = "write a path relative to the dataset, with forward slashes and without `..`"
_CONTROL_CHARACTERS = frozenset(map(chr, (*range(32), 127)))


class EntryError(DataError):
    """One entry of an annotation file that cannot be used.

    Args:
        file: the annotation file.
        entry: for example `annotations[3] (id 4)`.
        kind: a short fixed name of the problem.
        what: the offending value.
        remedy: what a person can do.
        place: list and position of the entry in the document, where it is one object.
    """

    def __init__(self, file: Path, entry: str, kind: str, what: str, remedy: str, place: tuple[str, int] | None = None):
        super().__init__(f"{file}: {entry}: {what}; {remedy}")
        self.file, self.entry, self.kind, self.what, self.remedy = file, entry, kind, what, remedy
        self.place = place


@dataclass(frozen=True, kw_only=True)
class ImageEntry:
    """A frame as the file lists it. `file_name` is relative, has forward slashes and no `..`."""

    entry: str
    position: int
    id: int
    file_name: str
    video_id: int
    frame_id: int
    height: int
    width: int
    annotated: bool


@dataclass(frozen=True, kw_only=True)
class BoxEntry:
    """A box as the file lists it: `bbox` is (x, y, w, h) in pixels, finite but otherwise as written.

    `turn` are the degrees, clockwise on the screen, by which it is turned about its centre (`rotation`, or
    `attributes.rotation` as Datumaro writes it). `region` is one of `NOT_ONE_LESION` where it is no box of one lesion,
    else empty.
    """

    entry: str
    position: int
    image_id: int
    category_id: int
    bbox: tuple[float, float, float, float]
    turn: float = 0.0
    region: str = ""


@dataclass(frozen=True, kw_only=True)
class Annotations:
    """The entries of one file: categories and videos as id -> name, frames and boxes in file order.

    `document` is what was read, `problems` are the entries of it that cannot be used and are missing here.
    """

    file: Path
    categories: dict[int, str]
    videos: dict[int, str]
    images: tuple[ImageEntry, ...]
    boxes: tuple[BoxEntry, ...]
    document: dict = field(repr=False)
    problems: tuple[EntryError, ...] = ()

    def boxes_of_images(self) -> dict[int, list[BoxEntry]]:
        """Return the boxes of every image, by its id; an empty list where it has none."""
        boxes: dict[int, list[BoxEntry]] = {image.id: [] for image in self.images}
        for box in self.boxes:
            boxes[box.image_id].append(box)
        return boxes

    def images_of_videos(self) -> dict[int, list[ImageEntry]]:
        """Return the images of every video, by its id, in the order of their `frame_id`."""
        images: dict[int, list[ImageEntry]] = {video_id: [] for video_id in self.videos}
        for image in sorted(self.images, key=lambda image: image.frame_id):
            images[image.video_id].append(image)
        return images


def read_annotations(file: Path, *, strict: bool = True) -> Annotations:
    """Read an annotation file.

    Args:
        file: JSON in the form that `stnet.data.index` describes.
        strict: raise the first problem; otherwise all of them are in `Annotations.problems`.

    Raises:
        EntryError: when strict, an entry cannot be used.
        DataError: it is not an annotation file at all.
    """
    return parse_annotations(load_json(file), file, strict=strict)


def parse_annotations(document: dict, file: Path, *, strict: bool = True) -> Annotations:
    """Read a document that is loaded already as `read_annotations` does; `file` is named in messages."""
    annotations = _Reader(file).read(document)
    if strict and annotations.problems:
        raise annotations.problems[0]
    return annotations


def load_json(file: Path) -> dict:
    """Load a JSON object; see `load_document`.

    Raises:
        DataError: the file cannot be read, is too large or nested too deeply, or holds no JSON object.
    """
    document = load_document(file)
    if not isinstance(document, dict):
        raise DataError(f"{file}: a JSON {type(document).__name__} where an object with `images` is expected")
    return document


def load_document(file: Path) -> Any:
    """Load JSON with bounded size and depth.

    NaN and Infinity, which many programs write, are let through to be refused with the entry they stand in. Ids and
    sizes that are written as 1.0 become integers.

    Raises:
        DataError: the file cannot be read, is too large or nested too deeply, holds an object with a key twice, or is
            of a format that is not read.
    """
    try:
        status = file.stat()
        if not stat.S_ISREG(status.st_mode):
            raise DataError(f"{file}: not a regular file; give the path of a JSON annotation file")
        if status.st_size > MAX_FILE_BYTES:
            raise DataError(
                f"{file}: {status.st_size} bytes, of which only {MAX_FILE_BYTES} are read; split the dataset"
            )
        document = json.loads(file.read_bytes(), object_pairs_hook=_entry)
    except FileNotFoundError as error:
        raise DataError(f"{file}: no such file; check the path") from error
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the path and its permissions") from error
    except RecursionError as error:
        raise DataError(f"{file}: nested too deeply for an annotation file; export it again") from error
    except ValueError as error:
        other = misnamed(file, "JSON")
        if other is None or "a JSON text" in other:
            other = f"not valid JSON ({error}); export it again"
        raise DataError(f"{file}: {other}") from error
    foreign = foreign_format(document)
    if foreign is not None:
        raise DataError(f"{file}: {foreign}")
    return document


def _entry(pairs: list[tuple[str, Any]]) -> dict:
    """Return a JSON object; of a key that stands twice nobody knows which value was meant."""
    entry = dict(pairs)
    if len(entry) < len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r:.80} twice in one object")
    for key in _WHOLE_NUMBERS & entry.keys():
        if isinstance(entry[key], float) and entry[key].is_integer():
            entry[key] = int(entry[key])
    return entry


def first_positions(document: dict, name: str) -> dict[int, int]:
    """Return where the first object of each id stands in a list of an annotation document."""
    positions: dict[int, int] = {}
    for position, item in enumerate(document[name]):
        identity = item.get("id") if isinstance(item, dict) else None
        if isinstance(identity, int) and not isinstance(identity, bool):
            positions.setdefault(identity, position)
    return positions


def region_of(box: dict) -> str:
    """Return which of `NOT_ONE_LESION` an object of `annotations` is, empty for a box of one lesion."""
    return next((meaning for key, meaning in NOT_ONE_LESION.items() if box.get(key, 0) != 0), "")


def rotation_holder(box: dict) -> dict:
    """Return what says by how much an object of `annotations` is turned: its `attributes`, or itself."""
    attributes = box.get("attributes")
    return attributes if isinstance(attributes, dict) and "rotation" in attributes else box


def relative_path_problem(name: str) -> str | None:
    """Return what makes `name` unfit as a path inside the data set (absolute, `..`, NUL, drive, ...), or None."""
    if not name or len(name) > MAX_NAME_LENGTH:
        return f"has {len(name)} characters"
    if not _CONTROL_CHARACTERS.isdisjoint(name):
        return "contains a control character"
    if "\\" in name or name[1:2] == ":":
        return "is a Windows path"
    try:
        name.encode("utf-8", "surrogateescape")  # as names of files that are not UTF-8 are kept
    except UnicodeEncodeError:
        return "holds half a character"
    path = PurePosixPath(name)
    if path.is_absolute():
        return "is an absolute path"
    if ".." in path.parts or not path.parts:
        return "leaves the folder"
    return None


def class_name_problem(name: str) -> str | None:
    """Return what makes `name` unfit as the name of a class, or None."""
    if not name.strip() or len(name) > MAX_NAME_LENGTH or not _CONTROL_CHARACTERS.isdisjoint(name):
        return "is empty, too long or holds control characters"
    return None


def is_coordinate(value: object) -> bool:
    """Return whether a value is a finite number of a plausible size."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) <= MAX_COORDINATE  # not of NaN


class _Reader:
    """Walks the lists of one document; `self.entry` and `self.place` say where it stands, for the messages."""

    def __init__(self, file: Path):
        self.file = file
        self.problems: list[EntryError] = []
        self.entry = ""
        self.place: tuple[str, int] | None = None

    def read(self, document: dict) -> Annotations:
        categories = dict(self._entries(document, "categories", self._named(class_name_problem, _CLASS_REMEDY)))
        videos = dict(self._entries(document, "videos", self._named(relative_path_problem, _PATH_REMEDY)))
        self.place = None
        if not categories:
            self._report("categories", "missing categories", "empty", "list the classes as {id, name}")
        self._distinct_names(videos, document)
        images = tuple(self._entries(document, "images", lambda item, at: self._image(item, at, videos)))
        images = self._distinct_frames(images, videos)
        known = {image.id for image in images}
        boxes = tuple(self._entries(document, "annotations", lambda item, at: self._box(item, at, categories, known)))
        return Annotations(
            file=self.file,
            categories=categories,
            videos=videos,
            images=images,
            boxes=boxes,
            document=document,
            problems=tuple(self.problems),
        )

    def _entries(self, document: dict, key: str, parse: Callable) -> Iterator:
        """Parse each object of a top-level list, reporting and skipping what cannot be used."""
        items = document.get(key)
        if not isinstance(items, list):
            found = "missing" if items is None else f"a JSON {type(items).__name__}"
            raise DataError(f"{self.file}: `{key}` is {found}; it must be a list (an empty one is fine)")
        ids: set[int] = set()
        for position, item in enumerate(items):
            self.entry, self.place = f"{key}[{position}]", (key, position)
            try:
                if not isinstance(item, dict):
                    self._refuse("not an object", f"{item!r:.80} is no JSON object", "remove it")
                if key != "annotations" or "id" in item:
                    identity = self._integer(item, "id")
                    self.entry += f" (id {identity})"
                    if identity in ids:
                        self._repeated_id(key, identity)
                    ids.add(identity)
                yield parse(item, position)
            except EntryError as error:
                self.problems.append(error)

    def _repeated_id(self, key: str, identity: int) -> None:
        problem = "duplicate id", f"id {identity} occurs twice", "give every entry its own id"
        if key != "annotations":
            self._refuse(*problem)
        # Nothing refers to the ids of boxes: the box itself can be used.
        self._report(self.entry, *problem)

    def _distinct_names(self, videos: dict[int, str], document: dict) -> None:
        """Report a second video of the same name."""
        positions = first_positions(document, "videos")
        taken: set[str] = set()
        for identity, name in videos.items():
            if name in taken:
                self.place = ("videos", positions[identity])
                what = f"{name!r} names two videos"
                self._report(f"videos (id {identity})", "duplicate video name", what, "rename one of them")
            taken.add(name)

    def _named(self, problem_of: Callable[[str], str | None], remedy: str) -> Callable:
        def parse(item: dict, position: int) -> tuple[int, str]:
            return item["id"], self._name(item, "name", problem_of, remedy)

        return parse

    def _image(self, item: dict, position: int, videos: dict[int, str]) -> ImageEntry:
        video_id = self._integer(item, "video_id")
        if video_id not in videos:
            self._refuse("unknown video", f"video_id {video_id} is not among `videos`", "add the video")
        annotated = item.get("annotated", True)
        if not isinstance(annotated, bool):
            self._refuse("wrong type", f"annotated is {annotated!r:.40}", "write true or false, or leave it out")
        return ImageEntry(
            entry=self.entry,
            position=position,
            id=item["id"],
            file_name=self._name(item, "file_name", relative_path_problem, _PATH_REMEDY),
            video_id=video_id,
            frame_id=self._integer(item, "frame_id"),
            height=self._integer(item, "height", 1, MAX_IMAGE_SIDE),
            width=self._integer(item, "width", 1, MAX_IMAGE_SIDE),
            annotated=annotated,
        )

    def _box(self, item: dict, position: int, categories: dict[int, str], images: set[int]) -> BoxEntry:
        image_id = self._integer(item, "image_id")
        if image_id not in images:
            self._refuse("unknown image", f"image_id {image_id} is not among `images`", "remove the box")
        category_id = self._integer(item, "category_id")
        if category_id not in categories:
            self._refuse(
                "unknown category",
                f"category_id {category_id} is not among `categories`",
                "add it or correct the box",
            )
        return BoxEntry(
            entry=self.entry,
            position=position,
            image_id=image_id,
            category_id=category_id,
            bbox=self._bbox(item),
            turn=self._turn(item),
            region=self._region(item),
        )

    def _region(self, item: dict) -> str:
        for key in NOT_ONE_LESION:
            if item.get(key, 0) not in (0, 1):
                self._refuse("wrong type", f"{key} is {item[key]!r:.40}", "write 0 or 1, or leave it out")
        return region_of(item)

    def _bbox(self, item: dict) -> tuple[float, float, float, float]:
        bbox = item.get("bbox")
        if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(is_coordinate, bbox)):
            self._refuse(
                "bad box",
                f"bbox is {bbox!r:.80}",
                f"write four finite numbers [x, y, w, h] in pixels, each within {MAX_COORDINATE:.0f}",
            )
        x, y, w, h = map(float, bbox)
        return x, y, w, h

    def _turn(self, item: dict) -> float:
        holder = rotation_holder(item)
        turn = holder.get("rotation") or 0
        if not is_coordinate(turn):
            self._refuse("wrong number", f"rotation is {turn!r:.40}", "write degrees, or leave it out")
        return float(turn) % 360

    def _distinct_frames(self, images: tuple[ImageEntry, ...], videos: dict[int, str]) -> tuple[ImageEntry, ...]:
        """Leave out (and report) a second image at the same place of a video."""
        kept: dict[tuple[int, int], ImageEntry] = {}
        for image in images:
            place = (image.video_id, image.frame_id)
            if place in kept:
                taken, self.place = kept[place].entry, ("images", image.position)
                what = f"frame_id {image.frame_id} of video {videos[image.video_id]!r} is also {taken}"
                self._report(image.entry, "duplicate frame", what, "number the frames of a video 0, 1, 2, ...")
                continue
            kept[place] = image
        return tuple(kept.values())

    def _integer(self, item: dict, key: str, least: int = 0, most: int = MAX_ID) -> int:
        value = item.get(key)
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self._refuse(
                "wrong number",
                f"{key} is {'missing' if key not in item else f'{value!r:.40}'}",
                f"write an integer from {least} to {most}",
            )
        return value

    def _name(self, item: dict, key: str, problem_of: Callable[[str], str | None], remedy: str) -> str:
        value = item.get(key)
        if not isinstance(value, str):
            self._refuse("wrong type", f"{key} is {value!r:.40}", "write a string")
        problem = problem_of(value)
        if problem:
            self._refuse("bad name", f"{key} {value!r:.80} {problem}", remedy)
        return value

    def _refuse(self, kind: str, what: str, remedy: str) -> None:
        raise EntryError(self.file, self.entry, kind, what, remedy, self.place)

    def _report(self, entry: str, kind: str, what: str, remedy: str) -> None:
        self.problems.append(EntryError(self.file, entry, kind, what, remedy, self.place))
