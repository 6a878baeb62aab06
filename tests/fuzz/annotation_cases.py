"""Annotation files of two small videos, changes to them, and what the changed files still say."""

import contextlib
import json
import random
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from xml.etree import ElementTree

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
    """A mutated file: its content, what was done to it, and whether all of it must still be converted.

    `claims` reads what it says, None for formats of which it is only asked that no command fails on them.
    """

    name: str
    content: bytes
    change: str
    harmless: bool = False
    claims: Callable[[bytes], Claims] | None = None


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
        frame = frame_of(image.get("file_name")) if image else None
        if frame and image:
            with contextlib.suppress(TypeError, ValueError):
                x, y, w, h = entry["bbox"]
                boxes.setdefault(frame, []).append(shares_of((x, y, x + w, y + h), image["width"], image["height"]))
    listed = {frame_of(image.get("file_name")) for image in images.values()}
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
        frame = frame_of(image.get("name"))
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
        boxes.setdefault(frame, []).append(shares_of(corners, *size))


def _key(value: object) -> object:
    return value if isinstance(value, int | float | str) and not isinstance(value, bool) else repr(value)


def frame_of(name: object) -> Frame | None:
    """The frame that a file name stands for, None where it is none of the two videos."""
    match = re.fullmatch(r"(?:.*/)?(\w+)/(\d{6})\.\w+", name) if isinstance(name, str) else None
    return (match[1], int(match[2])) if match and match[1] in VIDEOS else None


def shares_of(corners: tuple[float, ...], width: float, height: float) -> tuple[float, ...]:
    """A box in pixels as shares of the picture, clipped to it."""
    x0, x1 = sorted((corners[0] / width, corners[2] / width))
    y0, y1 = sorted((corners[1] / height, corners[3] / height))
    return tuple(min(max(value, 0.0), 1.0) for value in (x0, y0, x1, y1))


def coco_case(rng: random.Random) -> Case:
    """A COCO file with one to three changes."""
    document = coco_document()
    if rng.random() < 0.25:
        return _harmless_coco(rng, document)
    changes = _change_json(rng, document)
    text = json.dumps(document)
    if rng.random() < 0.1:
        key = rng.choice(("bbox", "file_name", "image_id", "images", "id", "name"))
        text = text.replace(f'"{key}":', f'"{key}": {json.dumps(rng.choice(JUNK[:10]))}, "{key}":', 1)
        changes.append(f"key {key} twice")
    return Case(name="coco.json", content=_bytes(rng, text, changes), change=", ".join(changes), claims=coco_claims)


def _change_json(rng: random.Random, document: dict | list) -> list[str]:
    """Change one to three places of a document; say what was done."""
    changes = []
    for _ in range(rng.randint(1, 3)):
        kind = rng.choice(("remove", "replace", "replace", "double", "move"))
        holder, key = rng.choice(list(_places(document)) or [([0], 0)])
        changes.append(f"{kind} {key!r}")
        if kind == "remove":
            del holder[key]
        elif kind == "double" and isinstance(holder, list):
            holder.insert(rng.randrange(len(holder) + 1), holder[key])
        elif kind == "move":
            other, other_key = rng.choice(list(_places(document)) or [([0], 0)])
            holder[key] = json.loads(json.dumps(other[other_key]))
        else:
            holder[key] = rng.choice(JUNK)
    return changes


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
    return Case(name="coco.json", content=text.encode(encoding), change=change, harmless=True, claims=coco_claims)


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
    changes = _change_xml(rng, root)
    text = ElementTree.tostring(root, encoding="unicode")
    if rng.random() < 0.1:
        text = re.sub(r'(frame|name|xtl)="', r'\1="1" \1="', text, count=1)
        changes.append("key twice")
    return Case(name=name, content=_bytes(rng, text, changes), change=", ".join(changes), claims=cvat_claims)


def _change_xml(rng: random.Random, root: ElementTree.Element) -> list[str]:
    """Change one to three elements; say what was done."""
    changes = []
    for _ in range(rng.randint(1, 3)):
        parents = [(parent, child) for parent in root.iter() for child in parent]
        if not parents:
            break
        parent, child = rng.choice(parents)
        kind = rng.choice(("remove", "double", "drop key", "value", "value", "text", "rename"))
        changes.append(f"{kind} of {child.tag}")
        junk = re.sub(r"[\x00-\x1f\ud800]", "", str(rng.choice(JUNK)))[:600]
        if kind == "remove":
            parent.remove(child)
        elif kind == "double":
            parent.append(child)
        elif kind == "rename":
            child.tag = rng.choice(("box", "polygon", "mask", "image", "track", "points", "task", "object"))
        elif kind == "text":
            child.text = junk
        elif child.attrib:
            key = rng.choice(list(child.attrib))
            if kind == "drop key":
                del child.attrib[key]
            else:
                child.set(key, rng.choice((junk, child.get(key) + "0", "2", "-1", "1e999")))
    return changes


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
    return Case(name=name, content=text.encode(encoding), change=change, harmless=True, claims=cvat_claims)


def other_case(rng: random.Random) -> Case:
    """A file of another format with one to three changes, of which it is asked that no command fails on it."""
    kind = rng.choice(("label-studio", "labelme", "voc", "yolo"))
    name = f"{VIDEOS[0]}/{1:06d}.png"
    if kind == "voc":
        root = ElementTree.Element("annotation")
        ElementTree.SubElement(root, "filename").text = name
        for parent, values in (("size", {"width": WIDTH, "height": HEIGHT}), ("object", {"name": "benign"})):
            element = ElementTree.SubElement(root, parent)
            for key, value in values.items():
                ElementTree.SubElement(element, key).text = str(value)
        box = ElementTree.SubElement(root.find("object"), "bndbox")
        for key, value in (("xmin", 3), ("ymin", 4), ("xmax", 20), ("ymax", 15)):
            ElementTree.SubElement(box, key).text = str(value)
        changes = _change_xml(rng, root)
        text = ElementTree.tostring(root, encoding="unicode")
        return Case(name="voc.xml", content=_bytes(rng, text, changes), change=", ".join(changes))
    if kind == "yolo":
        fields = ["0", "0.5", "0.4", "0.2", "0.3"] + ["0.5"] * rng.choice((0, 0, 1, 2, 4, 5))
        fields[rng.randrange(len(fields))] = str(rng.choice(JUNK)).encode("utf-8", "replace").decode()
        changes = ["yolo line"]
        return Case(name="000001.txt", content=_bytes(rng, " ".join(fields), changes), change=", ".join(changes))
    document = _label_studio() if kind == "label-studio" else _labelme(name)
    changes = _change_json(rng, document)
    content = _bytes(rng, json.dumps(document), changes)
    return Case(name=f"{kind}.json", content=content, change=", ".join(changes))


def _label_studio() -> list:
    key = {"x": 10, "y": 20.5, "width": 30, "height": 20, "rotation": 0, "time": 0.1}
    sequence = [key | {"frame": 1, "enabled": True}, key | {"frame": 4, "enabled": False}]
    value = {"framesCount": LENGTH, "duration": 0.2, "sequence": sequence, "labels": ["benign"]}
    results = [{"id": "a", "type": "videorectangle", "from_name": "box", "to_name": "video", "value": value}]
    annotations = [{"id": 1, "was_cancelled": False, "result": results}]
    return [{"id": 1, "data": {"video": f"/data/upload/1/0a1b2c3d-{VIDEOS[0]}.mp4"}, "annotations": annotations}]


def _labelme(name: str) -> dict:
    kinds = {"rectangle": [[3, 4], [20, 15]], "polygon": [[3, 4], [20, 15], [3, 9]], "circle": [[9, 9], [12, 9]]}
    shapes = [
        {"label": "benign", "points": points, "shape_type": kind, "group_id": None} for kind, points in kinds.items()
    ]
    return {"version": "5", "imagePath": name, "imageHeight": HEIGHT, "imageWidth": WIDTH, "shapes": shapes}


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
