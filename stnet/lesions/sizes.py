"""Sizes of boxes in millimetres, where the size of a pixel is known."""

import math
from collections.abc import Iterable, Sequence
from fractions import Fraction

from stnet.errors import ConfigError
from stnet.video.scale import MM_RANGE, BoxSize, PixelScale, uniform_scale

Millimetres = tuple[float, float, float | None]
"""Width, depth extent, and depth of the top, which is None where no depth is stated."""


def sizes_of(boxes: Iterable[Sequence[float]], scale: PixelScale | None) -> list[Millimetres | None]:
    """Return the sizes of boxes (x0 y0 x1 y1 in pixels of the original frame), None where no scale is known for one."""
    sizes: list[BoxSize | None] = [None if scale is None else scale.size_of(box) for box in boxes]
    return [
        None
        if size is None
        else (round(size.width, 3), round(size.depth, 3), None if size.top is None else round(size.top, 3))
        for size in sizes
    ]


def agree(stated: PixelScale, other: PixelScale) -> bool:
    """Return whether all regions of a scale have pixels of the size that another one gives whole frames, to 1 %."""
    (frame,) = other.regions
    return all(
        math.isclose(region.pixel_width, frame.pixel_width, rel_tol=0.01)
        and math.isclose(region.pixel_height, frame.pixel_height, rel_tol=0.01)
        for region in stated.regions
    )


def stated_scale(text: str, pixel_aspect: Fraction = Fraction(1)) -> PixelScale:
    """Return the scale of frames whose pixels have a size that the user stated.

    Args:
        text: mm per pixel, `0.08`, or width and height of a pixel, `0.08,0.1`. A single number is the height; the
            width follows from the shape of the pixels.
        pixel_aspect: width of a pixel over its height, as the video states it.

    Raises:
        ConfigError: it is no such text, or not believable.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2):
        raise ConfigError(f"{text!r} is no size of a pixel; give mm such as 0.08, or width,height such as 0.08,0.1")
    width, height = numbers if len(numbers) == 2 else (numbers[0] * float(pixel_aspect), numbers[0])
    scale = uniform_scale(width, height)
    if scale is None:
        raise ConfigError(f"a pixel of {text} mm is not between {MM_RANGE[0]:g} and {MM_RANGE[1]:g} mm")
    return scale
