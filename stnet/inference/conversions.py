"""Results as objects of other packages, which are needed by nobody else: pandas and supervision."""

import importlib
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np

from stnet.errors import ConfigError
from stnet.inference import csv_results
from stnet.inference.frame_results import FrameResult, class_name
from stnet.inference.video_results import VideoResult
from stnet.lesions import result_rows
from stnet.lesions.owners import owner_column
from stnet.lesions.sizes import sizes_of

NO_LESION = -1
"""Stands for a detection of no lesion among supervision's tracker ids."""

NOTHING = (None, None, None)


def to_supervision(result: FrameResult, class_names: Mapping[int, str] | None = None, in_image: bool = False) -> Any:
    """Return the detections of a frame as `supervision.Detections`, best first, cut at the borders of the frame.

    Args:
        result: of the frame. Its lesions, where it knows them, give `tracker_id`, -1 where a detection is of none.
        class_names: by label, for `data["class_name"]`.
        in_image: boxes in pixels of `result.image`, to draw on it, which differ where only a part of the frame is
            looked at; else in pixels of the original frame.

    Raises:
        ConfigError: supervision is not installed.
    """
    supervision = _package("supervision")
    seen = result.visible_in_image if in_image else result.visible
    labels = seen.labels.cpu().numpy().astype(int)
    owners = None
    if result.lesions is not None:
        owners = np.array([NO_LESION if owner is None else owner for owner in _owners(result)], dtype=int)
    names = {} if class_names is None else {"class_name": np.array([class_name(class_names, one) for one in labels])}
    return supervision.Detections(
        xyxy=seen.boxes.cpu().numpy(),
        confidence=seen.scores.cpu().numpy(),
        class_id=labels,
        tracker_id=owners,
        data=names,
    )


def detections_to_pandas(video: VideoResult) -> Any:
    """Return all detections of a video as a `pandas.DataFrame` with the columns of `detections.csv`.

    Raises:
        ConfigError: pandas is not installed.
    """
    rows = []
    for frame in video.frames:
        seen = frame.visible
        boxes = seen.boxes.tolist()
        sizes = sizes_of(boxes, video.scale)
        columns = (boxes, seen.scores.tolist(), seen.labels.tolist(), _owners(frame), sizes)
        for box, score, label, owner, size in zip(*columns, strict=True):
            name = class_name(video.class_names, label)
            rows.append((frame.index, frame.time, *box, score, name, owner, *(size or NOTHING)))
    return _table(csv_results.COLUMNS, rows)


def lesions_to_pandas(video: VideoResult) -> Any:
    """Return the lesions of a video as a `pandas.DataFrame` with the columns of `lesions.csv`.

    Raises:
        ConfigError: pandas is not installed.
    """
    rows = []
    for lesion in video.lesions:
        (size,) = sizes_of([lesion.boxes[lesion.best]], video.scale)
        what = (lesion.number, class_name(video.class_names, lesion.label), lesion.score)
        when = (lesion.first_frame, lesion.last_frame, lesion.times[0], lesion.times[-1])
        best = (lesion.frame_count, lesion.best_frame, *lesion.boxes[lesion.best], *(size or NOTHING))
        rows.append((*what, *when, *best))
    return _table(result_rows.COLUMNS, rows)


def _owners(frame: FrameResult) -> list[int | None]:
    """Return the lesion of each visible detection."""
    found = {seen.row: seen.number for seen in frame.lesions or () if seen.found}
    return owner_column(frame.visible_rows.tolist(), frame.visible.boxes.tolist(), found)


def _table(columns: tuple[str, ...], rows: list[tuple]) -> Any:
    table = _package("pandas").DataFrame(rows, columns=list(columns))
    whole = dict.fromkeys(("frame", "lesion", "first_frame", "last_frame", "frames", "best_frame"), "Int64")
    # Types of columns are the same for videos in which nothing was found.
    return table.astype({name: whole.get(name, "string" if name == "class" else float) for name in columns})


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ConfigError(f"this needs {name}, which is not installed: pip install {name}") from error
