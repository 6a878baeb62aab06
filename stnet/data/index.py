"""A dataset folder as an index of videos, frames and boxes (the layout of the BUV dataset).

    my_dataset/
      rawframes/                  frames; without this folder, paths are relative to my_dataset/ itself
        patient1_left/000000.png  8-bit gray or RGB PNG, JPEG, BMP or TIFF
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
- Categories are mapped by name: benign and malignant (in any case) become labels 1 and 2 whatever their ids;
  other names become labels 1, 2, ... in the order of their ids.
- Other keys (`vid_train_frames`, `area`, `instance_id`, ...) are ignored.

Boxes drawn right to left are put in order, boxes reaching beyond the image are clipped, boxes that cover
nothing are dropped (and their frame, when no box is left, counts as not annotated: something was marked
there). The errata of the BUV dataset are applied by name unless `errata=False`. All of it is listed in
`DatasetIndex.repairs`.
"""

import os
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from stnet.data.annotations.entries import Annotations, BoxEntry, EntryError, ImageEntry, read_annotations
from stnet.data.annotations.repairs import BUV_DUPLICATES, BUV_MALIGNANT, Repair, repair_box
from stnet.errors import DataError

LESION_CLASSES = ("benign", "malignant")
SPLIT_FILES = {
    "train": ("imagenet_vid_train_15frames.json", "train.json"),
    "val": ("imagenet_vid_val.json", "val.json"),
}
FRAMES_FOLDER = "rawframes"


@dataclass(frozen=True, kw_only=True, eq=False)
class Frame:
    """One frame: `boxes` float32 [n, 4], x0 y0 x1 y1 in pixels; `labels` int64 [n] from 1; both read-only."""

    path: Path
    image_id: int
    frame_id: int
    height: int
    width: int
    boxes: np.ndarray
    labels: np.ndarray
    annotated: bool


@dataclass(frozen=True, kw_only=True, eq=False)
class Video:
    """A video and its frames in the order of their `frame_id`; at least one."""

    name: str
    video_id: int
    frames: tuple[Frame, ...]


@dataclass(frozen=True, kw_only=True, eq=False)
class DatasetIndex:
    """An annotation file, read, checked and repaired. Label k stands for `class_names[k - 1]`."""

    root: Path
    annotation_file: Path
    class_names: tuple[str, ...]
    videos: tuple[Video, ...]
    repairs: tuple[Repair, ...]


def load_index(
    root: str | Path, split: str | Path, *, class_names: Sequence[str] | None = None, errata: bool = True
) -> DatasetIndex:
    """Reads the index of a dataset folder.

    `split` is "train", "val" or the path of an annotation file (as given, or relative to `root`).
    `class_names` fixes the classes and their order, for example those of a trained model; by default the file
    decides as the module describes. `errata` applies the errata of the BUV dataset. Raises `DataError`.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the dataset folder that holds the annotation files")
    annotations = read_annotations(find_annotation_file(root, split))
    return build_index(annotations, root, frames_root(root), class_names=class_names, errata=errata)


def build_index(
    annotations: Annotations,
    root: Path,
    folder: Path,
    *,
    class_names: Sequence[str] | None = None,
    errata: bool = True,
) -> DatasetIndex:
    """The index of annotations whose file names are relative to `folder`; see `load_index`."""
    names = tuple(class_names) if class_names is not None else _class_names(annotations)
    builder = _Builder(annotations, folder, _labels(annotations, names), names, errata)
    videos = builder.videos()
    if not videos:
        raise DataError(f"{annotations.file}: no video with frames; list the frames under `images`")
    return DatasetIndex(
        root=root,
        annotation_file=annotations.file,
        class_names=names,
        videos=videos,
        repairs=tuple(builder.repairs),
    )


def find_annotation_file(root: Path, split: str | Path) -> Path:
    """The annotation file of a split; raises `DataError` when there is none or more than one."""
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
    """The folder that `file_name` is relative to."""
    frames = root / FRAMES_FOLDER
    return frames if frames.is_dir() else root


def _class_names(annotations: Annotations) -> tuple[str, ...]:
    names = [annotations.categories[key] for key in sorted(annotations.categories)]
    if {name.lower() for name in names} <= set(LESION_CLASSES):
        return LESION_CLASSES
    return tuple(names)


def _labels(annotations: Annotations, names: tuple[str, ...]) -> dict[int, int]:
    """Category id -> label (1 for the first class), by name."""
    label_of = {name.lower(): label for label, name in enumerate(names, start=1)}
    labels: dict[int, int] = {}
    for identity, name in annotations.categories.items():
        label = label_of.get(name.lower())
        if label is None:
            remedy = f"rename it to one of {', '.join(names)}, or choose other class names"
            raise EntryError(
                annotations.file, f"categories (id {identity})", "unknown class", f"name {name!r:.80}", remedy
            )
        if label in labels.values():
            raise EntryError(
                annotations.file,
                f"categories (id {identity})",
                "duplicate class",
                f"{name!r:.80} again",
                "merge them",
            )
        labels[identity] = label
    return labels


class PathGuard:
    """Maps file names to paths that stay inside `root` even through symbolic links."""

    def __init__(self, root: Path):
        self.root = root
        self._real_root = os.path.realpath(root)
        self._inside: dict[Path, bool] = {}

    def path(self, file_name: str) -> Path:
        """The path of a file name, which need not exist; raises ValueError when it leads out."""
        path = self.root / file_name
        if path.parent not in self._inside:
            self._inside[path.parent] = self._is_inside(path.parent)
        if not self._inside[path.parent] or (path.is_symlink() and not self._is_inside(path)):
            raise ValueError("leads out of the dataset through a symbolic link")
        return path

    def _is_inside(self, path: Path) -> bool:
        real = os.path.realpath(path)
        return real == self._real_root or real.startswith(os.path.join(self._real_root, ""))


class _Builder:
    """Groups entries into videos, repairing on the way; `repairs` lists what was changed."""

    def __init__(
        self,
        annotations: Annotations,
        folder: Path,
        labels: dict[int, int],
        names: tuple[str, ...],
        errata: bool,
    ):
        self.annotations = annotations
        self.guard = PathGuard(folder)
        self.labels = labels
        self.lower_names = [name.lower() for name in names]
        self.errata = errata
        self.repairs: list[Repair] = []

    def videos(self) -> tuple[Video, ...]:
        images: dict[int, list[ImageEntry]] = defaultdict(list)
        for image in self.annotations.images:
            images[image.video_id].append(image)
        boxes: dict[int, list[BoxEntry]] = defaultdict(list)
        for box in self.annotations.boxes:
            boxes[box.image_id].append(box)
        videos = []
        for video_id, name in self.annotations.videos.items():
            if self._is_dropped(video_id, name, images):
                continue
            ordered = sorted(images[video_id], key=lambda image: image.frame_id)
            label = self._erratum_label(name)
            frames = tuple(self._frame(image, boxes[image.id], label) for image in ordered)
            videos.append(Video(name=name, video_id=video_id, frames=frames))
        return tuple(videos)

    def _is_dropped(self, video_id: int, name: str, images: dict[int, list[ImageEntry]]) -> bool:
        entry = f"videos (id {video_id})"
        if self.errata and name in BUV_DUPLICATES:
            self._repaired("BUV erratum", entry, f"{name} duplicates {BUV_DUPLICATES[name]}: dropped")
            return True
        if not images[video_id]:
            self._repaired("video without frames", entry, f"{name} has no frames: dropped")
            return True
        return False

    def _erratum_label(self, name: str) -> int | None:
        """The label that all boxes of a video get by the errata of BUV, or None."""
        if not self.errata or name not in BUV_MALIGNANT or "malignant" not in self.lower_names:
            return None
        return 1 + self.lower_names.index("malignant")

    def _frame(self, image: ImageEntry, entries: list[BoxEntry], label: int | None) -> Frame:
        if entries and not image.annotated:
            raise self._error(
                image, "contradiction", "annotated is false but the frame has boxes", "remove either of them"
            )
        boxes, labels = [], []
        for entry in entries:
            corners, done = repair_box(entry.bbox, image.height, image.width)
            for kind, what in done:
                self._repaired(kind, entry.entry, f"{image.file_name}: {what}")
            if corners is None:
                continue
            boxes.append(corners)
            labels.append(self._label(entry, image, label))
        if entries and not boxes:
            self._repaired("frame left without boxes", image.entry, f"{image.file_name}: counts as not annotated")
        return Frame(
            path=self._path(image),
            image_id=image.id,
            frame_id=image.frame_id,
            height=image.height,
            width=image.width,
            boxes=_constant(np.array(boxes, dtype=np.float32).reshape(-1, 4)),
            labels=_constant(np.array(labels, dtype=np.int64)),
            annotated=image.annotated and (bool(boxes) or not entries),
        )

    def _label(self, entry: BoxEntry, image: ImageEntry, label: int | None) -> int:
        written = self.labels[entry.category_id]
        if label is None or label == written:
            return written
        self._repaired("BUV erratum", entry.entry, f"{image.file_name}: the patient's lesion is malignant: relabelled")
        return label

    def _path(self, image: ImageEntry) -> Path:
        try:
            path = self.guard.path(image.file_name)
        except ValueError as error:
            raise self._error(
                image,
                "path leaves the dataset",
                f"file_name {image.file_name!r} {error}",
                "copy the frame inside",
            ) from error
        if not path.is_file():
            raise self._error(
                image,
                "missing frame",
                f"no file {path}",
                "restore it, or write a repaired annotation file with python -m stnet.data.check --repair",
            )
        return path

    def _error(self, image: ImageEntry, kind: str, what: str, remedy: str) -> EntryError:
        return EntryError(self.annotations.file, image.entry, kind, what, remedy)

    def _repaired(self, kind: str, entry: str, what: str) -> None:
        self.repairs.append(Repair(kind=kind, entry=entry, what=what))


def _constant(array: np.ndarray) -> np.ndarray:
    array.flags.writeable = False
    return array
