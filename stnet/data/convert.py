"""Turns plain folders of frames or video files with COCO or CVAT annotations into a data set.

    python -m stnet.data.convert SOURCE ANNOTATIONS OUT --split train

SOURCE is a video file, a folder of frames, a folder of video files, or a folder with one folder of frames per
video. ANNOTATIONS is a COCO file (.json, boxes of all videos), a CVAT file (.xml) for a single video or for
images, or a folder with one CVAT file per video, named like it.

- Entries find their frame by file name: `clip1/000012.png` is a frame of the video `clip1` (without a folder:
  of the only video); frames of video files are counted from 0 by the number that ends the name.
- Frames that the file does not list are written as not annotated, listed ones without boxes as negatives.
  CVAT tracks cover every frame of their video; frames that no track mentions are negatives. With
  `--empty-unknown` all frames without boxes count as not annotated.
- Converting train and then val into the same OUT gives one data set with both splits.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

import numpy as np

from stnet.data.annotations.entries import load_json, parse_annotations, relative_path_problem
from stnet.data.cvat import Mark, read_cvat
from stnet.data.index import FRAMES_FOLDER, LESION_CLASSES
from stnet.data.layout import VideoRecord, write_annotations, write_frames
from stnet.data.progress import counting
from stnet.errors import ConfigError, DataError, StnetError
from stnet.video import VideoInput, find_inputs

MARKER = "converted.json"


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoMarks:
    """The marks of a video: by frame index, or by name where the frames are image files.

    `covers_all`: frames that are not mentioned were looked at, too.
    """

    by_index: dict[int, list[Mark]] = field(default_factory=dict)
    by_name: dict[str, list[Mark]] = field(default_factory=dict)
    covers_all: bool = False


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was written: counts, and remarks on what was left out."""

    videos: int
    frames: int
    boxes: int
    remarks: tuple[str, ...]


def convert(
    source: str | Path,
    annotations: str | Path,
    out: str | Path,
    *,
    split: str,
    class_names: Sequence[str] | None = None,
    empty_unknown: bool = False,
    on_video: Callable[[], None] = lambda: None,
) -> Conversion:
    """Converts one split; see the module. Raises `DataError`, `VideoError` and `ConfigError`."""
    out, remarks = Path(out), []
    videos = find_videos(Path(source))
    marks = read_marks(Path(annotations), videos, remarks)
    names = _class_names(marks, class_names)
    _prepare(out, split, [video.name for video in videos])
    records = []
    try:
        for video in videos:
            records.append(_write_video(out, video, marks[video.name], names, empty_unknown, remarks))
            on_video()
    except StnetError:
        for video in videos:
            shutil.rmtree(out / FRAMES_FOLDER / video.name, ignore_errors=True)
        raise
    write_annotations(out / f"{split}.json", records, names)
    return Conversion(
        videos=len(records),
        frames=sum(len(record.files) for record in records),
        boxes=sum(len(boxes) for record in records for boxes in record.boxes),
        remarks=tuple(remarks),
    )


def find_videos(source: Path) -> list[VideoInput]:
    """The videos of a source: a file, a folder of frames or of files, or a folder of folders of frames."""
    folders = (
        sorted(path for path in source.iterdir() if path.is_dir() and path.name[0] != ".") if source.is_dir() else []
    )
    videos = find_inputs(folders or [source])
    names = [video.name for video in videos]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{source}: two videos named {name}; rename one")
        problem = relative_path_problem(name)
        if problem:
            raise DataError(f"{source}: video name {name!r:.80} {problem}; rename it")
    return videos


def read_marks(file: Path, videos: list[VideoInput], remarks: list[str]) -> dict[str, VideoMarks]:
    """The marks of every video, by its name; adds to `remarks` what was ignored."""
    if file.is_dir():
        marks = {}
        for video in videos:
            own = file / f"{video.name}.xml"
            if not own.is_file():
                raise DataError(f"{file}: no {own.name} for the video {video.name}; export its annotations")
            marks |= _cvat_marks(own, [video], remarks)
        return marks
    if file.suffix.lower() == ".xml":
        return _cvat_marks(file, videos, remarks)
    if file.suffix.lower() == ".json":
        return _coco_marks(file, videos, remarks)
    raise DataError(f"{file}: give a COCO .json, a CVAT .xml or a folder of CVAT files")


def _cvat_marks(file: Path, videos: list[VideoInput], remarks: list[str]) -> dict[str, VideoMarks]:
    content = read_cvat(file)
    if content.ignored:
        remarks.append(f"{file}: {content.ignored} shapes are no boxes: ignored")
    if content.tracks and len(videos) > 1:
        raise DataError(f"{file}: tracks of one video, but there are {len(videos)}; give a folder of CVAT files")
    if content.tracks:
        return {videos[0].name: VideoMarks(by_index=content.tracks, covers_all=True)}
    return _distributed(file, content.images, videos)


def _coco_marks(file: Path, videos: list[VideoInput], remarks: list[str]) -> dict[str, VideoMarks]:
    document = load_json(file)
    images = document.get("images")
    if isinstance(images, list):
        # Videos and frame numbers follow from the file names.
        document = document | {
            "videos": [{"id": 0, "name": "all"}],
            "images": [
                image | {"video_id": 0, "frame_id": i} if isinstance(image, dict) else image
                for i, image in enumerate(images)
            ],
        }
    content = parse_annotations(document, file)
    marks: dict[int, list[Mark]] = {image.id: [] for image in content.images}
    for number, entry in enumerate(content.boxes):
        x, y, w, h = entry.bbox
        raw = document["annotations"][entry.position]
        track = raw.get("track_id", raw.get("instance_id"))
        instance = track if isinstance(track, int) else -1 - number
        label = content.categories[entry.category_id]
        marks[entry.image_id].append(Mark(label=label, box=(x, y, x + w, y + h), instance=instance))
    return _distributed(file, {image.file_name: marks[image.id] for image in content.images}, videos)


def _distributed(file: Path, images: dict[str, list[Mark]], videos: list[VideoInput]) -> dict[str, VideoMarks]:
    """Hands the marks of image names out to the videos they belong to."""
    marks = {video.name: VideoMarks() for video in videos}
    for name, found in images.items():
        path = PurePosixPath(name)
        owner = path.parent.name if path.parent.name in marks else None
        if owner is None and len(videos) == 1:
            owner = videos[0].name
        if owner is None:
            raise DataError(f"{file}: image {name!r:.80} belongs to none of the videos {', '.join(marks)[:200]}")
        number = re.search(r"(\d{1,12})$", path.stem)
        if number:
            marks[owner].by_index[int(number[1])] = found
        marks[owner].by_name[path.name] = found
    return marks


def _class_names(marks: dict[str, VideoMarks], given: Sequence[str] | None) -> tuple[str, ...]:
    found = {
        mark.label
        for video in marks.values()
        for group in (*video.by_index.values(), *video.by_name.values())
        for mark in group
    }
    names = tuple(given) if given else LESION_CLASSES
    unknown = sorted(label for label in found if label.lower() not in _lower(names))
    if not unknown:
        return names
    if given:
        listed = ", ".join(unknown)[:200]
        raise ConfigError(f"classes {listed} are not among {', '.join(names)}; add them to --classes")
    return tuple(sorted(found))


def _lower(names: Sequence[str]) -> list[str]:
    return [name.lower() for name in names]


def _write_video(
    out: Path,
    video: VideoInput,
    marks: VideoMarks,
    names: tuple[str, ...],
    empty_unknown: bool,
    remarks: list[str],
) -> VideoRecord:
    source = video.open()
    files = write_frames(out, video.name, _gray_or_colour(frame.image for frame in source))
    if source.status == "corrupt":
        raise DataError(f"{video.origin}: damaged inside ({'; '.join(source.problems)}); its frames cannot be counted")
    if source.status != "ok":
        remarks.append(f"{video.origin}: {source.status} ({'; '.join(source.problems)}): what was decoded is kept")
    frames = _marks_of_frames(video, marks, len(files), remarks)
    kept = [found or [] for found in frames]
    looked_at = [bool(found) or (not empty_unknown and (found is not None or marks.covers_all)) for found in frames]
    labels = _lower(names)
    return VideoRecord(
        name=video.name,
        height=source.height,
        width=source.width,
        files=files,
        boxes=tuple(np.array([mark.box for mark in found], dtype=np.float64).reshape(-1, 4) for found in kept),
        labels=tuple(np.array([labels.index(mark.label.lower()) + 1 for mark in found]) for found in kept),
        instances=tuple(np.array([mark.instance for mark in found]) for found in kept),
        annotated=tuple(looked_at),
    )


def _marks_of_frames(video: VideoInput, marks: VideoMarks, length: int, remarks: list[str]) -> list[list[Mark] | None]:
    """The marks of every frame, None where the annotations do not mention it."""
    if any(path.name in marks.by_name for path in video.paths):
        frames = [marks.by_name.get(path.name) for path in video.paths]
    else:
        frames = [marks.by_index.get(index) for index in range(length)]
    wanted = sum(len(group) for group in (marks.by_name or marks.by_index).values())
    used = sum(len(found) for found in frames if found)
    if used < wanted:
        remarks.append(f"{video.name}: {wanted - used} of {wanted} boxes are on frames that the video does not have")
    return frames


def _gray_or_colour(images: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """Gray frames with one channel, others as they are."""
    for image in images:
        gray = image[..., :1]
        yield image[..., 0] if (gray == image).all() else image


def _prepare(out: Path, split: str, names: list[str]) -> None:
    """Makes the folder, or accepts one that an earlier conversion made and that lacks this split."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise ConfigError(f"{out} is not empty and holds no converted data set; name another folder")
    if (out / f"{split}.json").exists():
        raise ConfigError(f"{out} has a {split} split already; name another folder or remove it")
    for name in names:
        if (out / FRAMES_FOLDER / name).exists():
            raise ConfigError(f"{out} has a video {name} already; rename the new one or remove the old one")
    out.mkdir(parents=True, exist_ok=True)
    (out / MARKER).write_text(json.dumps({"made_by": "stnet.data.convert"}) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m stnet.data.convert",
        description="Turn frames or video files with COCO or CVAT annotations into a data set.",
    )
    parser.add_argument("source", type=Path, help="video file, or folder of frames, of videos, or of folders of frames")
    parser.add_argument("annotations", type=Path, help="COCO .json, CVAT .xml, or a folder with VIDEO.xml for each")
    parser.add_argument("out", type=Path, help="folder to write: new, or converted before and without this split")
    parser.add_argument("--split", choices=("train", "val"), required=True, help="which split to write")
    parser.add_argument(
        "--classes", nargs="+", metavar="NAME", help="class names in order (default: benign malignant, or those found)"
    )
    parser.add_argument(
        "--empty-unknown", action="store_true", help="frames without boxes are not annotated rather than negatives"
    )
    options = parser.parse_args(arguments)
    try:
        _convert_with_progress(options)
    except StnetError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _convert_with_progress(options: argparse.Namespace) -> None:
    with counting("Converting videos") as advance:
        done = convert(
            options.source,
            options.annotations,
            options.out,
            split=options.split,
            class_names=options.classes,
            empty_unknown=options.empty_unknown,
            on_video=advance,
        )
    for remark in done.remarks:
        print(f"note: {remark}", file=sys.stderr)
    print(f"{options.out}: {options.split} split of {done.videos} videos, {done.frames} frames, {done.boxes} boxes")


if __name__ == "__main__":
    sys.exit(main())
