"""Stills as an index of videos with one frame each, and whose stills they are."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stnet.data.annotations.entries import load_json, parse_annotations
from stnet.data.index import DatasetIndex, Video, build_index
from stnet.errors import DataError


@dataclass(frozen=True, kw_only=True, eq=False)
class Stills:
    """Stills of one set.

    Attributes:
        name: of the set.
        index: one video of one frame per still.
        patients: by name of the video; stills whose set states no patient are absent.
    """

    name: str
    index: DatasetIndex
    patients: dict[str, str]

    def __len__(self) -> int:
        return len(self.index.videos)

    def keep(self, videos: Sequence[Video]) -> "Stills":
        """Return some of the stills."""
        names = {video.name for video in videos}
        kept = {name: patient for name, patient in self.patients.items() if name in names}
        return replace(self, index=replace(self.index, videos=tuple(videos)), patients=kept)


def read_coco_stills(annotation_file: Path, class_names: Sequence[str] | None = None) -> Stills:
    """Read a COCO file of stills; file names are relative to its folder, whose name is that of the set.

    An image may state its `patient`, a string.

    Raises:
        DataError: the file or one of its entries cannot be used.
    """
    return stills_of(load_json(annotation_file), annotation_file, annotation_file.parent, class_names)


def stills_of(document: dict, file: Path, folder: Path, class_names: Sequence[str] | None = None) -> Stills:
    """Turn a COCO document whose file names are relative to `folder` into stills; `file` is named in messages.

    Raises:
        DataError: an entry cannot be used.
    """
    images = document.get("images")
    patients: dict[str, str] = {}
    if isinstance(images, list):
        names = [f"{number:05d}_{_stem(image)}" for number, image in enumerate(images)]
        patients = {
            name: _patient(image, file, number)
            for number, (name, image) in enumerate(zip(names, images, strict=True))
            if isinstance(image, dict) and image.get("patient") is not None
        }
        # Every still is a video of its own; the position makes its name unique, as file names need not be.
        document = document | {
            "videos": [{"id": number, "name": name} for number, name in enumerate(names)],
            "images": [
                image | {"video_id": number, "frame_id": 0} if isinstance(image, dict) else image
                for number, image in enumerate(images)
            ],
        }
    annotations = parse_annotations(document, file)
    index = build_index(annotations, folder, folder, class_names=class_names, errata=False)
    return Stills(name=folder.resolve().name, index=index, patients=patients)


def _stem(image: object) -> str:
    name = image.get("file_name") if isinstance(image, dict) else None
    # A name that cannot be used is refused with its entry, later.
    return (
        "".join(c if c.isalnum() or c in "-_." else "_" for c in Path(name).stem[:80]) if isinstance(name, str) else ""
    )


def _patient(image: dict, file: Path, number: int) -> str:
    patient = image["patient"]
    if not isinstance(patient, str) or not patient.strip():
        raise DataError(f"{file}: images[{number}]: patient is {patient!r:.40}; write a string, or leave it out")
    return patient
