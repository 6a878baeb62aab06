"""What the report page tells of where the model looked for a lesion."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import numpy as np

from stnet.inference.explanation import Explanation

MOST_POINTS = 250
"""Points that the page draws in a frame, the heaviest ones."""

FEWEST_PARTS = 300
"""Lighter points than this part of the heaviest one of a clip, which nobody could see, are left out."""


def looked_at(
    explanation: Explanation, indices: Sequence[int], shown: Collection[int], encode: Callable[[np.ndarray], str]
) -> dict[str, Any]:
    """Return what a card tells of an explanation.

    Args:
        explanation: of the lesion.
        indices: in the video, of the frames as the page numbers them, ascending.
        shown: numbers of the frames that the page shows, whose pictures are not stored twice.
        encode: makes base64 of a picture.
    """
    frames = []
    for frame in explanation.frames:
        number = int(np.searchsorted(indices, frame.frame))
        frames.append(
            {
                "number": number,
                "own": frame.own,
                "box": None if frame.box is None else np.round(frame.box, 1).tolist(),
                "image": None if number in shown else encode(frame.image),
            }
        )
    return {"frames": frames} | {
        part: _points([getattr(frame, part) for frame in explanation.frames]) for part in ("decoder", "encoder")
    }


def _points(frames: Sequence[np.ndarray]) -> list[dict[str, Any]]:
    """Return the share of each frame and its points: x, y, thousandths of the heaviest point of the clip."""
    most = max((float(points[:, 2].max(initial=0.0)) for points in frames), default=0.0)
    told = []
    for points in frames:
        heavy = points[points[:, 2] >= most / FEWEST_PARTS]
        heavy = heavy[np.argsort(-heavy[:, 2], kind="stable")][:MOST_POINTS]
        rows = [
            value
            for x, y, weight in heavy.tolist()
            for value in (round(x, 1), round(y, 1), max(1, round(1000 * weight / most)))
        ]
        told.append({"share": round(float(points[:, 2].sum()), 4), "points": rows})
    return told
