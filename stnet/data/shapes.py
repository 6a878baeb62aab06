"""From drawn shapes to the upright boxes around them."""

import math
from collections.abc import Sequence

Box = tuple[float, float, float, float]
"""x0, y0, x1, y1 in pixels, x0 <= x1 and y0 <= y1; the last column and row are outside."""


def ordered(x0: float, y0: float, x1: float, y1: float) -> Box:
    """Return the box between two opposite corners, whichever way it was drawn."""
    return min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)


def around(points: Sequence[tuple[float, float]]) -> Box | None:
    """Return the box around points, None where they enclose nothing."""
    if not points:
        return None
    xs, ys = [x for x, _ in points], [y for _, y in points]
    box = min(xs), min(ys), max(xs), max(ys)
    return box if box[0] < box[2] and box[1] < box[3] else None


def around_turned_box(box: Box, degrees: float) -> Box:
    """Return the box around `box` turned about its centre, clockwise on the screen."""
    cos, sin = _turn(degrees)
    half_width, half_height = (box[2] - box[0]) / 2, (box[3] - box[1]) / 2
    return _centred(box, abs(cos) * half_width + abs(sin) * half_height, abs(sin) * half_width + abs(cos) * half_height)


def around_ellipse(x: float, y: float, radius_x: float, radius_y: float, degrees: float = 0.0) -> Box:
    """Return the box around an ellipse turned about its centre."""
    cos, sin = _turn(degrees)
    half_width = math.hypot(radius_x * cos, radius_y * sin)
    half_height = math.hypot(radius_x * sin, radius_y * cos)
    return x - half_width, y - half_height, x + half_width, y + half_height


def _turn(degrees: float) -> tuple[float, float]:
    """Cosine and sine, exact for quarter turns."""
    quarters, rest = divmod(degrees, 90)
    if rest == 0:
        return ((1.0, 0.0), (0.0, 1.0), (-1.0, 0.0), (0.0, -1.0))[int(quarters) % 4]
    return math.cos(math.radians(degrees)), math.sin(math.radians(degrees))


def _centred(box: Box, half_width: float, half_height: float) -> Box:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    return x - half_width, y - half_height, x + half_width, y + half_height


def turned_about_corner(box: Box, degrees: float) -> Box:
    """Return the box around `box` turned about its upper left corner, clockwise on the screen."""
    cos, sin = _turn(degrees)
    width, height = box[2] - box[0], box[3] - box[1]
    xs = [box[0] + x * cos - y * sin for x in (0, width) for y in (0, height)]
    ys = [box[1] + x * sin + y * cos for x in (0, width) for y in (0, height)]
    return min(xs), min(ys), max(xs), max(ys)
