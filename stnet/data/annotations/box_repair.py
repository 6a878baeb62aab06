"""The boxes of one frame: put into its image, brought to its scale, compared with one another."""

from collections.abc import Sequence

import torch

from stnet.boxes import overlaps
from stnet.data.shapes import Box, ordered

DUPLICATE_IOU = 0.95
"""Boxes of one class on one frame that overlap by more are the same box."""

ROUNDING_PIXELS = 1e-3
"""How far a box may reach beyond its image by the rounding of decimals: it is clipped without a word."""

Size = tuple[int, int]
"""Height and width in pixels."""


def repair_box(
    bbox: tuple[float, float, float, float], height: float, width: float
) -> tuple[Box | None, list[tuple[str, str, str]]]:
    """Put a box into its image.

    Args:
        bbox: x, y, w, h in pixels; a negative w or h means that it was drawn right to left or upwards.
        height: height of the image in pixels.
        width: width of the image in pixels.

    Returns:
        The corners x0, y0, x1, y1, or None where the box covers nothing of the image; and for each thing that was
        wrong its kind, what it is and what was done.
    """
    x, y, w, h = bbox
    written = "box [" + ", ".join(f"{value:g}" for value in bbox) + "]"
    image = f"the {width:g}x{height:g} image"
    done = []
    if w < 0 or h < 0:
        done.append(("reversed box", f"{written} drawn right to left or upwards", "corners put in order"))
    x0, x1 = sorted((x, x + w))
    y0, y1 = sorted((y, y + h))
    clipped = (max(x0, 0.0), max(y0, 0.0), min(x1, float(width)), min(y1, float(height)))
    if clipped[2] <= clipped[0] or clipped[3] <= clipped[1]:
        return None, [*done, ("empty box", f"{written} covers nothing of {image}", "left out")]
    if max(abs(a - b) for a, b in zip(clipped, (x0, y0, x1, y1), strict=True)) > ROUNDING_PIXELS:
        done.append(("clipped box", f"{written} reaches beyond {image}", "clipped"))
    return clipped, done


def same_shape(written: Size, size: Size) -> bool:
    """Return whether an image of one size can be one of the other, resized: equal but for the rounding of pixels."""
    (height, width), (true_height, true_width) = written, size
    scale = max(true_height / height, true_width / width, height / true_height, width / true_width)
    tolerance = (1 + scale) / 2
    larger, smaller = max(written, size), min(written, size)
    return abs(larger[0] - smaller[0] * larger[1] / smaller[1]) <= tolerance


def scaled_bbox(bbox: Sequence[float], scale: tuple[float, float]) -> tuple[float, float, float, float]:
    """Return x, y, w, h with x and w, y and h times the scale of their direction; signs stay."""
    (x, y, w, h), (across, down) = bbox, scale
    return x * across, y * down, w * across, h * down


def scaled_box(bbox: Sequence[float], scale: tuple[float, float]) -> Box:
    """Return the corners x0, y0, x1, y1 of a scaled x, y, w, h in order, not clipped."""
    x, y, w, h = scaled_bbox(bbox, scale)
    return ordered(x, y, x + w, y + h)


def is_among(corners: Box, others: Sequence[Box]) -> bool:
    """Tell whether one of the other boxes is this one: see `DUPLICATE_IOU`."""
    if not others:
        return False
    iou, _ = overlaps(torch.tensor(corners, dtype=torch.float64), torch.tensor(others, dtype=torch.float64))
    return bool((iou > DUPLICATE_IOU).any())
