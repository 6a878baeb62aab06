"""A dataset folder as an index of videos, frames and boxes (the layout of the BUV dataset).

    my_dataset/
      rawframes/                  frames; without this folder, paths are relative to my_dataset/ itself
        patient1_left/000000.png  gray or RGB PNG, JPEG, BMP, TIFF, ..., as `infer.py` reads them
      train.json                  or imagenet_vid_train_15frames.json
      val.json                    or imagenet_vid_val.json

The least an annotation file must hold:

    {"categories":  [{"id": 1, "name": "benign"}, {"id": 2, "name": "malignant"}],
     "videos":      [{"id": 1, "name": "patient1_left"}],
     "images":      [{"id": 1, "file_name": "patient1_left/000000.png", "height": 442, "width": 442,
                      "video_id": 1, "frame_id": 0},
                     {"id": 2, "file_name": "patient1_left/000001.png", "height": 442, "width": 442,
                      "video_id": 1, "frame_id": 1, "annotated": false}],
     "annotations": [{"image_id": 1, "category_id": 1, "bbox": [50, 91, 147, 139]}]}

- `bbox` is [x, y, w, h] in pixels from the top left corner of the image. `frame_id` orders the frames of a
  video.
- A frame **without boxes is a negative**: somebody looked and there is no lesion. A frame nobody looked at
  says `"annotated": false`: it serves as context for its neighbours, never as a target and never in
  evaluation.
- A frame with a crowd region (`"iscrowd": 1`) or a region to be ignored (`"ignore": 1`) counts as not annotated: it
  holds lesions that nobody marked one by one.
- A box with `rotation` (or `attributes.rotation`, degrees clockwise) stands for the upright box around it.
- Categories are mapped by name: benign and malignant (in any case) become labels 1 and 2 whatever their ids;
  other names become labels 1, 2, ... in the order of their ids.
- Sizes and boxes are those of the frame as viewers show it: upright, as its EXIF orientation says.
- Other keys (`vid_train_frames`, `area`, `instance_id`, ...) are ignored.

Loading repairs what is beyond doubt (`stnet.data.annotations.plan` says what that is) and refuses what is not; all of
it is listed in `DatasetIndex.repairs`.
"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stnet.data.annotations.box_repair import repair_box
from stnet.data.annotations.entries import (
    Annotations,
    BoxEntry,
    EntryError,
    ImageEntry,
    parse_annotations,
    read_annotations,
)
from stnet.data.annotations.facts import FrameFacts, gather_facts
from stnet.data.annotations.plan import plan_repairs
from stnet.data.annotations.repairs import Repair, apply_repairs
from stnet.data.images import video_scale
from stnet.errors import DataError
from stnet.video.depth import GrayScale

LESION_CLASSES = ("benign", "malignant")
SPLIT_FILES = {
    "train": ("imagenet_vid_train_15frames.json", "train.json"),
    "val": ("imagenet_vid_val.json", "val.json"),
}
FRAMES_FOLDER = "rawframes"


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One frame.

    `boxes` float32 `[n, 4]`, x0, y0, x1, y1 in pixels, and `labels` int64 `[n]` from 1 are read-only; `scale` is the
    brightness of the video, where its frames have more than 8 bits.
    """

    path: Path
    image_id: int
    frame_id: int
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    annotated: bool
    scale: GrayScale | None = None


@dataclass(frozen=True, kw_only=True, eq=False)
class Video:
    """A video and its frames in the order of their `frame_id`; at least one."""

    name: str
    video_id: int
    frames: tuple[Frame, ...]

    def __repr__(self) -> str:
        return f"Video({self.name}, {len(self.frames)} frames)"


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetIndex:
    """An annotation file, read, checked and repaired. Label k stands for `class_names[k - 1]`."""

    root: Path
    annotation_file: Path
    class_names: tuple[str, ...]
    videos: tuple[Video, ...]
    repairs: tuple[Repair, ...]

    def __repr__(self) -> str:
        frames = sum(len(video.frames) for video in self.videos)
        classes = ", ".join(self.class_names)
        return f"DatasetIndex({self.annotation_file}: {len(self.videos)} videos, {frames} frames of {classes})"


def load_index(
    root: str | Path, split: str | Path, *, class_names: Sequence[str] | None = None, errata: bool = True
) -> DatasetIndex:
    """Read the index of a data set folder, repaired where that is beyond doubt.

    Args:
        root: the folder.
        split: "train", "val" or the path of an annotation file (as given, or relative to `root`).
        class_names: the classes and their order, for example those of a trained model; by default the file decides as
            the module describes.
        errata: apply the errata of the BUV data set.

    Raises:
        DataError: the folder or the file cannot be used, or needs a repair that a person has to agree to.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the dataset folder that holds the annotation files")
    annotations = read_annotations(find_annotation_file(root, split), strict=False)
    return build_index(annotations, root, frames_root(root), class_names=class_names, errata=errata)


def build_index(
    annotations: Annotations,
    root: Path,
    folder: Path,
    *,
    class_names: Sequence[str] | None = None,
    errata: bool = True,
) -> DatasetIndex:
    """Return the index of annotations whose file names are relative to `folder`; see `load_index`."""
    facts = gather_facts(annotations, folder)
    repairs = plan_repairs(annotations, facts, errata=errata)
    for repair in repairs:
        if not repair.automatic:
            raise _refusal(annotations.file, repair)
    if repairs:
        annotations = parse_annotations(apply_repairs(annotations.document, repairs), annotations.file)
    names = tuple(class_names) if class_names is not None else _class_names(annotations)
    videos = _videos(annotations, facts, _labels(annotations, names))
    if not videos:
        raise DataError(f"{annotations.file}: no video with frames; list the frames under `images`")
    return DatasetIndex(
        root=root, annotation_file=annotations.file, class_names=names, videos=videos, repairs=tuple(repairs)
    )


def _refusal(file: Path, repair: Repair) -> EntryError:
    remedy = repair.remedy
    if repair.changes:
        remedy += ", or write a repaired annotation file with python -m stnet.data.check --repair"
    return EntryError(file, repair.entry, repair.kind, repair.what, remedy)


def find_annotation_file(root: Path, split: str | Path) -> Path:
    """Return the annotation file of a split.

    Raises:
        DataError: there is none, or more than one.
    """
    if split not in SPLIT_FILES:
        given = Path(split)
        if given.suffix.lower() != ".json":
            raise DataError(f"split {str(split)!r}: give train, val or the path of a .json annotation file")
        return given if given.is_file() else root / given
    found = [root / name for name in SPLIT_FILES[split] if (root / name).is_file()]
    if not found:
        raise DataError(f"{root}: no {' or '.join(SPLIT_FILES[split])}; check the folder or name the file itself")
    if len(found) > 1:
        raise DataError(f"{root}: both {found[0].name} and {found[1].name}; name the one to use, or remove one")
    return found[0]


def frames_root(root: Path) -> Path:
    """Return the folder that `file_name` is relative to."""
    frames = root / FRAMES_FOLDER
    return frames if frames.is_dir() else root


def _class_names(annotations: Annotations) -> tuple[str, ...]:
    names = [annotations.categories[key] for key in sorted(annotations.categories)]
    if {name.lower() for name in names} <= set(LESION_CLASSES):
        return LESION_CLASSES
    return tuple(names)


def _labels(annotations: Annotations, names: tuple[str, ...]) -> dict[int, int]:
    """Return category id -> label (1 for the first class), by name."""
    label_of = {name.lower(): label for label, name in enumerate(names, start=1)}
    labels: dict[int, int] = {}
    for identity, name in annotations.categories.items():
        label = label_of.get(name.lower())
        if label is None:
            remedy = f"rename it to one of {', '.join(names)}, or choose other class names"
            raise EntryError(
                annotations.file, f"categories (id {identity})", "unknown class", f"name {name!r:.80}", remedy
            )
        labels[identity] = label
    return labels


def _videos(annotations: Annotations, facts: FrameFacts, labels: dict[int, int]) -> tuple[Video, ...]:
    boxes = annotations.boxes_of_images()
    images = annotations.images_of_videos()
    videos = []
    for video_id, name in annotations.videos.items():
        scale = video_scale(facts.paths[image.id] for image in images[video_id] if image.id in facts.deep)
        if scale is not None and scale.note is not None:
            warnings.warn(f"{annotations.file}: {name}: {scale.note}", stacklevel=4)
        frames = tuple(_frame(image, boxes[image.id], labels, facts, scale) for image in images[video_id])
        videos.append(Video(name=name, video_id=video_id, frames=frames))
    return tuple(videos)


def _frame(
    image: ImageEntry, entries: list[BoxEntry], labels: dict[int, int], facts: FrameFacts, scale: GrayScale | None
) -> Frame:
    boxes = [repair_box(entry.bbox, image.height, image.width)[0] for entry in entries]
    return Frame(
        path=facts.paths[image.id],
        image_id=image.id,
        frame_id=image.frame_id,
        height=image.height,
        width=image.width,
        boxes=_constant(np.array(boxes, dtype=np.float32).reshape(-1, 4)),
        labels=_constant(np.array([labels[entry.category_id] for entry in entries], dtype=np.int64)),
        annotated=image.annotated,
        scale=scale if image.id in facts.deep else None,
    )


def _constant(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
