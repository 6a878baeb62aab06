"""Which lesion each row of a frame's detections belongs to."""

from collections.abc import Sequence

from stnet.lesions.lesion import Lesion

Owners = dict[int, dict[int, int]]
"""By frame, by row in its list of detections: the number of the lesion that was found there."""


def owners_of(lesions: Sequence[Lesion]) -> Owners:
    """Return where the lesions of a video were found: the row of each finding's best score."""
    owners: Owners = {}
    for lesion in lesions:
        for frame, row in zip(lesion.frames.tolist(), lesion.rows.tolist(), strict=True):
            if row >= 0:
                owners.setdefault(frame, {})[row] = lesion.number
    return owners


def owner_column(rows: Sequence[int], boxes: Sequence[Sequence], found: dict[int, int]) -> list[int | None]:
    """Return the lesion of each listed detection of a frame, None where it is of none.

    A box that is listed once for every class is one finding: all its rows are of the same lesion.

    Args:
        rows: where each listed detection stands in the frame's list of detections.
        boxes: of the listed detections, in any form that equal boxes have alike.
        found: of the frame, from `owners_of`.
    """
    of_box = {tuple(box): found[row] for row, box in zip(rows, boxes, strict=True) if row in found}
    return [of_box.get(tuple(box)) for box in boxes]
