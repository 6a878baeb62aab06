"""Turn plain folders of frames or video files with annotations of common tools into a data set.

    python -m stnet.data.convert SOURCE ANNOTATIONS OUT --split train

SOURCE is a video file, a folder of frames, a folder of video files, or a folder with one folder of frames per
video. ANNOTATIONS is a file of COCO, CVAT, Label Studio, LabelMe, Pascal VOC or YOLO, or a folder of such files; those
with tracks are named like their video.

- An entry is placed by exact names: `clip1/000012.png` is that frame of the video `clip1`; `000012.png` is one of the
  only video. Frames of video files have no names: `000012` is the one with that number when a frame 0 is listed, too.
  Anything else is placed by what you say (`--numbering`, `--frame-step`, `--video-from`), or left out and listed.
- What a file says about itself (size of its pictures, start, stop, step, deleted frames, rotation, crowd, shape) is
  honoured, converted or refused: see the table in docs/data-formats.md.
- Frames that the file does not list are written as not annotated, listed ones without boxes as negatives. Tracks cover
  every frame of their task; frames of the task that no track mentions are negatives. With `--empty-unknown` all frames
  without boxes count as not annotated.
- Converting train and then val into the same OUT gives one data set with both splits.
"""

import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from stnet import files
from stnet.data.annotations.entries import relative_path_problem
from stnet.data.formats.account import Account
from stnet.data.formats.assigning import Owned, Rules, assign
from stnet.data.formats.classes import ClassRules, choose_classes
from stnet.data.formats.conversion import VideoConversion
from stnet.data.formats.reading import read_marks
from stnet.data.index import FRAMES_FOLDER
from stnet.data.layout import write_annotations
from stnet.data.named import require_files
from stnet.errors import ConfigError, DataError
from stnet.video import VideoInput, find_inputs
from stnet.video.dicom import is_dicom
from stnet.video.inputs import DICOM_INDEX
from stnet.video.reader import VIDEO_SUFFIXES
from stnet.video.stills import IMAGE_SUFFIXES

MARKER = "converted.json"


@dataclass(frozen=True, kw_only=True)
class Conversion:
    """What was written: counts, classes, and a line for each thing that was converted or left out."""

    videos: int
    frames: int
    frames_with_boxes: int
    negatives: int
    boxes: int
    classes: tuple[str, ...]
    placed: int
    entries: int
    remarks: tuple[str, ...]


def convert(
    source: str | Path,
    annotations: str | Path,
    out: str | Path,
    *,
    split: str,
    classes: ClassRules | None = None,
    format_name: str | None = None,
    rules: Rules | None = None,
    empty_unknown: bool = False,
    allow_left_out: bool = False,
    full_frame: bool = False,
    on_video: Callable[[], None] = lambda: None,
) -> Conversion:
    """Convert one split; see the module.

    Args:
        source: a video file, or a folder of frames, of videos or of folders of frames.
        annotations: an annotation file or a folder of them.
        out: the folder to write: new, or converted before and without this split.
        split: `train` or `val`.
        classes: the classes, and what class names of the file become.
        format_name: one of `ANNOTATION_FORMATS` of `stnet.choices`; by default the contents tell.
        rules: how entries are placed that no exact name places.
        empty_unknown: whether frames without boxes are not annotated rather than negatives.
        allow_left_out: whether most of the entries may be left out.
        full_frame: write whole frames of DICOM files, not only their scan region.
        on_video: called after each video.

    Raises:
        ConfigError, DataError, VideoError, OSError: nothing is left of what was written.
    """
    out, rules, account = Path(out), rules or Rules(), Account()
    videos = find_videos(Path(source))
    contents = read_marks(Path(annotations), format_name)
    owned = assign(contents, videos, rules, account)
    if not allow_left_out:
        account.judge()
    _check_every_video(owned, Path(annotations), account)
    chosen = choose_classes(owned, classes or ClassRules(), out, account)
    with _writing(out, split) as made:
        records = []
        for video in videos:
            made.append(_claim(out, video.name))
            conversion = VideoConversion(video, out, chosen, account, full_frame)
            records.append(conversion.write(owned[video.name], rules, empty_unknown))
            if not allow_left_out:
                account.judge()
            on_video()
        write_annotations(out / f"{split}.json", records, chosen.names)
    states = [
        (len(boxes), seen) for record in records for boxes, seen in zip(record.boxes, record.annotated, strict=True)
    ]
    return Conversion(
        videos=len(records),
        frames=len(states),
        frames_with_boxes=sum(boxes > 0 for boxes, _ in states),
        negatives=sum(seen and not boxes for boxes, seen in states),
        boxes=sum(boxes for boxes, _ in states),
        classes=chosen.names,
        placed=account.placed_entries,
        entries=account.listed_entries,
        remarks=tuple(account.lines()),
    )


def find_videos(source: Path) -> list[VideoInput]:
    """Find the videos of a source: a file, a folder of frames or of files, or a folder of folders of frames.

    Raises:
        DataError: names that clash or are no file names.
        VideoError: there is none that can be read.
    """
    require_files(source)
    try:
        folders = sorted(path for path in source.iterdir() if path.is_dir() and path.name[0] != ".")
    except NotADirectoryError:
        folders = []
    if folders:
        _check_folders_alone(source)
    videos = find_inputs(folders or [source])
    names = [video.name for video in videos]
    for name in names:
        if names.count(name) > 1:
            raise DataError(f"{source}: two videos named {name}; rename one")
        problem = relative_path_problem(name)
        if problem:
            raise DataError(f"{source}: video name {name!r:.80} {problem}; rename it")
    return videos


def _check_folders_alone(source: Path) -> None:
    """Refuse a folder that is one video, or holds some, beside folders that would be videos as well."""
    files = (path for path in sorted(source.iterdir()) if path.name[0] != "." and path.is_file())
    files = (path for path in files if path.name.upper() != DICOM_INDEX)
    loose = next(
        (file for file in files if file.suffix.lower() in IMAGE_SUFFIXES | VIDEO_SUFFIXES or is_dicom(file)), None
    )
    if loose is not None:
        name = "a DICOM file" if is_dicom(loose) else loose.name
        raise DataError(
            f"{source}: holds {name} and folders; which are the videos? Move masks and the like elsewhere, or give "
            "each video a folder of its own"
        )


def _check_every_video(owned: dict[str, Owned], annotations: Path, account: Account) -> None:
    """Refuse a video without a word about it, whose annotations are missing; note it where others have some."""
    missing = [name for name, marks in owned.items() if marks.video is None and not marks.images]
    by_file = any(marks.video is not None for marks in owned.values())
    if missing and (by_file or len(missing) == len(owned)):
        raise DataError(
            f"{annotations}: nothing for the video {missing[0]} (no {missing[0]}.xml); export its annotations"
        )
    for name in missing:
        account.notes[f"{name}: no annotations; none of its frames is annotated"] += 1


@contextmanager
def _writing(out: Path, split: str) -> Iterator[list[Path]]:
    """Make the folder, or accept one that an earlier conversion made and that lacks this split.

    Gives a list for the folders that are made; after any error they are gone, and so is all else that was made.
    """
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / MARKER).is_file():
        raise ConfigError(f"{out} is not empty and holds no converted data set; name another folder")
    if (out / f"{split}.json").exists():
        raise ConfigError(f"{out} has a {split} split already; name another folder or remove it")
    absent = [path for path in (out / FRAMES_FOLDER, out, *out.parents) if not path.exists()]
    marked = (out / MARKER).exists()
    made: list[Path] = []
    try:
        (out / FRAMES_FOLDER).mkdir(parents=True, exist_ok=True)
        if not marked:
            files.write_json(out / MARKER, {"made_by": "stnet.data.convert"})
        yield made
    except BaseException:
        for folder in made:
            shutil.rmtree(folder, ignore_errors=True)
        if not marked:
            (out / MARKER).unlink(missing_ok=True)
        for folder in absent:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        raise


def _claim(out: Path, name: str) -> Path:
    """Make the folder of a video, which no earlier and no other run has made."""
    folder = out / FRAMES_FOLDER / name
    try:
        folder.mkdir()
    except FileExistsError as error:
        raise ConfigError(
            f"{out} has a video {name} already; rename the new one, or remove {folder} if a broken run left it"
        ) from error
    return folder


if __name__ == "__main__":
    from stnet.data.convert_command import main

    sys.exit(main())
