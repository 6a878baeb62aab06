"""From files of any supported format to what they say; the format is seen in the contents."""

from collections.abc import Callable
from pathlib import Path

from stnet.data.annotations.entries import load_json
from stnet.data.formats.coco import parse_coco, read_coco
from stnet.data.formats.cvat import read_cvat
from stnet.data.formats.marks import MarksFile
from stnet.errors import DataError

FORMATS: dict[str, Callable[[Path], MarksFile]] = {"coco": read_coco, "cvat": read_cvat}
"""The reader of each format by the name that `--format` takes."""

ENDINGS = frozenset({".json", ".xml"})


def read_marks(path: Path, format_name: str | None = None) -> list[MarksFile]:
    """Read an annotation file, or all of those in a folder.

    Args:
        path: the file or folder.
        format_name: a key of `FORMATS`; by default the contents tell.

    Raises:
        DataError: naming the file.
    """
    if not path.is_dir():
        return [_read(path, format_name)]
    try:
        files = sorted(file for file in path.iterdir() if file.suffix.lower() in ENDINGS and file.name[0] != ".")
    except OSError as error:
        raise DataError(f"{path}: cannot be listed ({error.strerror})") from error
    if not files:
        raise DataError(f"{path}: no annotation file ({', '.join(sorted(ENDINGS))}) in it")
    return [_read(file, format_name) for file in files]


def _read(file: Path, format_name: str | None) -> MarksFile:
    if format_name is not None:
        return FORMATS[format_name](file)
    if file.suffix.lower() not in ENDINGS:
        raise DataError(f"{file}: give a file of one of the formats {', '.join(FORMATS)}, or name it by --format")
    if file.suffix.lower() == ".xml":
        return read_cvat(file)
    return parse_coco(load_json(file), file)
