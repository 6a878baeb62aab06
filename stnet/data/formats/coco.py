"""COCO files, also with the videos of COCO-VID and the attributes that Datumaro and CVAT add."""

import json
from pathlib import Path, PurePosixPath

from stnet.data.annotations.entries import Annotations, BoxEntry, is_coordinate, load_json, parse_annotations
from stnet.data.formats import json_file
from stnet.data.formats.marks import FrameMarks, ImageMarks, Mark, MarksFile, StatedVideo, VideoBoxes
from stnet.data.shapes import around, around_turned_box, ordered
from stnet.errors import DataError


def read_coco(file: Path) -> MarksFile:
    """Read a COCO file.

    Raises:
        DataError: naming the file and the entry.
    """
    return parse_coco(load_json(file), file)


def parse_coco(document: dict, file: Path) -> MarksFile:
    """Read a COCO file that is loaded already; see `read_coco`."""
    content = parse_annotations(_with_what_stnet_asks_for(document), file)
    marks: dict[int, list[Mark]] = {image.id: [] for image in content.images}
    for entry in content.boxes:
        marks[entry.image_id].append(_mark(document, content, entry, file))
    videos = _videos(document, file)
    if not videos:
        _check_one_video(document["images"], file)
    images = []
    for image in content.images:
        raw = document["images"][image.position]
        found = tuple(marks[image.id])
        if found and not image.annotated:
            raise DataError(f"{file}: {image.entry}: annotated is false but it has boxes; remove either of them")
        frame = FrameMarks(
            where=f"{file}: {image.entry} {image.file_name!r:.80}",
            marks=found,
            size=(image.width, image.height),
            unseen="" if image.annotated else "the file says that it is not annotated",
        )
        video, stated, number = None, None, None
        if "video_id" in raw and videos:
            video_id = _whole(raw["video_id"])
            if video_id not in videos:
                raise DataError(f"{file}: {image.entry}: video_id {raw['video_id']!r:.40} is not among `videos`")
            video, stated = videos[video_id]
        if "frame_id" in raw:
            number = _whole(raw["frame_id"])
            if number is None:
                raise DataError(f"{file}: {image.entry}: frame_id is {raw['frame_id']!r:.40}, no whole number")
        images.append(ImageMarks(name=image.file_name, frame=frame, video=video, stated=stated, number=number))
    return MarksFile(name=str(file), stem=file.stem, images=tuple(images))


def write_coco(video: VideoBoxes) -> dict[str, str]:
    """Return a COCO-VID file, by name; `score` and `instance_id` stand where they are known."""
    width, height = video.size
    document: dict = {
        "categories": [{"id": number, "name": label} for number, label in enumerate(video.labels, start=1)],
        "videos": [{"id": 1, "name": video.name, "width": width, "height": height, "length": video.frames}],
        "images": [
            {"id": number + 1, "file_name": f"{video.name}/{number:06d}.png", "width": width, "height": height}
            | {"video_id": 1, "frame_id": number}
            for number in range(video.frames)
        ],
        "annotations": [],
    }
    for number, boxes in sorted(video.boxes.items()):
        for found in boxes:
            x0, y0, x1, y1 = (round(value, 4) for value in found.box)
            bbox = [x0, y0, round(x1 - x0, 4), round(y1 - y0, 4)]
            entry = {"id": len(document["annotations"]) + 1, "image_id": number + 1, "video_id": 1, "bbox": bbox}
            entry |= {"category_id": video.labels.index(found.label) + 1, "area": bbox[2] * bbox[3], "iscrowd": 0}
            known = {"score": found.score, "instance_id": found.instance}
            document["annotations"].append(entry | {key: value for key, value in known.items() if value is not None})
    return {f"{video.name}.json": json.dumps(document) + "\n"}


def _with_what_stnet_asks_for(document: dict) -> dict:
    """Return the document with one video of all frames, and with the boxes around regions that come without."""
    document = document | {"videos": [{"id": 0, "name": "all"}]}
    if isinstance(document.get("images"), list):
        document["images"] = [
            image | {"video_id": 0, "frame_id": number} if isinstance(image, dict) else image
            for number, image in enumerate(document["images"])
        ]
    if isinstance(document.get("annotations"), list):
        document["annotations"] = [
            entry | {"bbox": _around_segments(entry)} if isinstance(entry, dict) and _lacks_box(entry) else entry
            for entry in document["annotations"]
        ]
    return document


def _lacks_box(entry: dict) -> bool:
    return entry.get("bbox") in (None, [])


def _around_segments(entry: dict) -> list[float] | None:
    """Return the box x, y, w, h around the polygons of an entry, None where there are none, or one that is none."""
    segments = entry.get("segmentation")
    if not isinstance(segments, list) or not all(map(_is_polygon, segments)):
        return None
    box = around([point for part in segments for point in zip(part[::2], part[1::2], strict=True)])
    return [box[0], box[1], box[2] - box[0], box[3] - box[1]] if box else None


def _is_polygon(part: object) -> bool:
    return isinstance(part, list) and len(part) % 2 == 0 and all(map(is_coordinate, part))


def _mark(document: dict, content: Annotations, entry: BoxEntry, file: Path) -> Mark:
    raw = document["annotations"][entry.position]
    where = f"{file}: annotations[{entry.position}]"
    attributes = raw.get("attributes")
    attributes = attributes if isinstance(attributes, dict) else {}
    x, y, w, h = entry.bbox
    box, shape = ordered(x, y, x + w, y + h), "polygon" if _lacks_box(raw) else "box"
    if entry.turn:
        box, shape = around_turned_box(box, entry.turn), "rotated box"
    if entry.region:
        box, shape = None, entry.region
    return Mark(
        label=content.categories[entry.category_id], box=box, shape=shape, instance=_instance(raw, attributes, where)
    )


def _instance(raw: dict, attributes: dict, where: str) -> int | str | None:
    for holder, key in ((raw, "instance_id"), (raw, "track_id"), (attributes, "track_id")):
        value = holder.get(key)
        if value is None:
            continue
        value = value if isinstance(value, str) else _whole(value)
        if value is None:
            raise DataError(f"{where}: {key} is {holder[key]!r:.40}, no whole number and no name")
        return value
    return None


def _whole(value: object) -> int | None:
    """Return an integer, also written as 3.0; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= 2**53:
        return None
    return int(value) if value == int(value) else None


def _check_one_video(images: list[dict], file: Path) -> None:
    """Images of several videos that no list names could be of any video."""
    stated = {str(image["video_id"]) for image in images if image.get("video_id") is not None}
    if len(stated) > 1:
        raise DataError(
            f"{file}: its images are of {len(stated)} videos (video_id), of which `videos` names none; list them there"
        )


def _videos(document: dict, file: Path) -> dict[int, tuple[str, StatedVideo]]:
    """Return the names of the videos, without folders, and what is said of them, by id."""
    videos: dict[int, tuple[str, StatedVideo]] = {}
    listed = document.get("videos") or []
    for position, video in enumerate(listed if isinstance(listed, list) else [listed]):
        identity = _whole(video.get("id")) if isinstance(video, dict) else None
        name = video.get("name", video.get("file_name")) if isinstance(video, dict) else None
        if identity is None or identity in videos or not isinstance(name, str) or not name:
            raise DataError(f"{file}: videos[{position}]: give each an `id` of its own and a `name`")
        videos[identity] = PurePosixPath(name).name, _stated(video, f"{file}: videos[{position}] {name!r:.80}")
    return videos


def _stated(video: dict, where: str) -> StatedVideo:
    """Return what an entry of `videos` says of its length and size; 0 is written where a tool does not know."""
    known = {key: value for key, value in video.items() if value not in (None, 0)}
    return StatedVideo(
        where=where,
        frames=json_file.whole(known, "length", where, 1) if "length" in known else None,
        size=json_file.size(known, "width", "height", where),
    )
