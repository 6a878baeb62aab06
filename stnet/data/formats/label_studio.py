"""Label Studio's JSON: videos with boxes between key frames, and images.

Frames are counted from 1, boxes are percent of the picture. A box is drawn from an enabled key frame to the next one,
moving evenly; at a key frame that is not enabled it is seen for the last time. After the last key frame, if enabled, it
stays to the end.
"""

import json
import re
from collections import Counter
from itertools import zip_longest
from pathlib import Path, PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from stnet.data.annotations.entries import load_document
from stnet.data.formats import json_file
from stnet.data.formats.marks import (
    Box,
    FoundBox,
    FrameMarks,
    ImageMarks,
    Mark,
    MarksFile,
    Size,
    StatedVideo,
    VideoBoxes,
    VideoMarks,
)
from stnet.data.shapes import around, around_ellipse, ordered, turned_about_corner
from stnet.errors import DataError

MAX_FRAMES = 10**6
MAX_BOXES = 2 * 10**6
"""In one file: two key frames stand for any number of boxes between them."""
_NO_SHAPES = frozenset(
    {"choices", "taxonomy", "textarea", "rating", "number", "datetime", "pairwise", "relation", "ranker"}
    | {"timelinelabels", "timeserieslabels"}
)
_CORNERS = ("x", "y", "width", "height")
_AFTER_AN_OPEN_END = "after a key frame that stays to an end which nothing states (framesCount)"


def read_label_studio(file: Path) -> MarksFile:
    """Read a JSON export (not JSON-MIN) of Label Studio.

    Raises:
        DataError: naming the file, the task and the region.
    """
    return parse_label_studio(load_document(file), file)


def write_label_studio(video: VideoBoxes) -> dict[str, str]:
    """Return a task with predictions for Label Studio, by name; every frame of a lesion is a key frame.

    The labelling configuration is expected to have `<Video name="video">`, `<VideoRectangle name="box">` and
    `<Labels name="labels">`.
    """
    results = [_region(number, track, video) for number, track in enumerate(video.tracks())]
    task = {"data": {"video": video.source}, "predictions": [{"model_version": "stnet", "result": results}]}
    return {f"{video.name}.json": json.dumps([task]) + "\n"}


def _region(identity: int, track: list[tuple[int, FoundBox]], video: VideoBoxes) -> dict:
    width, height = video.size
    numbers = {number for number, _ in track}
    sequence = []
    for number, found in track:
        x0, y0, x1, y1 = found.box
        place = {"x": x0 / width, "y": y0 / height, "width": (x1 - x0) / width, "height": (y1 - y0) / height}
        key = {"frame": number + 1, "time": number / video.fps, "rotation": 0, "enabled": number + 1 in numbers}
        sequence.append(key | {name: round(100 * value, 8) for name, value in place.items()})
    value = {"framesCount": video.frames, "duration": video.frames / video.fps, "sequence": sequence}
    region = {"id": f"lesion-{identity}", "type": "videorectangle", "from_name": "box", "to_name": "video"}
    scores = [found.score for _, found in track if found.score is not None]
    return region | {"value": value | {"labels": [track[0][1].label]}} | ({"score": max(scores)} if scores else {})


def parse_label_studio(document: object, file: Path) -> MarksFile:
    """Read an export that is loaded already; see `read_label_studio`."""
    tasks = document if isinstance(document, list) else [document]
    images: list[ImageMarks] = []
    videos: list[VideoMarks] = []
    notes: Counter[str] = Counter()
    room = MAX_BOXES
    for position, task in enumerate(tasks):
        where = f"{file}: task {position}"
        if not isinstance(task, dict) or not isinstance(task.get("data"), dict):
            raise DataError(f"{where}: has no `data`; export as JSON (not JSON-MIN) from Label Studio")
        regions = _regions(task, where, notes)
        if regions is None:
            continue
        drawn = [region for region in regions if str(region.get("type")) not in _NO_SHAPES]
        notes["Label Studio results that are no shapes are passed over"] += len(regions) - len(drawn)
        name, is_video = _media(task["data"], drawn, where)
        if is_video:
            videos.append(_video(name, drawn, where, room))
            room -= sum(len(frame.marks) for frame in videos[-1].frames.values())
        else:
            images.append(_image(name, drawn, where))
    notes = +notes
    return MarksFile(name=str(file), stem=file.stem, images=tuple(images), videos=tuple(videos), notes=notes)


def _regions(task: dict, where: str, notes: Counter[str]) -> list[dict] | None:
    """Return the results of the only annotation, else of the only prediction, of a task; None where nobody looked."""
    made = json_file.objects(task, "annotations", where) if task.get("annotations") else []
    found = [entry for entry in made if not json_file.flag(entry, "was_cancelled", where, False)]
    if not made and task.get("predictions"):  # whoever skipped a task confirmed none
        found = json_file.objects(task, "predictions", where)
        notes["Label Studio tasks without annotations: their predictions, which nobody confirmed, are taken"] += 1
    if len(found) > 1:
        raise DataError(f"{where}: has {len(found)} annotations of the same frames; export one of them")
    if not found:
        notes["Label Studio tasks without annotations are passed over"] += 1
        return None
    return json_file.objects(found[0], "result", where)


def _media(data: dict, regions: list[dict], where: str) -> tuple[str, bool]:
    """Return the path of the video or image, and whether it is a video."""
    paths = {key: value for key, value in data.items() if isinstance(value, str) and value}
    is_video = "video" in paths or any("sequence" in _value(region) for region in regions)
    key = "video" if "video" in paths else "image" if "image" in paths and not is_video else None
    if key is None:
        if len(paths) != 1:
            raise DataError(f"{where}: data has {len(paths)} paths; expected `video` or `image`")
        key = next(iter(paths))
    path = PurePosixPath(_path_of(paths[key], f"{where}: {key}"))
    if "upload" in path.parts[:-1]:
        # Uploaded files get a prefix of their own, and folders that name no video.
        return re.sub(r"^[0-9a-f]{8}-", "", path.name), is_video
    return str(PurePosixPath(*(part for part in path.parts if part not in ("/", "..")))), is_video


def _path_of(address: str, where: str) -> str:
    """Return the path in an address; `#`, and `?` in what is no address but a name, belong to it."""
    try:
        parts = urlsplit(address, allow_fragments=False)
        local = parse_qs(parts.query).get("d")
    except ValueError as error:
        raise DataError(f"{where} {address!r:.80} is no address ({error}); correct it") from error
    if "://" not in address and not address.startswith(("/data/", "//")):
        return unquote(address).replace("\\", "/")
    return (local[0] if local else unquote(parts.path)).replace("\\", "/")


def _value(region: dict) -> dict:
    value = region.get("value")
    return value if isinstance(value, dict) else {}


def _label(value: dict, kind: str, where: str) -> str:
    names = value.get("labels", value.get(kind))
    if not isinstance(names, list) or len(names) != 1 or not isinstance(names[0], str) or not names[0].strip():
        raise DataError(f"{where}: labels are {names!r:.60}; give every region one label and export again")
    return names[0]


def _video(name: str, regions: list[dict], where: str, room: int) -> VideoMarks:
    length = _length(regions, where)
    marks: dict[int, list[Mark]] = {}
    open_ended: list[int] = []
    times: list[tuple[int, float]] = []
    for position, region in enumerate(regions):
        place = f"{where}: result {position}"
        value = _value(region)
        label = _label(value, str(region.get("type")), place)
        instance = region["id"] if isinstance(region.get("id"), str) else f"region {position}"
        boxes = _track(value, length, place)
        room -= len(boxes)
        if room < 0:
            raise DataError(f"{place}: more than {MAX_BOXES} boxes between key frames; export fewer tasks into a file")
        for number, box in boxes.items():
            marks.setdefault(number, []).append(
                Mark(label=label, box=box, shape="box" if box else "rotated box in percent", instance=instance)
            )
        last = max(json_file.objects(value, "sequence", place), key=lambda key: key["frame"], default=None)
        times += [(int(key["frame"]), key["time"]) for key in value["sequence"] if _is_time(key.get("time"))]
        if last is not None and last["enabled"] and length is None:
            open_ended.append(int(last["frame"]))
    # A lesion that stays to the end is on all later frames, too, whichever these are.
    seen = range(length) if length else range(min(open_ended)) if open_ended else None
    frames = {
        number: FrameMarks(
            where=f"{where}: frame {number + 1}",
            marks=tuple(found),
            relative=True,
            unseen="" if seen is None or number in seen else _AFTER_AN_OPEN_END,
        )
        for number, found in sorted(marks.items())
    }
    stated = StatedVideo(where=f"{where}: framesCount", frames=length)
    pace = None if length or len(times) < 2 else _pace(min(times), max(times))
    return VideoMarks(where=where, video=PurePosixPath(name).stem, frames=frames, covers=seen, stated=stated, pace=pace)


def _length(regions: list[dict], where: str) -> int | None:
    """How many frames the video has; regions that do not say so belong to the same one."""
    values = [(_value(region), f"{where}: result {position}") for position, region in enumerate(regions)]
    counts = {json_file.whole(value, "framesCount", place, 1) for value, place in values if "framesCount" in value}
    if len(counts) > 1:
        raise DataError(f"{where}: framesCount is {' and '.join(map(str, sorted(counts)))}; export it again")
    return next(iter(counts), None)


def _is_time(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= MAX_FRAMES


def _pace(first: tuple[int, float], last: tuple[int, float]) -> tuple[int, float] | None:
    """How many frames and seconds lie between two key frames; None where they are at one time."""
    frames, seconds = last[0] - first[0], last[1] - first[1]
    return (frames, seconds) if frames and seconds > 0 else None


def _track(value: dict, length: int | None, where: str) -> dict[int, Box | None]:
    """Return the box of each frame, from 0, as shares; None where it is rotated: that needs the frame's shape."""
    keys: dict[int, dict] = {}
    for position, key in enumerate(json_file.objects(value, "sequence", where)):
        place = f"{where}: sequence[{position}]"
        number = json_file.whole(key, "frame", place, 1)
        if number in keys or number > MAX_FRAMES:
            raise DataError(f"{place}: frame {number} {'twice' if number in keys else 'is too large'}; export it again")
        if length is not None and number > length:
            raise DataError(f"{place}: frame {number} of a video of {length} frames (framesCount)")
        json_file.flag(key, "enabled", place)
        keys[number] = {name: json_file.number(key, name, place) for name in _CORNERS}
        keys[number] |= {"turn": json_file.number(key, "rotation", place, 0.0), "enabled": key["enabled"]}
    boxes: dict[int, Box | None] = {}
    numbers = sorted(keys)
    for number, following in zip_longest(numbers, numbers[1:]):
        boxes[number - 1] = _share(keys[number])
        if not keys[number]["enabled"]:
            continue
        end = following or min(length or number, MAX_FRAMES) + 1
        for between in range(number + 1, end):
            share = (between - number) / (end - number) if following else 0.0
            boxes[between - 1] = _share(_between(keys[number], keys[following or number], share))
    return boxes


def _between(first: dict, second: dict, share: float) -> dict:
    return {name: first[name] + share * (second[name] - first[name]) for name in (*_CORNERS, "turn")}


def _share(key: dict) -> Box | None:
    if key["turn"] % 360:
        return None
    x, y, width, height = (key[name] / 100 for name in _CORNERS)
    return ordered(x, y, x + width, y + height)


def _image(name: str, regions: list[dict], where: str) -> ImageMarks:
    marks, sizes = [], set()
    for position, region in enumerate(regions):
        place = f"{where}: result {position}"
        if json_file.number(region, "image_rotation", place, 0.0) % 360:
            raise DataError(f"{place}: drawn on a rotated picture (image_rotation); reset the rotation, draw it again")
        size = json_file.size(region, "original_width", "original_height", place)
        sizes.add(size)
        marks.append(_mark(region, size, place))
    if len(sizes) > 1:
        raise DataError(f"{where}: its regions state pictures of several sizes; export it again")
    size = sizes.pop() if sizes else None
    frame = FrameMarks(where=f"{where}: {name!r:.80}", marks=tuple(marks), size=size, relative=size is None)
    return ImageMarks(name=name, frame=frame)


def _mark(region: dict, size: Size | None, where: str) -> Mark:
    """Return the mark of a region, in pixels where its picture's size is stated, else in shares."""
    kind, value = json_file.text(region, "type", where), _value(region)
    label = _label(value, kind, where)
    across, down = (size[0] / 100, size[1] / 100) if size else (0.01, 0.01)
    turn = json_file.number(value, "rotation", where, 0.0) % 360
    if kind in ("rectanglelabels", "rectangle"):
        x, y, width, height = (json_file.number(value, key, where) for key in _CORNERS)
        corners = ordered(x * across, y * down, (x + width) * across, (y + height) * down)
        if turn and size is None:
            return Mark(label=label, box=None, shape="rotated box in percent")
        if turn:
            return Mark(label=label, box=turned_about_corner(corners, turn), shape="rotated box")
        return Mark(label=label, box=corners)
    if kind in ("ellipselabels", "ellipse") and (size or not turn):
        x, y, wide, high = (json_file.number(value, key, where) for key in ("x", "y", "radiusX", "radiusY"))
        box = around_ellipse(x * across, y * down, wide * across, high * down, turn)
        return Mark(label=label, box=box, shape="ellipse")
    if kind in ("polygonlabels", "polygon"):
        points = [(x * across, y * down) for x, y in json_file.points(value, "points", where)]
        return Mark(label=label, box=around(points), shape="polygon")
    return Mark(label=label, box=None, shape=kind[:40])
