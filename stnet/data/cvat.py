"""CVAT annotation files (XML 1.1, "for video" and "for images"), read without trusting them.

The XML is streamed through expat: no document type, hence no entities, bounded size and depth.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from xml.parsers import expat

from stnet.data.annotations.entries import MAX_COORDINATE, MAX_FILE_BYTES, MAX_ID, MAX_NAME_LENGTH
from stnet.errors import DataError

MAX_DEPTH = 32
_OTHER_SHAPES = frozenset({"polygon", "polyline", "points", "cuboid", "ellipse", "mask", "skeleton"})


@dataclass(frozen=True, kw_only=True)
class Mark:
    """One box in one frame: corners x0 y0 x1 y1 in pixels, the name of its class, which lesion it is."""

    label: str
    box: tuple[float, float, float, float]
    instance: int


@dataclass(frozen=True, kw_only=True)
class CvatFile:
    """Marks by frame number ("for video": `tracks`) and by file name ("for images": `images`).

    An image without marks is listed with none. `ignored` counts shapes that are no boxes.
    """

    tracks: dict[int, list[Mark]]
    images: dict[str, list[Mark]]
    ignored: int


def read_cvat(file: Path) -> CvatFile:
    """Reads a CVAT file; raises `DataError` naming file and line."""
    try:
        size = file.stat().st_size
        if size > MAX_FILE_BYTES:
            raise DataError(f"{file}: {size} bytes, of which only {MAX_FILE_BYTES} are read; split it")
        content = file.read_bytes()
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror}); check the path") from error
    return _Reader(file).read(content)


@dataclass
class _Reader:
    file: Path
    tracks: dict[int, list[Mark]] = field(default_factory=dict)
    images: dict[str, list[Mark]] = field(default_factory=dict)
    ignored: int = 0
    _open: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    _instances: int = 0

    def read(self, content: bytes) -> CvatFile:
        self._parser = expat.ParserCreate()
        self._parser.StartDoctypeDeclHandler = self._refuse_doctype
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        try:
            self._parser.Parse(content, True)
        except expat.ExpatError as error:
            raise DataError(f"{self.file}: not valid XML ({error}); export it again") from error
        if not self.tracks and not self.images:
            raise DataError(f"{self.file}: no track and no image; export as CVAT for video or CVAT for images")
        return CvatFile(tracks=self.tracks, images=self.images, ignored=self.ignored)

    def _start(self, name: str, attributes: dict[str, str]) -> None:
        if len(self._open) >= MAX_DEPTH:
            raise self._error("nested too deeply for a CVAT file")
        if not self._open and name != "annotations":
            raise self._error(f"<{name:.40}> where <annotations> is expected")
        parent, outer = self._open[-1] if self._open else ("", {})
        self._open.append((name, attributes))
        if name == "track":
            self._instances += 1
        elif name == "image":
            self.images.setdefault(self._attribute(attributes, "name"), [])
        elif name == "box" and parent == "track":
            self._add_tracked(attributes, outer)
        elif name == "box" and parent == "image":
            self._instances += 1
            label = self._attribute(attributes, "label")
            mark = Mark(label=label, box=self._corners(attributes), instance=self._instances)
            self.images[outer["name"]].append(mark)
        elif name in _OTHER_SHAPES:
            self.ignored += 1

    def _add_tracked(self, attributes: dict[str, str], track: dict[str, str]) -> None:
        number = self._attribute(attributes, "frame")
        if not number.isdecimal() or len(number) > 12 or int(number) > MAX_ID:
            raise self._error(f"frame is {number!r:.40}, not a frame number")
        marks = self.tracks.setdefault(int(number), [])
        if attributes.get("outside") == "1":
            return
        label = self._attribute(track, "label")
        marks.append(Mark(label=label, box=self._corners(attributes), instance=self._instances))

    def _end(self, name: str) -> None:
        self._open.pop()

    def _corners(self, attributes: dict[str, str]) -> tuple[float, float, float, float]:
        values = []
        for key in ("xtl", "ytl", "xbr", "ybr"):
            text = self._attribute(attributes, key)
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not abs(value) <= MAX_COORDINATE:
                raise self._error(f"{key} is {text!r:.40}, not a coordinate")
            values.append(value)
        x0, y0, x1, y1 = values
        return x0, y0, x1, y1

    def _attribute(self, attributes: dict[str, str], key: str) -> str:
        value = attributes.get(key)
        if not value or len(value) > MAX_NAME_LENGTH:
            raise self._error(f"{key} is {'missing' if value is None else 'empty or too long'}")
        return value

    def _refuse_doctype(self, *_: object) -> None:
        raise self._error("has a document type, which CVAT files have not")

    def _error(self, what: str) -> DataError:
        return DataError(f"{self.file}: line {self._parser.CurrentLineNumber}: {what}; export it again")
