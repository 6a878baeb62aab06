"""Files of stills as named sets, and the predictions on them; every still is held as a constant video."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from stnet.data.still_sets.stills import Stills, read_coco_stills
from stnet.errors import DataError
from stnet.evaluation.coco import ScoredFrame


@dataclass(frozen=True, kw_only=True, eq=False)
class ScoredSet:
    """Predictions on one set of stills, with raw scores; names of videos are unique over all sets.

    Attributes:
        name: of the set.
        frames: one per still.
        patients: by name of the video, where the set states them.
    """

    name: str
    frames: Sequence[ScoredFrame]
    patients: dict[str, str]


def read_still_files(files: Sequence[Path], class_names: Sequence[str]) -> dict[str, Stills]:
    """Read COCO files of stills by name: that of the folder, and of the file where folders share a name.

    Raises:
        DataError: a file cannot be used, is given twice, or none of its stills was looked at.
    """
    resolved = [file.resolve() for file in files]
    folders = [file.parent.name for file in resolved]
    found: dict[str, Stills] = {}
    for file, path, folder in zip(files, resolved, folders, strict=True):
        if resolved.count(path) > 1:
            raise DataError(f"{file}: given twice; name every file once")
        name = folder if folders.count(folder) == 1 else f"{folder}/{path.stem}"
        stills = read_coco_stills(file, class_names)
        if not any(video.frames[0].annotated for video in stills.index.videos):
            raise DataError(f'{file}: every still says "annotated": false; some have to be looked at')
        found[name if name not in found else str(path)] = stills
    return found


def scored_set(name: str, stills: Stills, frames: Sequence[ScoredFrame]) -> ScoredSet:
    """Name predictions on stills so that they can be told from those on other sets."""
    return ScoredSet(
        name=name,
        frames=[replace(frame, video=f"{name}/{frame.video}") for frame in frames],
        patients={f"{name}/{video}": patient for video, patient in stills.patients.items()},
    )
