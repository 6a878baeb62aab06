"""What the report page tells of lesions: boxes with their numbers, and a card for each of the best ones."""

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np

from stnet.inference.frame_marks import Listed, in_frame
from stnet.lesions import Lesion, LinkSettings
from stnet.lesions.owners import owner_column
from stnet.lesions.sizes import sizes_of
from stnet.video import VideoSource
from stnet.video.scale import PixelScale

MOST_CARDS = 40
"""Lesions of one video that have a card, best first; the table of lesions has all of them."""

FILM_FRAMES = 8
"""Pictures of a lesion's filmstrip."""

CURVE_POINTS = 200
"""Points of a lesion's curves; longer ones show every n-th frame."""


def best_lesions(lesions: Sequence[Lesion]) -> list[Lesion]:
    """Return the lesions that have a card, the highest score first."""
    return sorted(lesions, key=lambda lesion: -lesion.score)[:MOST_CARDS]


def box_rows(frame: Listed, lesions: Iterable[Lesion]) -> list[list[Any]]:
    """Return what the page draws in a frame: x0 y0 x1 y1, score, label, lesion.

    The score is null where a lesion in sight is not among the detections listed, the lesion where there is none.
    """
    seen = in_frame(lesions, frame.frame)
    table = frame.table.tolist()
    boxes = [[round(x, 1) for x in row[:4]] for row in table]
    owners = owner_column([int(row[6]) for row in table], boxes, {one.row: one.number for one in seen if one.found})
    rows: list[list[Any]] = [
        [*box, round(row[4], 6), int(row[5]), owner] for box, row, owner in zip(boxes, table, owners, strict=True)
    ]
    return rows + [
        [*in_picture(one.box, frame.origin, frame.size), None, one.label, one.number]
        for one in seen
        if one.number not in owners
    ]


def in_picture(box: np.ndarray, origin: tuple[int, int], size: tuple[int, int]) -> list[float]:
    """Return a box of the original frame in pixels of the picture, cut at its borders."""
    height, width = size
    return np.round(np.clip(box - np.tile(origin, 2), 0, [width, height, width, height]), 1).tolist()


def lesion_card(
    lesion: Lesion, source: VideoSource, scale: PixelScale | None, shown: Sequence[int], kept: Collection[int]
) -> dict[str, Any]:
    """Return what a card tells of a lesion.

    Args:
        lesion: of the video.
        source: the video.
        scale: the size of its pixels.
        shown: frames that the page shows, ascending.
        kept: best frames that it keeps beside them.
    """
    size = (source.height, source.width)
    boxes = [in_picture(box, source.origin, size) for box in lesion.boxes]
    best = lesion.best_frame
    at = best if best in kept or best in shown else _nearest(shown, best)
    place = lesion.frames.tolist().index(at) if at in lesion.frames else lesion.best
    return {
        "number": lesion.number,
        "label": lesion.label,
        "score": round(lesion.score, 4),
        "classScores": np.round(lesion.class_scores, 4).tolist(),
        "first": lesion.first_frame,
        "last": lesion.last_frame,
        "firstTime": round(float(lesion.times[0]), 3),
        "lastTime": round(float(lesion.times[-1]), 3),
        "count": lesion.frame_count,
        "best": {
            "number": best,
            "time": round(float(lesion.times[lesion.best]), 3),
            "shown": at,
            "box": boxes[place],
            "size": sizes_of(lesion.boxes[[lesion.best]], scale)[0],
        },
        "film": [
            {"number": int(lesion.frames[position]), "box": boxes[position], "found": bool(lesion.found[position])}
            for position in _spread(np.flatnonzero(np.isin(lesion.frames, shown)), FILM_FRAMES)
        ],
        "curve": _curve(lesion, scale),
    }


def _curve(lesion: Lesion, scale: PixelScale | None) -> dict[str, Any]:
    """Return score and size over time; null between stretches, and where there is no value."""
    sizes = sizes_of(lesion.boxes, scale)
    known = any(size is not None for size in sizes)
    extents = (lesion.boxes[:, 2:] - lesion.boxes[:, :2]).tolist()
    columns: list[list[Any]] = []
    before = None
    for position in _spread(np.arange(len(lesion.frames)), CURVE_POINTS):
        if before is not None and np.diff(lesion.frames[before : position + 1]).max() > LinkSettings().brief + 1:
            columns.append([int(lesion.frames[before]), None, None, None])
        before = position
        score = float(lesion.scores[position, lesion.label - 1]) if lesion.found[position] else None
        sides = (sizes[position] or (None, None))[:2] if known else extents[position]
        columns.append([int(lesion.frames[position]), *(_rounded(value) for value in (score, *sides))])
    frames, scores, widths, depths = (list(column) for column in zip(*columns, strict=True))
    unit = "mm" if known else "px"
    return {"frames": frames, "scores": scores, "widths": widths, "depths": depths, "unit": unit}


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 3)


def _spread(positions: np.ndarray, most: int) -> list[int]:
    """Return at most so many of ascending positions, evenly spread, the first and the last among them."""
    if len(positions) <= most:
        return positions.tolist()
    return positions[np.linspace(0, len(positions) - 1, most).round().astype(int)].tolist()


def _nearest(frames: Sequence[int], frame: int) -> int:
    return min(frames, key=lambda other: abs(other - frame))
