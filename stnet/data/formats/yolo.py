"""YOLO labels: a text file per image, boxes and polygons as shares of the picture; classes in a file beside them."""

import json
import re
from collections.abc import Sequence
from pathlib import Path

from stnet.data.formats.marks import FrameMarks, ImageMarks, Mark, MarksFile, VideoBoxes
from stnet.data.formats.xml_file import read_bytes
from stnet.data.shapes import around, ordered
from stnet.errors import DataError

CLASS_FILES = ("data.yaml", "dataset.yaml", "classes.txt", "obj.names", "labels.txt")
"""Files that may name the classes, in the order in which they are looked for."""

MAX_CLASSES = 10_000
_QUOTED = r"""(?:'(?:[^']|'')*'|"(?:[^"\\]|\\.)*")"""
_FLOW_ITEM = re.compile(rf"""\s*((?:['"]?\d+['"]?\s*:\s*)?(?:{_QUOTED}|[^,'"\s][^,]*))\s*(?:,|$)""")
"""One of `[a, 'b', 2: "c"]`, with the comma behind it."""
_OUTSIDE = 0.5
"""How far a share may lie beyond 0 and 1: boxes may reach beyond the picture, pixels are not taken for shares."""


def read_yolo(path: Path) -> list[MarksFile]:
    """Read a folder of labels, or one file of them.

    Args:
        path: the folder, with or without folders in it (`labels/clip1/000012.txt`), or one label file.

    Raises:
        DataError: naming the file and the line.
    """
    files = [path] if path.is_file() else sorted(file for file in path.rglob("*") if file.suffix.lower() == ".txt")
    labels = [file for file in files if file.name not in CLASS_FILES and not file.name.startswith(".")]
    if not labels:
        raise DataError(f"{path}: no label file (*.txt) in it")
    names, points = _statements(path if path.is_dir() else path.parent)
    base = path if path.is_dir() else path.parent
    images = tuple(_read_image(file, base, names, points) for file in labels)
    return [MarksFile(name=str(path), stem=path.stem, images=images)]


def write_yolo(video: VideoBoxes) -> dict[str, str]:
    """Return `data.yaml` and a label file per frame, by path; frames without boxes have empty ones.

    The format has no place for scores and for the numbers of lesions.
    """
    names = "\n".join(f"  {number}: {json.dumps(label)}" for number, label in enumerate(video.labels))
    width, height = video.size
    files = {"data.yaml": f"names:\n{names}\n"}
    for number in range(video.frames):
        lines = []
        for found in video.boxes.get(number, ()):
            x0, y0, x1, y1 = found.box
            values = (x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height
            lines.append(f"{video.labels.index(found.label)} " + " ".join(f"{value:.8f}" for value in values) + "\n")
        files[f"labels/{video.name}/{number:06d}.txt"] = "".join(lines)
    return files


def _read_image(file: Path, base: Path, names: dict[int, str], points: int) -> ImageMarks:
    lines = _lines(file)
    marks = tuple(
        _mark(_without_points(line.split(), points, f"{file}: line {number}"), names, f"{file}: line {number}")
        for number, line in enumerate(lines, 1)
        if line.strip()
    )
    frame = FrameMarks(where=str(file), marks=marks, relative=True)
    return ImageMarks(name=file.relative_to(base).with_suffix("").as_posix(), frame=frame)


def _without_points(fields: list[str], points: int, where: str) -> list[str]:
    """Return the class and the box of a line that also has `points` values of key points."""
    if points and len(fields) != 5 + points:
        raise DataError(
            f"{where}: {len(fields)} values; expected a class, a box and {points} of key points (kpt_shape)"
        )
    return fields[:5] if points else fields


def _mark(fields: Sequence[str], names: dict[int, str], where: str) -> Mark:
    number = fields[0].removesuffix(".0")
    if not re.fullmatch(r"[0-9]{1,9}", number) or int(number) not in names:
        raise DataError(
            f"{where}: class {fields[0]!r:.40} is not among the {len(names)} classes named beside the labels"
        )
    label = names[int(number)]
    values = [_share(field, where) for field in fields[1:]]
    if len(fields) in (5, 6):  # the sixth is a confidence or the number of a track
        _check_range(values[:4], where)
        x, y, width, height = values[:4]
        track = int(fields[5]) if len(fields) == 6 and re.fullmatch(r"\d{1,9}", fields[5]) else None
        box = ordered(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
        return Mark(label=label, box=box, instance=track)
    if len(values) < 8 or len(values) % 2:
        raise DataError(
            f"{where}: {len(fields)} values; expected a class and x, y, width, height, or the points of a polygon "
            "(four or more)"
        )
    _check_range(values, where)
    box = around(list(zip(values[::2], values[1::2], strict=True)))
    if box is None:
        raise DataError(f"{where}: a polygon that encloses nothing; remove it")
    return Mark(label=label, box=box, shape="polygon")


def _share(field: str, where: str) -> float:
    if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d{1,3})?", field):
        raise DataError(f"{where}: {field!r:.40} is no number")
    return float(field)


def _check_range(values: Sequence[float], where: str) -> None:
    if not all(-_OUTSIDE <= value <= 1 + _OUTSIDE for value in values):
        raise DataError(f"{where}: coordinates beyond 0 to 1: shares of the picture are expected, not pixels")


def _statements(folder: Path) -> tuple[dict[int, str], int]:
    """Return the names of the classes, by files in the folder or the two above, and the number of key point values.

    Raises:
        DataError: no file names the classes, or two name them differently.
    """
    found: list[tuple[Path, dict[int, str]]] = []
    points = 0
    for place in (folder, *folder.resolve().parents[:2]):
        for name in CLASS_FILES:
            file = place / name
            if not file.is_file() or (name == "labels.txt" and _looks_like_labels(file)):
                continue
            names = _from_yaml(file) if file.suffix == ".yaml" else dict(enumerate(_names_by_line(file)))
            if not names or len(names) > MAX_CLASSES:
                raise DataError(f"{file}: names {len(names)} classes; list them, one a line, or as `names:`")
            if file.suffix == ".yaml":
                _check_count(file, names)
            points = points or (_key_points(file) if file.suffix == ".yaml" else 0)
            found.append((file, names))
    if not found:
        raise DataError(f"{folder}: no {', '.join(CLASS_FILES)} beside the labels that names the classes; add one")
    first, names = found[0]
    for file, others in found[1:]:
        differing = [number for number in names.keys() & others.keys() if names[number] != others[number]]
        if differing:
            number = min(differing)
            raise DataError(
                f"{first}: class {number} is {names[number]!r:.60}, by {file} it is {others[number]!r:.60}; remove the "
                "file that is not of these labels"
            )
    return names, points


def _check_count(file: Path, names: dict[int, str]) -> None:
    """Compare the `nc` of a data.yaml with the names in it."""
    stated = next((match for line in _lines(file) if (match := re.match(r"nc\s*:\s*(\d{1,9})\b", line))), None)
    if stated and int(stated[1]) != len(names):
        raise DataError(f"{file}: nc is {stated[1]}, but names lists {len(names)} classes; correct either")


def _key_points(file: Path) -> int:
    """How many values of key points stand behind the box of each line, by the `kpt_shape` of a data.yaml."""
    stated = next((line for line in _lines(file) if re.match(r"kpt_shape\s*:", line)), None)
    if stated is None:
        return 0
    match = re.fullmatch(r"kpt_shape\s*:\s*\[\s*(\d{1,4})\s*,\s*([23])\s*\]\s*(#.*)?", stated.strip())
    if match is None:
        raise DataError(f"{file}: {stated.strip()!r:.60}; write kpt_shape: [number, 2 or 3]")
    return int(match[1]) * int(match[2])


def _names_by_line(file: Path) -> list[str]:
    lines = [line.strip() for line in _lines(file)]
    while lines and not lines[-1]:
        lines.pop()
    if any(not line or len(line) > 512 for line in lines):
        raise DataError(f"{file}: an empty or overlong class name; write one a line")
    return lines


def _looks_like_labels(file: Path) -> bool:
    return all(re.fullmatch(r"[\d.\s-]*", line) for line in _lines(file))


def _from_yaml(file: Path) -> dict[int, str]:
    """Return the `names` of a data.yaml: `[a, b]`, a list of `- a`, lines of `0: a`; no other YAML is understood."""
    lines = [re.sub(r"(^|\s)#.*", "", line).rstrip() for line in _lines(file)]
    at = next((number for number, line in enumerate(lines) if re.match(r"names\s*:", line)), None)
    if at is None:
        raise DataError(f"{file}: has no `names`; list the classes there")
    first = lines[at].split(":", 1)[1].strip()
    if first:
        block = first
        for line in lines[at + 1 :]:
            if block.count("[") + block.count("{") <= block.count("]") + block.count("}"):
                break
            block += " " + line.strip()
        items = _flow(block, file)
    else:
        items = []
        for line in lines[at + 1 :]:
            if line and not re.match(r"\s|-", line):
                break
            if line:
                items.append(line.strip().removeprefix("-").strip() if line.strip()[0] == "-" else line.strip())
    return _numbered(items, file)


def _flow(block: str, file: Path) -> list[str]:
    if block[0] + block[-1] not in ("[]", "{}") or re.search(r"[\[\]{}&*!|>]", block[1:-1]):
        raise DataError(f"{file}: names is {block!r:.60}; write [a, b], or one class a line")
    items, inner, at = [], block[1:-1].strip(), 0
    while at < len(inner):
        match = _FLOW_ITEM.match(inner, at)
        if match is None:
            raise DataError(f"{file}: names holds {inner[at:]!r:.60}; write [a, b], or one class a line")
        items.append(match[1].strip())
        at = match.end()
    return items


def _numbered(items: list[str], file: Path) -> dict[int, str]:
    names: dict[int, str] = {}
    for position, item in enumerate(items):
        match = re.fullmatch(rf"(?:['\"]?(\d{{1,9}})['\"]?\s*:\s+)?({_QUOTED}|[^'\"&*!|>][^:]*)", item)
        name = _unquoted(match[2]) if match else None
        if match is None or name is None:
            raise DataError(f"{file}: names holds {item!r:.60}; write [a, b], or one class a line")
        number = int(match[1]) if match[1] else position
        if number in names or not name or len(name) > 512:
            raise DataError(f"{file}: class {number} is named twice, or not at all")
        names[number] = name
    return names


def _unquoted(text: str) -> str | None:
    """Return the name that YAML writes so, None where a backslash means nothing that JSON knows."""
    if text[0] == '"':
        try:
            return json.loads(text).strip()
        except ValueError:
            return None
    return (text[1:-1].replace("''", "'") if text[0] == "'" else text).strip()


def _lines(file: Path) -> list[str]:
    content = read_bytes(file)
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: is no text in UTF-8 ({error.reason}); save it as UTF-8") from error
