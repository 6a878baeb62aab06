"""Pascal VOC files: XML, one per image. Corners are taken as the tools of today write them, counted from 0."""

import math
from pathlib import Path, PurePosixPath

from stnet.data.annotations.entries import MAX_IMAGE_SIDE
from stnet.data.formats.marks import FrameMarks, ImageMarks, Mark, MarksFile, Size
from stnet.data.formats.xml_file import XmlReader, read_bytes
from stnet.data.shapes import around_turned_box, ordered
from stnet.errors import DataError

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_TURNED = ("cx", "cy", "w", "h", "angle")


def read_voc(file: Path, folder: str = "") -> MarksFile:
    """Read the marks of one image.

    Args:
        file: the XML file.
        folder: where it lies below the folder that is converted; it names the video where the file name has none.

    Raises:
        DataError: naming the file, and the line where there is one.
    """
    reader = _Reader(file)
    reader.parse(read_bytes(file))
    return reader.result(folder)


class _Reader(XmlReader):
    root = "annotation"

    def __init__(self, file: Path):
        super().__init__(file)
        self._stated: dict[str, str] = {}
        self._object: dict[str, str] = {}
        self._marks: list[Mark] = []

    def started(self, name: str, attributes: dict[str, str]) -> None:
        if self.path == ["annotation", "object"]:
            self._object = {}

    def ended(self, name: str, text: str) -> None:
        if self.path == ["annotation", "object"]:
            self._marks.append(self._mark(self._object))
        elif self.path[1:2] == ["object"]:
            self._note(self._object, "/".join(self.path[2:]), text)
        elif name in ("folder", "filename") or self.path[1:2] == ["size"]:
            self._note(self._stated, "/".join(self.path[1:]), text)

    def result(self, folder: str) -> MarksFile:
        """Return the contents, once the file is walked."""
        name = self._stated.get("filename", "").replace("\\", "/")
        if not name or len(name) > 512:
            raise DataError(f"{self.file}: filename is missing, empty or too long; export it again")
        if "/" not in name and folder:
            name = f"{folder}/{name}"
        stated = PurePosixPath(self._stated.get("folder", "").replace("\\", "/")).name
        frame = FrameMarks(where=f"{self.file}: {name!r:.80}", marks=tuple(self._marks), size=self._size())
        image = ImageMarks(name=name, frame=frame, video=stated or None)
        return MarksFile.of_image(self.file, image, statement="filename")

    def _note(self, holder: dict[str, str], key: str, text: str) -> None:
        """Keep a value; parts of an object and its polygon repeat theirs, which are not read."""
        if holder.setdefault(key, text) != text and not key.startswith(("part", "polygon", "attributes")):
            raise self.refuse(f"{key} is both {holder[key]!r:.40} and {text!r:.40}")

    def _size(self) -> Size | None:
        if "size/width" not in self._stated and "size/height" not in self._stated:
            return None
        sides = tuple(self.to_integer(key, self._stated.get(f"size/{key}", "")) for key in ("width", "height"))
        if sides == (0, 0):
            return None  # what tools write that have not seen the image
        if not 0 < min(sides) <= max(sides) <= MAX_IMAGE_SIDE:
            raise DataError(f"{self.file}: a picture of {sides[0]} x {sides[1]}; export it again")
        return sides

    def _mark(self, stated: dict[str, str]) -> Mark:
        label = stated.get("name", "")
        if not label or len(label) > 512:
            raise self.refuse("the name of an object is missing, empty or too long")
        difficult = stated.get("difficult", "0")
        if difficult not in ("0", "1", ""):
            raise self.refuse(f"difficult is {difficult!r:.40}, neither 0 nor 1")
        if difficult == "1":
            return Mark(label=label, box=None, shape="difficult object, to be ignored by the rules of VOC")
        if any(f"robndbox/{key}" in stated for key in _TURNED):
            x, y, width, height, angle = self._values(stated, "robndbox", _TURNED)
            corners = ordered(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            return Mark(label=label, box=around_turned_box(corners, math.degrees(angle)), shape="rotated box")
        return Mark(label=label, box=ordered(*self._values(stated, "bndbox", _CORNERS)))

    def _values(self, stated: dict[str, str], holder: str, keys: tuple[str, ...]) -> list[float]:
        for key in keys:
            if not stated.get(f"{holder}/{key}"):
                raise self.refuse(f"{holder} has no {key}")
        return [self.to_number(key, stated[f"{holder}/{key}"]) for key in keys]
