"""Data sets from still images with lesion boxes: real texture for training where there is no video.

    python -m stnet.data.stills OUT --sets BUSBRA BUS-UCLM Dataset_BUSI_with_GT my_stills --held
    python -m stnet.data.stills OUT --train a/train.json b/train.json --val a/val.json b/val.json --frames 12

A set is the folder of a public set as its authors publish it (BUS-BRA, BUS-UCLM, BrEaST, BUSI), which is split by
patient, or a folder with train.json and val.json. Annotation files are COCO: file names relative to their folder,
boxes in pixels, categories mapped by name, images with their `patient` where it is known. Stills without a box are
lesion-free; known repeats of public sets are left out. A patient in both splits is refused.

With --held every still is a video of one frame, for `train.py --augmentation stills`, which moves it on the fly.
Without, each becomes a pseudo-video of a slowly moving view, rendered to frames: good for checks of training, never a
benchmark.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from stnet.data.frames import FrameReader
from stnet.data.index import SPLIT_FILES, Frame, find_annotation_file
from stnet.data.layout import VideoRecord, filling, write_annotations, write_frames
from stnet.data.still_sets.made import SPLITS, Held, Moving, check_shape
from stnet.data.still_sets.published import published_reader
from stnet.data.still_sets.splits import check_apart, split_by_patient
from stnet.data.still_sets.stills import Stills, read_coco_stills
from stnet.data.synthetic.pseudo_video import render_still
from stnet.errors import ConfigError, DataError

MARKER = "stills.json"


def read_sets(folders: Sequence[Path], val_share: float, seed: int) -> dict[str, list[Stills]]:
    """Read sets of stills as train and val: as they are split already, or by patient.

    Args:
        folders: of public sets as published, or with train.json or val.json.
        val_share: share of the patients of a published set that validate.
        seed: decides who does.

    Raises:
        DataError: a folder is no set, or something in it cannot be used.
    """
    splits: dict[str, list[Stills]] = {split: [] for split in SPLITS}
    for folder in folders:
        present = [split for split in SPLITS if any((folder / name).is_file() for name in SPLIT_FILES[split])]
        read = published_reader(folder)
        if read is not None and present:
            raise DataError(
                f"{folder}: holds annotation files beside a public set as published; name these files by --train and "
                "--val, or move them away to have the set split by patient"
            )
        if read is not None:
            for split, stills in zip(SPLITS, split_by_patient(read(), val_share, seed), strict=True):
                splits[split].append(stills)
            continue
        if not present:
            raise DataError(
                f"{folder}: neither train.json nor val.json, nor a public set as published (BUS-BRA, BUS-UCLM, "
                "BrEaST, BUSI); give the folder that holds them"
            )
        for split in present:
            splits[split].append(read_coco_stills(find_annotation_file(folder, split)))
    return {split: [stills for stills in sets if len(stills)] for split, sets in splits.items()}


def write_stills(
    root: str | Path,
    splits: Mapping[str, Sequence[Stills]],
    seed: int,
    shape: Moving | Held,
    *,
    overwrite: bool = False,
    on_video: Callable[[], None] = lambda: None,
) -> Path:
    """Write a data set of one video per still.

    Args:
        root: folder to write.
        splits: the stills of "train" and "val"; all must have the same classes, and no patient in both.
        seed: same seed, same pseudo-videos.
        shape: what becomes of a still.
        overwrite: replace an earlier data set of stills, and nothing else.
        on_video: called after every still.

    Returns:
        `root`.

    Raises:
        ConfigError: an option cannot be used, or the folder is not empty.
        DataError: stills that do not go together, or that cannot be read.
        OSError: for example on a full disk. After any error nothing that was written is left.
    """
    root = Path(root)
    class_names = _check_options(shape, splits)
    check_apart(splits)
    counts = {split: {stills.name: len(stills) for stills in sets} for split, sets in splits.items()}
    reader = FrameReader(0)
    with filling(root, MARKER, overwrite, {"seed": seed, **vars(shape), "videos": counts}):
        for number, (split, sets) in enumerate(splits.items()):
            records = []
            for stills in sets:
                for video in stills.index.videos:
                    rng = np.random.default_rng((seed, number, len(records)))
                    name = f"{split}_{len(records):05d}_{video.frames[0].path.stem}"
                    write = _write_held if isinstance(shape, Held) else _write_moving
                    facts = {"set": stills.name, **_stated("patient", stills.patients.get(video.name))}
                    records.append(write(root, name, video.frames[0], reader, rng, shape, facts))
                    on_video()
            write_annotations(root / f"{split}.json", records, class_names)
    return root


def _write_held(
    root: Path, name: str, still: Frame, reader: FrameReader, rng: np.random.Generator, shape: Held, facts: dict
) -> VideoRecord:
    scale = min(1.0, shape.longest / max(still.height, still.width))
    width, height = max(1, round(still.width * scale)), max(1, round(still.height * scale))
    image = Image.fromarray(_gray(reader.read(still))).resize((width, height), Image.Resampling.BILINEAR)
    ratio = np.array([width / still.width, height / still.height] * 2)
    return VideoRecord(
        name=name,
        height=height,
        width=width,
        files=write_frames(root, name, [np.asarray(image)]),
        boxes=(still.boxes * ratio,),
        labels=(still.labels,),
        instances=(np.arange(len(still.labels)),),
        annotated=(still.annotated,),
        facts=facts,
    )


def _write_moving(
    root: Path, name: str, still: Frame, reader: FrameReader, rng: np.random.Generator, shape: Moving, facts: dict
) -> VideoRecord:
    video = render_still(
        _gray(reader.read(still)), still, rng, frames=shape.frames, height=shape.height, width=shape.width
    )
    return VideoRecord(
        name=name,
        height=shape.height,
        width=shape.width,
        files=write_frames(root, name, video.frames),
        boxes=video.boxes,
        labels=video.labels,
        instances=video.instances,
        annotated=video.annotated,
        facts=facts,
    )


def _stated(key: str, value: str | None) -> dict[str, str]:
    return {} if value is None else {key: value}


def _gray(pixels: np.ndarray) -> np.ndarray:
    return (pixels @ np.array([0.299, 0.587, 0.114]) + 0.5).astype(np.uint8)


def _check_options(shape: Moving | Held, splits: Mapping[str, Sequence[Stills]]) -> tuple[str, ...]:
    """Return the classes that all stills have."""
    check_shape(shape)
    if not splits or not set(splits) <= set(SPLITS) or not any(splits.values()):
        raise ConfigError(f"splits {sorted(splits)}: give train, val or both")
    classes = {stills.index.class_names: stills for sets in splits.values() for stills in sets}
    if len(classes) > 1:
        where = " and ".join(
            f"{', '.join(names)} ({stills.index.annotation_file})" for names, stills in classes.items()
        )
        raise DataError(f"stills with different classes: {where}; give all the same categories")
    return next(iter(classes))


if __name__ == "__main__":
    from stnet.data.stills_command import main

    sys.exit(main())
