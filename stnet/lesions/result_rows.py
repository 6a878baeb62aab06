"""Lesions as results tell them: entries of `detections.json`, rows of `lesions.csv`, boxes for annotation tools."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from stnet.console import printable
from stnet.data.formats.marks import FoundBox, VideoBoxes
from stnet.lesions.lesion import Lesion
from stnet.lesions.sizes import sizes_of
from stnet.video import VideoSource
from stnet.video.scale import PixelScale

COLUMNS = (
    "lesion",
    "class",
    "score",
    "first_frame",
    "last_frame",
    "first_time",
    "last_time",
    "frames",
    "best_frame",
    "x0",
    "y0",
    "x1",
    "y1",
    "width_mm",
    "depth_mm",
    "top_mm",
)
"""Of `lesions.csv`; the box and the sizes are those in the best frame."""


def lesion_entry(lesion: Lesion, names: dict[int, str], scale: PixelScale | None) -> dict[str, Any]:
    """Return what `detections.json` says of a lesion; sizes only where they are known."""
    sizes = sizes_of(lesion.boxes, scale)
    entry = {
        "lesion": lesion.number,
        "label": lesion.label,
        "class": _name(names, lesion.label),
        "score": _rounded(lesion.score),
        "class_scores": {str(label): _rounded(score) for label, score in enumerate(lesion.class_scores, start=1)},
        "first_frame": lesion.first_frame,
        "last_frame": lesion.last_frame,
        "first_time": _rounded(lesion.times[0]),
        "last_time": _rounded(lesion.times[-1]),
        "frame_count": lesion.frame_count,
        "best_frame": lesion.best_frame,
    }
    if sizes[lesion.best] is not None:
        entry["size_mm"] = sizes[lesion.best]
    own = lesion.scores[:, lesion.label - 1]
    entry["track"] = {
        "frames": lesion.frames.tolist(),
        "boxes": np.round(lesion.boxes, 2).tolist(),
        "rows": [int(row) if row >= 0 else None for row in lesion.rows],
        "scores": [_rounded(score) if found else None for score, found in zip(own, lesion.found, strict=True)],
    }
    if any(size is not None for size in sizes):
        entry["track"]["sizes_mm"] = sizes
    return entry


def lesion_row(lesion: Lesion, names: dict[int, str], scale: PixelScale | None) -> list[str]:
    """Return the row of `lesions.csv` for a lesion; sizes that are not known are empty."""
    box = lesion.boxes[lesion.best]
    (size,) = sizes_of([box], scale)
    return [
        str(lesion.number),
        _shown(names, lesion.label),
        f"{lesion.score:.6f}",
        str(lesion.first_frame),
        str(lesion.last_frame),
        f"{lesion.times[0]:.6f}",
        f"{lesion.times[-1]:.6f}",
        str(lesion.frame_count),
        str(lesion.best_frame),
        *(f"{value:.2f}" for value in box),
        *size_cells(size),
    ]


def size_cells(size: tuple[float | None, ...] | None) -> list[str]:
    """Return the cells of a size in mm; what is not known is empty."""
    return ["" if value is None else f"{value:.2f}" for value in size or (None, None, None)]


def annotations(
    lesions: Sequence[Lesion], names: dict[int, str], name: str, source: VideoSource, origin: str, frames: int
) -> VideoBoxes:
    """Return the lesions of a video for annotation tools: tracks of smoothed boxes inside of the frames.

    Args:
        lesions: of the video.
        names: classes by label.
        name: of the video.
        source: gives its size and frame rate.
        origin: the file it is.
        frames: how many it has.
    """
    height, width = source.full_size
    boxes: dict[int, tuple[FoundBox, ...]] = {}
    for lesion in lesions:
        for frame, box in zip(lesion.frames.tolist(), lesion.boxes, strict=True):
            x0, y0, x1, y1 = np.clip(box, 0, [width, height, width, height]).tolist()
            if x1 <= x0 or y1 <= y0:
                continue
            found = FoundBox(
                label=_shown(names, lesion.label), box=(x0, y0, x1, y1), score=lesion.score, instance=lesion.number
            )
            boxes[frame] = (*boxes.get(frame, ()), found)
    return VideoBoxes(
        name=printable(name),
        source=printable(origin),
        size=(width, height),
        frames=frames,
        fps=float(source.fps),
        labels=tuple(_shown(names, label) for label in sorted(names)),
        boxes=boxes,
    )


def _name(names: dict[int, str], label: int) -> str:
    return names.get(label, str(label))


def _shown(names: dict[int, str], label: int) -> str:
    return printable(_name(names, label))


def _rounded(value: float) -> float:
    return round(float(value), 6)
