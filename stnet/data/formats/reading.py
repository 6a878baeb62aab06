"""From files of any supported format to what they say; the format is seen in the contents."""

from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from xml.parsers import expat

from stnet.contents import misnamed
from stnet.data.annotations.entries import load_document
from stnet.data.formats.coco import parse_coco, read_coco
from stnet.data.formats.cvat import read_cvat
from stnet.data.formats.label_studio import parse_label_studio, read_label_studio
from stnet.data.formats.labelme import parse_labelme, read_labelme
from stnet.data.formats.marks import MarksFile
from stnet.data.formats.voc import read_voc
from stnet.data.formats.xml_file import read_bytes
from stnet.data.formats.yolo import read_yolo
from stnet.errors import DataError

FORMATS: dict[str, Callable[[Path, str], MarksFile]] = {
    "coco": lambda file, folder: read_coco(file),
    "cvat": lambda file, folder: read_cvat(file),
    "label-studio": lambda file, folder: read_label_studio(file),
    "labelme": read_labelme,
    "voc": read_voc,
}
"""The reader of each format by the name that `--format` takes: the file, and the folder that it lies in below the one
that is converted. `yolo`, whose labels make sense only together, is beside these."""


def read_marks(path: Path, format_name: str | None = None) -> list[MarksFile]:
    """Read an annotation file, or all of those in a folder and the folders in it.

    Args:
        path: the file or folder.
        format_name: one of `ANNOTATION_FORMATS` of `stnet.choices`; by default the contents tell.

    Raises:
        DataError: naming the file.
    """
    if format_name == "yolo" or (format_name is None and path.suffix.lower() == ".txt" and path.is_file()):
        return read_yolo(path)
    if not path.is_dir():
        return [_read(path, "", format_name)]
    try:
        found = sorted(file for file in path.rglob("*") if file.is_file() and file.name[0] != ".")
    except OSError as error:
        raise DataError(f"{path}: cannot be listed ({error.strerror})") from error
    files = [file for file in found if file.suffix.lower() in (".json", ".xml")]
    if not files and any(file.suffix.lower() == ".txt" for file in found):
        return read_yolo(path)
    if not files:
        raise DataError(f"{path}: no annotation file (.json, .xml, .txt) in it")
    return [_read(file, _folder(file, path), format_name) for file in files]


def _folder(file: Path, base: Path) -> str:
    folder = file.parent.relative_to(base).as_posix()
    return "" if folder == "." else folder


def _read(file: Path, folder: str, format_name: str | None) -> MarksFile:
    if format_name is not None:
        return FORMATS[format_name](file, folder)
    ending = file.suffix.lower()
    if ending == ".xml":
        return read_voc(file, folder) if _root(read_bytes(file)) == "annotation" else read_cvat(file)
    if ending != ".json":
        other = misnamed(file, "an annotation file")
        if other is not None and "text" not in other:
            raise DataError(f"{file}: {other}")
        raise DataError(f"{file}: give a .json, .xml or .txt file, a folder of them, or name the format by --format")
    document = load_document(file)
    if isinstance(document, list) or (isinstance(document, dict) and "data" in document and "images" not in document):
        return parse_label_studio(document, file)
    if not isinstance(document, dict):
        raise DataError(f"{file}: a JSON {type(document).__name__}, where an annotation file is expected")
    if "shapes" in document and "images" not in document:
        return parse_labelme(document, file, folder)
    return parse_coco(document, file)


def _root(content: bytes) -> str:
    """Return the outermost element of an XML file, empty where it is none; nothing else of it is looked at."""
    found: list[str] = []
    parser = expat.ParserCreate()
    parser.StartElementHandler = lambda name, _: found.append(name)
    parser.StartDoctypeDeclHandler = _stop
    with suppress(expat.ExpatError, ValueError, LookupError):
        parser.Parse(content[:65536], False)
    return found[0] if found else ""


def _stop(*_: object) -> None:
    raise ValueError("no document type is read")
