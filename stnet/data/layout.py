"""Write data sets in the layout that `stnet.data.index` reads."""

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from stnet.data.index import FRAMES_FOLDER
from stnet.errors import ConfigError, DataError
from stnet.files import write_json, write_text

BOX_DECIMALS = 2
"""Of coordinates in pixels, as they are written."""


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoRecord:
    """The annotations of a video to write.

    Per frame: `boxes` [n, 4], x0 y0 x1 y1 in pixels; `labels` [n], from 1; `instances` [n], which lesion of
    the video; `annotated`. `files` are the names of the frames in the folder of the video; `facts` what every image
    says beside, such as its patient.
    """

    name: str
    height: int
    width: int
    files: tuple[str, ...]
    boxes: tuple[np.ndarray, ...]
    labels: tuple[np.ndarray, ...]
    instances: tuple[np.ndarray, ...]
    annotated: tuple[bool, ...]
    facts: Mapping[str, str] = field(default_factory=dict)


def write_frames(root: Path, name: str, frames: Iterable[np.ndarray]) -> tuple[str, ...]:
    """Write frames uint8 `[H, W]` or `[H, W, 3]` as PNG files of the video `name`; return their file names.

    Raises:
        DataError: naming the file that cannot be written, for example on a full disk.
    """
    folder = root / FRAMES_FOLDER / name
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for number, frame in enumerate(frames):
        file = folder / f"{number:06d}.png"
        try:
            Image.fromarray(frame).save(file)
        except OSError as error:
            raise DataError(f"{file}: cannot be written ({error.strerror or error})") from error
        names.append(file.name)
    return tuple(names)


def write_annotations(file: Path, videos: Sequence[VideoRecord], class_names: Sequence[str]) -> None:
    """Write the annotation file of a split, with the keys of BUV that mean something here.

    Raises:
        OSError: it cannot be written.
    """
    document: dict = {
        "categories": [{"id": i, "name": name} for i, name in enumerate(class_names, start=1)],
        "videos": [{"id": i, "name": video.name} for i, video in enumerate(videos, start=1)],
        "images": [],
        "annotations": [],
    }
    instances: dict[tuple[int, int], int] = {}
    for video_id, video in enumerate(videos, start=1):
        for frame_id, name in enumerate(video.files):
            image_id = len(document["images"]) + 1
            image = {
                "id": image_id,
                "file_name": f"{video.name}/{name}",
                "height": video.height,
                "width": video.width,
                "video_id": video_id,
                "frame_id": frame_id,
                **video.facts,
            }
            document["images"].append(image if video.annotated[frame_id] else image | {"annotated": False})
            of_frame = (video.boxes[frame_id], video.labels[frame_id], video.instances[frame_id])
            for box, label, instance in zip(*of_frame, strict=True):
                number = instances.setdefault((video_id, int(instance)), len(instances) + 1)
                entry = {"id": len(document["annotations"]) + 1, "image_id": image_id, "video_id": video_id}
                document["annotations"].append(
                    entry | {"category_id": int(label), "instance_id": number} | _box_keys(box)
                )
    write_text(file, json.dumps(document) + "\n")


@contextmanager
def filling(root: Path, marker: str, overwrite: bool, options: Mapping[str, object]) -> Iterator[None]:
    """Make a folder for a generated data set; after any error nothing that was written to it is left.

    Args:
        root: the folder.
        marker: the file that such a data set carries; only a folder that has it is emptied.
        overwrite: whether it may be emptied of annotation files and frames.
        options: what the data set was made from, for the marker.

    Raises:
        ConfigError: it holds something else, or must not be emptied.
        OSError: it cannot be written.
    """
    if root.exists() and not root.is_dir():
        raise ConfigError(f"{root} is a file; name a folder")
    marked = (root / marker).is_file()
    if root.is_dir() and any(root.iterdir()):
        if not marked:
            raise ConfigError(f"{root} is not empty and was not generated (no {marker}); name another folder")
        if not overwrite:
            raise ConfigError(f"{root} holds a generated data set; add --overwrite to replace it")
        _empty(root)
    absent = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        write_json(root / marker, options)
        yield
    except BaseException:
        with suppress(OSError):
            _empty(root)
            if not marked:  # otherwise it says that --overwrite may go on here
                (root / marker).unlink(missing_ok=True)
            for folder in absent:
                folder.rmdir()
        raise


def _empty(root: Path) -> None:
    """Remove the annotation files and frames of a generated data set."""
    for split in ("train", "val"):
        (root / f"{split}.json").unlink(missing_ok=True)
    if (root / FRAMES_FOLDER).is_dir():
        shutil.rmtree(root / FRAMES_FOLDER)


def _box_keys(box: np.ndarray) -> dict:
    x0, y0, x1, y1 = (round(float(value), BOX_DECIMALS) for value in box)
    bbox = [_plain(value) for value in (x0, y0, x1 - x0, y1 - y0)]
    return {"bbox": bbox, "area": _plain(bbox[2] * bbox[3]), "iscrowd": False}


def _plain(value: float) -> float | int:
    """Whole numbers without a decimal point."""
    value = round(value, BOX_DECIMALS)
    return int(value) if value == int(value) else value
