"""Mutated annotation files through check and convert.

    python -m tests.fuzz.annotations --seed 0 --files 300

Each file is a COCO or CVAT file of two small videos in which something was changed. Files with harmless changes (order
and number of keys, integral floats, encodings) must convert completely. Of the others it is asked that no command ends
in a traceback, and that no box, and no negative, stands on a frame for which the file does not name it.
"""

import argparse
import contextlib
import io
import json
import random
import re
import shutil
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from PIL import Image

from stnet.data import check, convert
from stnet.data.index import load_index
from stnet.errors import StnetError

WIDTH, HEIGHT, LENGTH = 48, 36, 5
VIDEOS = ("left", "right")
JUNK = (
    *(None, True, -1, 0, 1, 3, 2.5, 2**60, 10**400, float("nan"), float("inf"), 1e308),
    *("", "1", "x", "../x.png", "right/000001.png", "a\0b", "\ud800", "\u202e", "é", "x" * 700),
    *([], {}, [[[[]]]], [1, 2], {"id": 1}, [True] * 4, [3, 3, "4", 4]),
)
"""What stands in place of a value."""

Frame = tuple[str, int]
"""A video and the number of a frame in it."""


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What a file says: the boxes of each frame, as shares of the picture, and the frames that it lists at all."""

    boxes: dict[Frame, list[tuple[float, ...]]]
    listed: set[Frame]


@dataclass(frozen=True, kw_only=True)
class Case:
    """A mutated file: its content, what was done to it, and whether all of it must still be converted."""

    name: str
    content: bytes
    change: str
    harmless: bool = False


def coco_document() -> dict:
    """A COCO file that is a data set of its own, too."""
    images, boxes = [], []
    for video_id, video in enumerate(VIDEOS, start=1):
        for number in range(LENGTH):
            image = {"id": len(images) + 1, "file_name": f"{video}/{number:06d}.png", "width": WIDTH, "height": HEIGHT}
            images.append(image | {"video_id": video_id, "frame_id": number})
            for lesion in range(number % 3):
                bbox = [2 * number + 9 * lesion, video_id * 4, 7 + video_id, 6 + number]
                boxes.append(
                    {"id": len(boxes) + 1, "image_id": image["id"], "category_id": 1 + lesion, "bbox": bbox}
                    | {"iscrowd": 0, "area": bbox[2] * bbox[3], "segmentation": [], "instance_id": lesion}
                )
    return {
        "info": {"year": 2024},
        "categories": [{"id": 1, "name": "benign"}, {"id": 2, "name": "malignant"}],
        "videos": [{"id": i, "name": video} for i, video in enumerate(VIDEOS, start=1)],
        "images": images,
        "annotations": boxes,
    }


def cvat_document(images: bool) -> ElementTree.Element:
    """A CVAT file: of the first video with tracks, or of both with images."""
    root = ElementTree.Element("annotations")
    ElementTree.SubElement(root, "version").text = "1.1"
    task = ElementTree.SubElement(ElementTree.SubElement(root, "meta"), "task")
    if images:
        for video in VIDEOS:
            for number in range(LENGTH):
                keys = {"id": str(len(root)), "name": f"{video}/{number:06d}.png"}
                image = ElementTree.SubElement(root, "image", keys | {"width": str(WIDTH), "height": str(HEIGHT)})
                for lesion in range(number % 3):
                    _cvat_box(image, 2 * number + 9 * lesion, len(video), {"label": "benign", "occluded": "0"})
        return root
    for key, text in (("size", LENGTH), ("start_frame", 0), ("stop_frame", LENGTH - 1), ("frame_filter", "")):
        ElementTree.SubElement(task, key).text = str(text)
    size = ElementTree.SubElement(task, "original_size")
    ElementTree.SubElement(size, "width").text = str(WIDTH)
    ElementTree.SubElement(size, "height").text = str(HEIGHT)
    ElementTree.SubElement(root.find("meta"), "source").text = f"{VIDEOS[0]}.mp4"
    for lesion, label in enumerate(("benign", "malignant")):
        track = ElementTree.SubElement(root, "track", {"id": str(lesion), "label": label, "source": "manual"})
        for number in range(1 + lesion, LENGTH):
            outside = str(int(number == LENGTH - 1))
            keys = {"frame": str(number), "keyframe": "1", "outside": outside, "occluded": "0"}
            _cvat_box(track, 3 * number + lesion, 4 + lesion, keys)
    return root


def _cvat_box(parent: ElementTree.Element, x: float, y: float, keys: dict[str, str]) -> None:
    corners = {"xtl": x, "ytl": y, "xbr": x + 8, "ybr": y + 7}
    ElementTree.SubElement(parent, "box", keys | {key: f"{value:.2f}" for key, value in corners.items()})


def coco_claims(content: bytes) -> Claims:
    """Read a mutated COCO file as a lenient stranger would."""
    document = json.loads(content)
    images = {_key(image.get("id")): image for image in document["images"] if isinstance(image, dict)}
    boxes: dict[Frame, list[tuple[float, ...]]] = {}
    for entry in document["annotations"]:
        image = images.get(_key(entry.get("image_id"))) if isinstance(entry, dict) else None
        frame = _frame(image.get("file_name")) if image else None
        if frame and image:
            with contextlib.suppress(TypeError, ValueError):
                x, y, w, h = entry["bbox"]
                boxes.setdefault(frame, []).append(_shares((x, y, x + w, y + h), image["width"], image["height"]))
    listed = {_frame(image.get("file_name")) for image in images.values()}
    return Claims(boxes=boxes, listed={frame for frame in listed if frame})


def cvat_claims(content: bytes) -> Claims:
    """Read a mutated CVAT file as a lenient stranger would."""
    root = ElementTree.fromstring(content)
    boxes: dict[Frame, list[tuple[float, ...]]] = {}
    listed: set[Frame] = set()
    sides = [root.findtext(f"meta/task/original_size/{side}") for side in ("width", "height")]
    size = [float(sides[0]), float(sides[1])] if all(sides) else [WIDTH, HEIGHT]
    for track in root.iter("track"):
        listed |= {(VIDEOS[0], number) for number in range(LENGTH)}
        for box in track.iter("box"):
            _claim_box(boxes, (VIDEOS[0], int(float(box.get("frame", "-1")))), box, size)
    for image in root.iter("image"):
        frame = _frame(image.get("name"))
        if frame:
            listed.add(frame)
            own = [float(image.get(side, full)) for side, full in (("width", WIDTH), ("height", HEIGHT))]
            for box in image.iter("box"):
                _claim_box(boxes, frame, box, own)
    return Claims(boxes=boxes, listed=listed or {(VIDEOS[0], number) for number in range(LENGTH)})


def _claim_box(
    boxes: dict[Frame, list[tuple[float, ...]]], frame: Frame, box: ElementTree.Element, size: list[float]
) -> None:
    with contextlib.suppress(TypeError, ValueError):
        corners = tuple(float(box.get(key)) for key in ("xtl", "ytl", "xbr", "ybr"))
        boxes.setdefault(frame, []).append(_shares(corners, *size))


def _key(value: object) -> object:
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else repr(value)


def _frame(name: object) -> Frame | None:
    match = re.fullmatch(r"(?:.*/)?(\w+)/(\d{6})\.\w+", name) if isinstance(name, str) else None
    return (match[1], int(match[2])) if match and match[1] in VIDEOS else None


def _shares(corners: tuple[float, ...], width: float, height: float) -> tuple[float, ...]:
    x0, x1 = sorted((corners[0] / width, corners[2] / width))
    y0, y1 = sorted((corners[1] / height, corners[3] / height))
    return tuple(min(max(value, 0.0), 1.0) for value in (x0, y0, x1, y1))


def coco_case(rng: random.Random) -> Case:
    """A COCO file with one to three changes."""
    document = coco_document()
    if rng.random() < 0.25:
        return _harmless_coco(rng, document)
    changes = []
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(("remove", "replace", "replace", "double", "move"))
        holder, key = rng.choice(list(_places(document)))
        changes.append(f"{kind} {key!r}")
        if kind == "remove":
            del holder[key]
        elif kind == "double" and isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), holder[key])
        elif kind == "move":
            other, other_key = rng.choice(list(_places(document)))
            holder[key] = json.loads(json.dumps(other[other_key]))
        else:
            holder[key] = rng.choice(JUNK)
    text = json.dumps(document)
    if rng.random() < 0.1:
        key = rng.choice(("bbox", "file_name", "image_id", "images", "id", "name"))
        text = text.replace(f'"{key}":', f'"{key}": {json.dumps(rng.choice(JUNK[:10]))}, "{key}":', 1)
        changes.append(f"key {key} twice")
    return Case(name="coco.json", content=_bytes(rng, text, changes), change=", ".join(changes))


def _harmless_coco(rng: random.Random, document: dict) -> Case:
    change = rng.choice(("order", "more keys", "floats", "encoding", "indent", "nothing"))
    text = json.dumps(document)
    if change == "order":
        document = {
            key: rng.sample(value, len(value)) if key == "annotations" else value for key, value in document.items()
        }
        document["images"] = [dict(rng.sample(list(i.items()), len(i))) for i in document["images"]]
        text = json.dumps(dict(rng.sample(list(document.items()), len(document))))
    elif change == "more keys":
        for entry in document["images"] + document["annotations"] + document["categories"]:
            entry["x_" + str(rng.random())] = rng.choice(JUNK[:8])
        text = json.dumps(document)
    elif change == "floats":
        text = json.dumps(json.loads(text, parse_int=float))
    elif change == "indent":
        text = json.dumps(document, indent=3)
    encoding = rng.choice(("utf-8-sig", "utf-16", "utf-16-le", "utf-32")) if change == "encoding" else "utf-8"
    return Case(name="coco.json", content=text.encode(encoding), change=change, harmless=True)


def _places(holder: dict | list) -> Iterator[tuple[dict | list, str | int]]:
    """Every key of every object and every position of every list."""
    for key in list(holder) if isinstance(holder, dict) else range(len(holder)):
        yield holder, key
        if isinstance(holder[key], dict | list):
            yield from _places(holder[key])


def cvat_case(rng: random.Random) -> Case:
    """A CVAT file with one to three changes; the first letter of its name tells the kind."""
    images = rng.random() < 0.4
    root = cvat_document(images)
    name = "images.xml" if images else f"{VIDEOS[0]}.xml"
    if rng.random() < 0.25:
        return _harmless_cvat(rng, root, name)
    changes = []
    for _ in range(rng.randint(1, 3)):
        parents = [(parent, child) for parent in root.iter() for child in parent]
        parent, child = rng.choice(parents)
        kind = rng.choice(("remove", "double", "drop key", "value", "value", "text", "rename"))
        changes.append(f"{kind} of {child.tag}")
        junk = re.sub(r"[\x00-\x1f\ud800]", "", str(rng.choice(JUNK)))[:600]
        if kind == "remove":
            parent.remove(child)
        elif kind == "double":
            parent.append(child)
        elif kind == "rename":
            child.tag = rng.choice(("box", "polygon", "mask", "image", "track", "points", "task", "ellipse"))
        elif kind == "text":
            child.text = junk
        elif child.attrib:
            key = rng.choice(list(child.attrib))
            if kind == "drop key":
                del child.attrib[key]
            else:
                child.set(key, rng.choice((junk, child.get(key) + "0", "2", "-1", "1e999")))
    text = ElementTree.tostring(root, encoding="unicode")
    if rng.random() < 0.1:
        text = re.sub(r'(frame|name|xtl)="', r'\1="1" \1="', text, count=1)
        changes.append("key twice")
    return Case(name=name, content=_bytes(rng, text, changes), change=", ".join(changes))


def _harmless_cvat(rng: random.Random, root: ElementTree.Element, name: str) -> Case:
    change = rng.choice(("order", "more keys", "encoding", "spaces", "floats"))
    for element in root.iter():
        items = list(element.attrib.items())
        if change == "order":
            rng.shuffle(items)
        elif change == "more keys" and items:
            items.append(("more", "é"))
        elif change == "floats":
            items = [(key, f"{value}.0" if key in ("frame", "width", "height") else value) for key, value in items]
        element.attrib.clear()
        element.attrib.update(items)
    text = ElementTree.tostring(root, encoding="unicode")
    if change == "spaces":
        text = text.replace("><", ">\n  <")
    encoding = rng.choice(("utf-16", "latin-1", "windows-1252")) if change == "encoding" else "utf-8"
    text = f'<?xml version="1.0" encoding="{encoding}"?>{text}'
    return Case(name=name, content=text.encode(encoding), change=change, harmless=True)


def _bytes(rng: random.Random, text: str, changes: list[str]) -> bytes:
    """The text in some encoding, now and then damaged."""
    content = text.encode("utf-8", "surrogatepass")
    kind = rng.random()
    if kind < 0.05:
        changes.append("cut")
        return content[: rng.randrange(len(content))]
    if kind < 0.1:
        changes.append("other bytes")
        damaged = bytearray(content)
        for _ in range(3):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        return bytes(damaged)
    if kind < 0.15:
        changes.append("utf-16")
        return text.encode("utf-16", "surrogatepass")
    return content


class Fuzzer:
    """Runs cases in a folder and collects what goes wrong."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.converted = self.refused = 0
        self.failures: list[str] = []
        for number, video in enumerate(VIDEOS):
            (folder / "src" / video).mkdir(parents=True)
            for frame in range(LENGTH):
                pixels = np.full((HEIGHT, WIDTH), 10 + 40 * frame + number, np.uint8)
                Image.fromarray(pixels).save(folder / "src" / video / f"{frame:06d}.png")
        shutil.copytree(folder / "src", folder / "set" / "rawframes")

    def run(self, case: Case) -> None:
        """Convert a case, and check it where it is a data set."""
        file = self.folder / case.name
        file.write_bytes(case.content)
        source = self.folder / "src" / VIDEOS[0] if case.name == f"{VIDEOS[0]}.xml" else self.folder / "src"
        out = self.folder / "out"
        arguments = [str(source), str(file), str(out), "--split", "train"]
        status = self._command(case, "convert", lambda: convert.main(arguments))
        if status == 0:
            self.converted += 1
            self._compare(case, out)
        else:
            self.refused += 1
            if status != 2 or case.harmless:
                self._fail(case, f"convert ends with {status}: {self._said[-300:]}")
            if out.exists():
                self._fail(case, "a refused conversion leaves files")
        shutil.rmtree(out, ignore_errors=True)
        file.unlink()
        if case.name == "coco.json":
            (self.folder / "set" / "train.json").write_bytes(case.content)
            status = self._command(case, "check", lambda: check.main([str(self.folder / "set")]))
            if status not in (0, 1, 2):
                self._fail(case, f"check ends with {status}")
            self._compare(case, self.folder / "set")

    def _command(self, case: Case, name: str, command: Callable[[], int]) -> int | None:
        said = io.StringIO()
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                status = command()
            except BaseException:  # whatever comes out is what is looked for
                self._fail(case, f"{name}: {traceback.format_exc(limit=-3)}")
                status = None
        self._said = said.getvalue()
        return status

    def _compare(self, case: Case, root: Path) -> None:
        """Every box and every negative of a data set is named by the file for this frame."""
        try:
            index = load_index(root, "train", errata=False)
        except StnetError:
            if root.name == "out":
                self._fail(case, "what was converted does not load")
            return
        claims = (coco_claims if case.name == "coco.json" else cvat_claims)(case.content)
        found = 0
        for video in index.videos:
            for frame in video.frames:
                place = _frame(f"{frame.path.parent.name}/{frame.path.name}")
                found += len(frame.boxes)
                for box in frame.boxes:
                    mine = np.array(_shares(tuple(box), frame.width, frame.height))
                    if not any(np.abs(mine - other).max() < 0.002 for other in claims.boxes.get(place, ())):
                        self._fail(
                            case, f"{root.name}: {box} on {place}, for which the file names {claims.boxes.get(place)}"
                        )
                if frame.annotated and place not in claims.listed:
                    self._fail(case, f"{root.name}: {place} counts as annotated, but the file does not list it")
        if case.harmless and found != sum(map(len, claims.boxes.values())) - (case.name == f"{VIDEOS[0]}.xml") * 2:
            self._fail(case, f"{root.name}: {found} boxes of {sum(map(len, claims.boxes.values()))}")

    def _fail(self, case: Case, what: str) -> None:
        self.failures.append(f"{case.name} ({case.change}): {what}")


def fuzz(seed: int, files: int, folder: Path) -> Fuzzer:
    """Run `files` cases that follow from `seed`."""
    fuzzer = Fuzzer(folder)
    for number in range(files):
        rng = random.Random(f"{seed} {number}")
        fuzzer.run((coco_case, cvat_case)[number % 2](rng))
    return fuzzer


def main() -> int:
    """Run the command line; return the exit status: 1 after a failure."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.annotations", description=__doc__.splitlines()[0])
    parser.add_argument("--seed", type=int, default=0, help="same seed, same files (default: 0)")
    parser.add_argument("--files", type=int, default=300, help="how many files (default: 300)")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        fuzzer = fuzz(options.seed, options.files, Path(folder))
    for failure in fuzzer.failures:
        print(failure.encode("ascii", "backslashreplace").decode())
    counts = f"{fuzzer.converted} converted, {fuzzer.refused} refused, {len(fuzzer.failures)} failures"
    print(f"{options.files} files: {counts}")
    return 1 if fuzzer.failures else 0


if __name__ == "__main__":
    sys.exit(main())
